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
    if explanation.request is not None:
        yield _first_token(explanation.request, phases[0])
    if explanation.request is not None and explanation.workload.output > 1:
        further = count(explanation.workload.output - 1)
        note = f"predicted, mean of {further} tokens"
        yield Card("Time per output token (TPOT)", seconds(explanation.request.tpot_seconds), (note,))
    yield _memory(explanation.memory)


def _throughput(joined: JoinedPhase) -> Card:
    phase = joined.phase
    where = f"at context {count(phase.context)}" if phase.name == "decode" else f"of {count(phase.tokens)} tokens"
    notes = [f"predicted, {seconds(phase.seconds)} a step"]
    if joined.check is not None:
        measured = joined.check.rows / joined.check.measured
        notes.append(f"measured {count(measured)} tokens/s")
        notes.append(f"error of time {signed_percent(joined.check.error)}")
    return Card(f"{phase.name.capitalize()} {where}", f"{count(phase.tokens_per_second)} tokens/s", tuple(notes))


def _first_token(request: Request, prefill: JoinedPhase) -> Card:
    """The first token comes out of prefill, so that its check is also this figure's."""
    notes = ["predicted"]
    if prefill.check is not None:
        notes = ["predicted", f"measured {seconds(prefill.check.measured)}"]
        notes.append(f"error {signed_percent(prefill.check.error)}")
    return Card("Time to first token (TTFT)", seconds(request.ttft_seconds), tuple(notes))


def _memory(memory: MemoryUse) -> Card:
    if memory.fits:
        verdict = f"of {nbytes(memory.device)}, fits"
    else:
        verdict = f"does not fit: {count(memory.total / memory.device)} times the device's {nbytes(memory.device)}"
    return Card("Memory", nbytes(memory.total), ("predicted", verdict))
