"""Timing on a noisy machine: rounds spread in time, the median of each, the best of the rounds.

Whatever else runs on a machine only ever adds time. The median of a round discards the hiccups
within it, the best round the stretches in which a neighbour had the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median, median_low
from time import perf_counter
from typing import Any

#: Fewer rounds have no spread.
LEAST_ROUNDS = 2
#: What is being timed, and the share of the whole that is done.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Schedule:
    """How much is timed.

    Every probe has two rounds. It has more, up to ``rounds``, until ``settled_rounds`` of them are
    within ``tolerance`` of the best, or ``seconds`` have passed for all probes together. In a round
    it is called until it was called ``calls`` times or has used up ``probe_seconds``.
    """

    rounds: int = 12
    settled_rounds: int = 3
    tolerance: float = 0.03
    seconds: float = 10.0
    calls: int = 9
    probe_seconds: float = 8e-3

    def is_settled(self, rounds: Sequence[float]) -> bool:
        """Whether another round would tell nothing new."""
        close = sum(seconds <= min(rounds) * (1 + self.tolerance) for seconds in rounds)
        return close >= self.settled_rounds


@dataclass(frozen=True)
class Probe:
    """One way to find a figure: a call that does ``work`` units of it.

    ``prepare`` runs before every call, is not timed, and returns the call's arguments. Of several
    probes of one figure the fastest counts.
    """

    figure: str
    call: Callable[..., Any]
    work: float = 1.0
    prepare: Callable[[], Sequence[Any]] = tuple

    def seconds(self, clock: Callable[[], float]) -> float:
        """What one call takes."""
        arguments = self.prepare()
        start = clock()
        self.call(*arguments)
        return clock() - start


@dataclass(frozen=True)
class KernelProbe(Probe):
    """A probe whose call returns the seconds that its kernel took, timed where it ran: without Python."""

    def seconds(self, clock: Callable[[], float]) -> float:
        return self.call(*self.prepare())


@dataclass(frozen=True)
class Timing:
    """Seconds a unit of work, and how much longer the worst round took, relative to the best."""

    seconds: float
    spread: float

    @classmethod
    def of(cls, rounds: Sequence[float], work: float = 1.0) -> Timing:
        """From the seconds of a call in each round."""
        best = min(rounds)
        return cls(best / work, max(rounds) / best - 1)


class Timings:
    """What was found, by figure."""

    def __init__(self, found: Iterable[tuple[str, Timing]]) -> None:
        self._best: dict[str, Timing] = {}
        for figure, timing in found:
            known = self._best.get(figure)
            if known is None or timing.seconds < known.seconds:
                self._best[figure] = timing

    def __contains__(self, figure: str) -> bool:
        return figure in self._best

    def seconds(self, figure: str) -> float:
        """Seconds a unit of work."""
        return self._best[figure].seconds

    def rate(self, figure: str) -> float:
        """Units of work a second."""
        return 1 / self._best[figure].seconds

    def spreads(self) -> dict[str, float]:
        """The spread of every figure; for the cells of a table, whose figures are ``name[cell]``,
        their median under the table's name."""
        grouped: dict[str, list[float]] = {}
        for figure, timing in self._best.items():
            grouped.setdefault(figure.partition("[")[0], []).append(timing.spread)
        return {name: median(spreads) for name, spreads in grouped.items()}


def time_probes(
    probes: Sequence[Probe],
    schedule: Schedule,
    progress: Progress | None = None,
    clock: Callable[[], float] = perf_counter,
) -> Timings:
    """Time all probes, round after round, each called once beforehand to warm up."""
    begin, done = clock(), 0
    needed = len(probes) * (1 + LEAST_ROUNDS)
    rounds: list[list[float]] = [[] for _ in probes]

    def tell(what: str) -> None:
        if progress is not None:  # it ends when the time is over, but not before every probe is done
            progress(what, min((clock() - begin) / schedule.seconds, done / needed, 1.0))

    for probe in probes:
        tell("warming up")
        probe.call(*probe.prepare())
        done += 1
    for _ in range(schedule.rounds):
        for probe, seconds in zip(probes, rounds, strict=True):
            in_time = len(seconds) < LEAST_ROUNDS or clock() - begin < schedule.seconds
            if in_time and not schedule.is_settled(seconds):
                tell(probe.figure.partition("[")[0])
                seconds.append(_round(probe, schedule, clock))
                done += 1
    if progress is not None:
        progress("done", 1.0)
    found = zip(probes, rounds, strict=True)
    return Timings((probe.figure, Timing.of(seconds, probe.work)) for probe, seconds in found)


def _round(probe: Probe, schedule: Schedule, clock: Callable[[], float]) -> float:
    """The median seconds of a call; of two middle ones the lower, which was disturbed less."""
    seconds: list[float] = []
    begin = clock()
    while not seconds or (len(seconds) < schedule.calls and clock() - begin < schedule.probe_seconds):
        seconds.append(probe.seconds(clock))
    return median_low(seconds)
