"""The figures that matter: throughput, latency and memory, each with what was measured of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ridgeline.analysis.denoising import DenoisingExplanation
from ridgeline.report.joined import JoinedPhase
from ridgeline.report.markup import Card
from ridgeline.report.units import BOUNDS, count, nbytes, percent, seconds, signed_percent

if TYPE_CHECKING:
    from ridgeline.analysis.explanation import Explanation, MemoryUse, Phase, Request


def headline_cards(
    explanation: Explanation | DenoisingExplanation, phases: Sequence[JoinedPhase]
) -> Iterator[Card]:
    """Throughput of every phase, then the latencies of a request if there is one, then memory."""
    for joined in phases:
        yield _throughput(joined)
    if isinstance(explanation, DenoisingExplanation):
        yield _images(explanation)
    request = explanation.request
    if request is not None:
        yield _first_token(request, phases[0])
        if request.tpot_seconds is not None:
            basis = "The mean of the steps after the first token, each at its own context. "
            tpot = seconds(request.tpot_seconds)
            yield _card("TPOT", tpot, "time per output token", basis=basis + phase_basis(phases[-1].phase))
    yield _memory(explanation.memory)


def _throughput(joined: JoinedPhase) -> Card:
    phase = joined.phase
    length = f"context {count(phase.context)}" if phase.name == "decode" else f"{count(phase.tokens)} tokens"
    notes = [f"{length}, {seconds(phase.seconds)}"]
    if joined.check is not None:
        notes.append(f"measured {count(joined.check.rows / joined.check.measured)} tokens/s")
        notes.append(f"error {signed_percent(joined.check.error)}")
    said = f"{count(phase.tokens_per_second)} tokens/s"
    return _card(phase.name.capitalize(), said, *notes, basis=phase_basis(phase))


def _images(found: DenoisingExplanation) -> Card:
    load = found.workload
    thing = "video" if load.frames > 1 else "image"
    batch = f"1 {thing}" if load.batch == 1 else f"{count(load.batch)} {thing}s at once"
    basis = f"All {count(load.steps)} steps take as long as this one. " + phase_basis(found.phases[0])
    notes = (
        f"{batch} in {count(load.steps)} steps",
        f"{count(found.image.multiply_adds)} multiply-adds once",
    )
    return _card("All steps", seconds(found.image.seconds), *notes, basis=basis)


def _first_token(request: Request, prefill: JoinedPhase) -> Card:
    """The first token comes out of prefill, so that its check is also this figure's."""
    notes = ["time to first token"]
    if prefill.check is not None:
        notes.append(f"measured {seconds(prefill.check.measured)}")
        notes.append(f"error {signed_percent(prefill.check.error)}")
    basis = "The prefill of the prompt, whose last row gives the token. " + phase_basis(prefill.phase)
    return _card("TTFT", seconds(request.ttft_seconds), *notes, basis=basis)


def _memory(memory: MemoryUse) -> Card:
    capacity = nbytes(memory.device)
    verdict = "fits" if memory.fits else f"does not fit, {count(memory.total / memory.device)} times as much"
    basis = (
        "Weights, KV cache and the most that activations take at once, counted from the model's definition."
    )
    return _card("Memory", nbytes(memory.total), f"of {capacity}", verdict, basis=basis)


def phase_basis(phase: Phase) -> str:
    """What a phase's time is computed from, what binds most of it, and where the figures are from."""
    bound, took = max(phase.seconds_by_bound.items(), key=lambda item: item[1])
    tiers = ", ".join(f"{section} {tier}" for section, tier in phase.basis.items())
    counted = f"{count(phase.flops.total)} FLOP and {nbytes(phase.bytes)}, counted"
    share = f"{BOUNDS.get(bound, bound)} bind {percent(took / phase.seconds)} of the time"
    return f"{counted}; {share}. Stands on: {tiers}."


def _card(label: str, quantity: str, *notes: str, basis: str = "") -> Card:
    value, unit = quantity.split(" ")
    return Card(label, value, unit, notes, basis)
