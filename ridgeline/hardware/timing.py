"""Timing on a noisy machine: rounds spread in time, the median of each, the lower quartile of the rounds.

Whatever else runs on a machine only ever adds time. The median of a round discards the hiccups
within it, the lower quartile of the rounds the stretches in which a neighbour had the machine, and those in
which its clock was higher than it stays.

Memory moves: neighbours slow it by half, for seconds or minutes. Where its rate is read in between, the
rounds of a probe that waits for memory are told as they would be at one rate, the median of all readings;
the median of these rounds counts, since the fastest are those whose readings were out of date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median, median_low
from time import perf_counter
from typing import Any

from ridgeline.hardware.drift import at_memory_rate

#: Fewer rounds have no spread.
LEAST_ROUNDS = 2
#: Seconds after which memory's rate is read again.
READ_AGAIN = 0.15
#: The share of the rounds that are faster than what counts, and the same of rounds told at another rate.
QUARTILE, MEDIAN = 0.25, 0.5
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
    settled_rounds: int = 4
    tolerance: float = 0.03
    seconds: float = 40.0
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
    probes of one figure the fastest counts. A call that waits for memory names its ``twin``, the figure of
    the same call served by caches, or "" if all of its time is memory's, and ``memory``, the bytes that it
    reads there, if they are known.
    """

    figure: str
    call: Callable[..., Any]
    work: float = 1.0
    prepare: Callable[[], Sequence[Any]] = tuple
    twin: str | None = None
    memory: float = inf

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
    def of(cls, rounds: Sequence[float], work: float = 1.0, share: float = QUARTILE) -> Timing:
        """From the seconds of a call in each round: those that the ``share`` of the rounds is below."""
        ordered = sorted(rounds)
        return cls(ordered[int(share * (len(rounds) - 1))] / work, ordered[-1] / ordered[0] - 1)


class Timings:
    """What was found, by figure. ``memory`` is the rate of memory that it holds at, bytes/s, 0 if unknown."""

    def __init__(self, found: Iterable[tuple[str, Timing]], memory: float = 0.0) -> None:
        self.memory = memory
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
    memory: Callable[[], float] | None = None,
) -> Timings:
    """Time all probes, round after round, each called once beforehand to warm up. ``memory`` reads the rate
    of memory, bytes/s, every now and then."""
    begin, done = clock(), 0
    needed = len(probes) * (1 + LEAST_ROUNDS)
    rounds: list[list[_Round]] = [[] for _ in probes]
    rates = _Rates(memory, clock)

    def tell(what: str) -> None:
        if progress is not None:  # it ends when the time is over, but not before every probe is done
            progress(what, min((clock() - begin) / schedule.seconds, done / needed, 1.0))

    for probe in probes:
        tell("warming up")
        probe.call(*probe.prepare())
        done += 1
    for _ in range(schedule.rounds):
        for probe, found in zip(probes, rounds, strict=True):
            in_time = len(found) < LEAST_ROUNDS or clock() - begin < schedule.seconds
            if in_time and not schedule.is_settled([r.seconds for r in found]):
                tell(probe.figure.partition("[")[0])
                reading = rates.last()
                found.append(_Round(_round(probe, schedule, clock), reading))
                done += 1
    if progress is not None:
        progress("done", 1.0)
    return Timings(_told(probes, rounds, rates), rates.usual)


@dataclass(frozen=True)
class _Round:
    """What a call took, and the number of the last reading of memory's rate before it."""

    seconds: float
    reading: int


class _Rates:
    """Memory's rate over time, read when the last reading is old."""

    def __init__(self, read: Callable[[], float] | None, clock: Callable[[], float]) -> None:
        self._read, self._clock = read, clock
        self._found: list[float] = []
        self._at = 0.0

    def last(self) -> int:
        """The number of the last reading."""
        if self._read is not None and (not self._found or self._clock() - self._at > READ_AGAIN):
            self._found.append(self._read())
            self._at = self._clock()
        return len(self._found) - 1

    @property
    def usual(self) -> float:
        """The median of all readings, 0 if there are none."""
        return median(self._found) if self._found else 0.0

    def around(self, number: int) -> float:
        """The mean of that reading and the next."""
        pair = self._found[number : number + 2]
        return sum(pair) / len(pair)


def _told(
    probes: Sequence[Probe], rounds: Sequence[Sequence[_Round]], rates: _Rates
) -> list[tuple[str, Timing]]:
    """Every probe's timing, those that wait for memory as at its usual rate."""
    cached: dict[str, float] = {}
    for probe, found in zip(probes, rounds, strict=True):
        best = min(r.seconds for r in found)
        cached[probe.figure] = min(best, cached.get(probe.figure, best))
    timings = []
    for probe, found in zip(probes, rounds, strict=True):
        seconds, share = [r.seconds for r in found], QUARTILE
        if probe.twin is not None and rates.usual:
            served = cached.get(probe.twin, 0.0)
            share = MEDIAN
            then = [rates.around(r.reading) for r in found]
            seconds = [
                at_memory_rate(r.seconds, served, rates.usual / rate, probe.memory / rate)
                for r, rate in zip(found, then, strict=True)
            ]
        timings.append((probe.figure, Timing.of(seconds, probe.work, share)))
    return timings


def _round(probe: Probe, schedule: Schedule, clock: Callable[[], float]) -> float:
    """The median seconds of a call; of two middle ones the lower, which was disturbed less."""
    seconds: list[float] = []
    begin = clock()
    while not seconds or (len(seconds) < schedule.calls and clock() - begin < schedule.probe_seconds):
        seconds.append(probe.seconds(clock))
    return median_low(seconds)
