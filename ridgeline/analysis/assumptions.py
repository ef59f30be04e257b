"""What a prediction cannot know or chose, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ridgeline.analysis.explanation import MemoryUse, Phase
from ridgeline.hardware import Device
from ridgeline.hardware.measured import is_measured_gpu
from ridgeline.models import Model
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.formats import get_format
from ridgeline.predict.tiers import Tier


def explain_assumptions(
    model: Model,
    device: Device,
    tier: Tier,
    multiplied: str,
    pairs: Pairs,
    memory: MemoryUse,
    phases: Sequence[Phase],
) -> Iterator[str]:
    if pairs is Pairs.VISIBLE:
        yield "attention counts only the query-key pairs that the mask lets through"
    else:
        yield "operations count the full square of query-key pairs, times only the visible ones"
    yield from common_assumptions(model, device, tier, multiplied, memory, phases)


def common_assumptions(
    model: Model, device: Device, tier: Tier, multiplied: str, memory: MemoryUse, phases: Sequence[Phase]
) -> Iterator[str]:
    """What any prediction stands on: how weights are multiplied, and what the device's figures leave out."""
    for p in phases:
        for statement in p.assumptions:
            yield f"{p.name}: {statement}"
    if multiplied == "int8":
        yield "activations are quantised to int8 on chip and multiplied so with the quantised weights"
    elif any(get_format(w.format).is_quantised for w in model.weights()):
        yield f"quantised weights are expanded to {multiplied} on chip and multiplied so"
    if tier in (Tier.GENERIC, Tier.CALIBRATED):
        yield (
            "kernels follow each other without a gap, as in a recorded graph; those that no library would "
            "merge are merged"
        )
    if tier is Tier.GENERIC:
        yield "kernels reach as much of the rates as on other devices, calibrated ones of this class"
    if tier is Tier.DATASHEET:
        yield (
            f"every kernel reaches the device's rates and takes {device.launch_seconds * 1e6:.3g} µs to "
            "launch; caches of unpublished bandwidth are left out: an optimistic estimate, not a forecast"
        )
    unmeasured = dict.fromkeys(name for p in phases for name in p.unmeasured)
    if unmeasured:
        names = ", ".join(unmeasured)
        rest = (
            "are as time models have them"
            if is_measured_gpu(device)
            else "reach the machine's measured rates"
        )
        yield f"no kernel was measured for {names}: these {rest}"
    if memory.cache_in_windows is not None:
        yield (
            "the cache keeps every token of every layer, as the engine does; one that forgot what no window "
            f"reaches any more would take {memory.cache_in_windows / memory.cache:.0%} of it"
        )
    if not memory.fits:
        yield "the device holds the model, which in fact does not fit in its memory"
