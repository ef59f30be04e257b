"""Attention as a kind of kernel that can be calibrated: a point is one step's attention in one layer, a chunk
of a prompt behind cached tokens beside sequences that decode."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from ridgeline.hardware.device import Device
from ridgeline.ops.formats import get_format
from ridgeline.ops.kernel import Kernel, SequenceWork
from ridgeline.predict.gpu.fitting import fit_constants
from ridgeline.predict.gpu.flash import FLASH_3_PRIORS, PRIORS, AttentionConstants, attend
from ridgeline.predict.gpu.kinds import Kind, Points

if TYPE_CHECKING:
    from ridgeline.predict.gpu.kernels import Needed

#: Relative error beyond which a point's pull on the constants grows no more: the model is no better.
SCALE = 0.06
#: Chips of compute capability 9, for which vLLM and others take FlashAttention-3.
HOPPER, HOPPER_GENERATION = ("H100", "H200"), 3.0
#: Bytes of an element of the points, which are in bf16.
BYTES = 2


def seconds(device: Device, constants: AttentionConstants, points: Points) -> ndarray:
    """Seconds of every point, [points]."""
    return attend(device, constants, sequences(points), "bf16").seconds


def sequences(points: Points) -> tuple[SequenceWork, SequenceWork]:
    """The chunk and the decoding sequences of every point, as arrays over the points."""
    chunk, past, count, cached, heads, kv_heads, head_dim = (points[c].astype(float) for c in KIND.numbers)
    pair = 4 * heads * head_dim  # operations of a query and a key
    shape = (heads, kv_heads, head_dim)
    pairs = chunk * past + chunk * (chunk + 1) / 2
    return (
        SequenceWork(np.maximum(chunk, 1), np.minimum(chunk, 1), pair * pairs, 0, past + chunk, *shape),
        SequenceWork(1, count, pair * (cached + 1), 0, cached + 1, *shape),
    )


def roofline(device: Device, points: Points) -> ndarray:
    """The datasheet's bound: products, exponentials, keys and values read once, and a launch."""
    works = sequences(points)
    flops = sum(w.count * w.flops for w in works)
    products = flops / device.matrix_rate("bf16")
    exponentials = flops / (4 * points["head_dim"]) / device.exp_rate
    keys = sum(w.count * w.keys for w in works) * points["kv_heads"] * points["head_dim"]
    reading = 2 * BYTES * keys / device.bandwidth
    return device.launch_seconds + np.maximum(np.maximum(products, exponentials), reading)


def fit(device: Device, points: Points) -> AttentionConstants:
    """The constants of these steps on ``device``, of the generation of kernel that explains them best."""
    measured = np.log(points.seconds)

    def errors(constants: AttentionConstants) -> ndarray:
        return np.log(seconds(device, constants, points)) - measured

    def miss(constants: AttentionConstants) -> float:
        return float(np.hypot(errors(constants), SCALE).mean())

    fitted = [
        fit_constants(partial(AttentionConstants, generation=float(n)), priors, errors, scale=SCALE)
        for n, priors in ((2, PRIORS), (3, FLASH_3_PRIORS))
    ]
    return min(fitted, key=miss)


#: Of an element that FlashAttention's kernels multiply.
MOST_BITS = 16


def assumed(device: Device, constants: AttentionConstants) -> AttentionConstants:
    """What ``device`` is taken to have without a calibration, of ``constants`` that others have: on Hopper
    the third generation with the shares that follow from published times, the rest as it is."""
    if constants.generation >= HOPPER_GENERATION or not any(chip in device.title for chip in HOPPER):
        return constants
    own = {name: FLASH_3_PRIORS[name].usual for name in ("matrix", "block_us")}
    return replace(constants, generation=HOPPER_GENERATION, **own)


def kernel_time(device: Device, constants: AttentionConstants, kernel: Kernel) -> Needed | None:
    """The time of a trace's attention. Rotating and appending keys, where they are merged into it, take none.
    None for a kernel that does not say how its heads are cut, and for one that multiplies in more than 16
    bits, which FlashAttention doesn't: its work alone says what it takes, as of naive attention.

    Raises InputError if the device cannot compute in the kernel's dtype.
    """
    from ridgeline.predict.gpu.kernels import needed

    if not kernel.sequences or not all(work.heads for work in kernel.sequences):
        return None
    if get_format(kernel.compute).bits > MOST_BITS:
        return None
    found = attend(device, constants, kernel.sequences, kernel.compute)
    return needed(found.seconds, found.needs)


KIND = Kind(
    name="attention",
    numbers=("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "heads", "kv_heads", "head_dim"),
    constants=AttentionConstants,
    seconds=seconds,
    fit=fit,
    share=20,
    zero=frozenset({"prefill_chunk", "kv_prefill", "n_decode", "kv_decode"}),
    defaults={"heads": 32, "kv_heads": 8, "head_dim": 128},
    kernel=kernel_time,
    roofline=roofline,
    assumed=assumed,
)
