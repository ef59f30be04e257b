"""The figures that matter: throughput, latency and memory, each with what was measured of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ridgeline.report.joined import JoinedPhase
from ridgeline.report.markup import Card
from ridgeline.report.units import count, nbytes, seconds, signed_percent

if TYPE_CHECKING:
    from ridgeline.analysis.explain import Explanation, MemoryUse, Request


def headline_cards(explanation: Explanation, phases: Sequence[JoinedPhase]) -> Iterator[Card]:
    """Throughput of every phase, then the latencies of a request if there is one, then memory."""
    for joined in phases:
        yield _throughput(joined)
    request = explanation.request
    if request is not None:
        yield _first_token(request, phases[0])
        if request.tpot_seconds is not None:
            yield _card("TPOT", seconds(request.tpot_seconds), "time per output token")
    yield _memory(explanation.memory)


def _throughput(joined: JoinedPhase) -> Card:
    phase = joined.phase
    length = f"context {count(phase.context)}" if phase.name == "decode" else f"{count(phase.tokens)} tokens"
    notes = [f"{length}, {seconds(phase.seconds)}"]
    if joined.check is not None:
        notes.append(f"measured {count(joined.check.rows / joined.check.measured)} tokens/s")
        notes.append(f"error {signed_percent(joined.check.error)}")
    return _card(phase.name.capitalize(), f"{count(phase.tokens_per_second)} tokens/s", *notes)


def _first_token(request: Request, prefill: JoinedPhase) -> Card:
    """The first token comes out of prefill, so that its check is also this figure's."""
    notes = ["time to first token"]
    if prefill.check is not None:
        notes.append(f"measured {seconds(prefill.check.measured)}")
        notes.append(f"error {signed_percent(prefill.check.error)}")
    return _card("TTFT", seconds(request.ttft_seconds), *notes)


def _memory(memory: MemoryUse) -> Card:
    capacity = nbytes(memory.device)
    verdict = "fits" if memory.fits else f"does not fit, {count(memory.total / memory.device)} times as much"
    return _card("Memory", nbytes(memory.total), f"of {capacity}", verdict)


def _card(label: str, quantity: str, *notes: str) -> Card:
    value, unit = quantity.split(" ")
    return Card(label, value, unit, notes)
