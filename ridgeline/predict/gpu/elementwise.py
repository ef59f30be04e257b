"""Time of a kernel on a GPU that works element by element, or row by row, over [rows, width].

It moves its operands through memory, or through the L2 cache where they fit there; its instructions issue
only so many bytes a clock on each SM; and a row takes time for itself, because one block of threads walks
it. These overlap in part. What a kernel's code does (:class:`Pattern`) is told apart from what the GPU
does with it (:class:`ElementwiseConstants`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ridgeline.hardware.device import Device
from ridgeline.predict.gpu.fitting import Prior, fit_constants
from ridgeline.predict.gpu.gemm import USUAL_CLOCK_HZ
from ridgeline.predict.gpu.kinds import Kind, Points


@dataclass(frozen=True)
class Pattern:
    """What one kernel's code does. ``passes`` over [rows, width] that it makes, read or written, of which
    ``distinct`` touch different memory; ``start`` against the usual kernel; ``row``, clocks an element of
    a row whose latency nothing hides; ``work``, instructions a byte against a scalar kernel's. Threads
    come in blocks of ``block``, of which the last may idle. ``kept``: the share of the L2 that still holds
    operands when the kernel begins, where others ran before it; None where it was measured by itself."""

    passes: int
    distinct: int
    start: float
    row: float
    work: float
    block: int = 1
    kept: float | None = None


#: Of newer vLLM (0.19 and such): 16 bytes an instruction, a block of threads for each row, so an SM has whole
#: rows to do; of PyTorch's lookup and vLLM's greedy sampler, which turns 16-bit logits into float32 and
#: reads them again, in a dozen small kernels. ``rms_norm`` is the mean of a layer's two, of which the first
#: has nothing to add in a layer measured alone.
VECTORISED: Mapping[str, Pattern] = {
    "add": Pattern(3, 3, 1.0, 0.0, 0.5, kept=0.2),
    "rms_norm": Pattern(3, 2, 0.9, 0.0, 0.8, kept=0.14),
    "add_rms_norm": Pattern(5, 2, 1.05, 0.0, 0.58, kept=0.44),
    "rope": Pattern(2, 1, 1.05, 0.0, 0.72, kept=0.1),
    "silu_mul": Pattern(3, 3, 0.9, 0.0, 0.5, kept=0.23),
    "embedding": Pattern(2, 2, 1.9, 0.0, 0.1, kept=0.5),
    "sampler": Pattern(5, 3, 17.5, 0.0, 0.0, kept=0.5),
}
#: Of PyTorch's vectorised addition and older vLLM's scalar kernels, whose norm reads its input twice, each
#: measured by itself; others are as above.
SCALAR: Mapping[str, Pattern] = {
    **VECTORISED,
    "add": Pattern(3, 3, 1.0, 0.1, 0.35),
    "rms_norm": Pattern(3, 2, 0.5, 1.3, 1.0),
    "rope": Pattern(2, 2, 1.2, 0.6, 1.1),
    "silu_mul": Pattern(3, 3, 0.8, 0.8, 1.0, block=1024),
}
#: By generation of the library.
GENERATIONS: Mapping[int, Mapping[str, Pattern]] = {1: SCALAR, 2: VECTORISED}
OPS = tuple(VECTORISED)
#: How reads and rows overlap with memory: the exponent of the norm that joins them.
OVERLAP = 2.0
#: By itself a kernel finds all in the L2 up to the first share of its size, and nothing beyond the second.
CACHE_FILL = (0.75, 1.25)
#: Times are rounded to whole microseconds, so an error counts against this and a share of the time.
ROUNDING_SECONDS, TOLERANCE = 0.6e-6, 0.1

PRIORS: Mapping[str, Prior] = {
    "start_us": Prior(1.3, 0.6),
    "memory": Prior(1.0, 0.2),
    "issue": Prior(8.0, 0.4),
    "cache": Prior(2.0, 0.4),
    "row": Prior(1.0, 0.6),
}
#: Vectorised kernels show more of what the cache gives; no row waits for itself.
VECTORISED_PRIORS: Mapping[str, Prior] = {
    "start_us": Prior(1.5, 0.4),
    "memory": Prior(1.0, 0.1),
    "issue": Prior(9.0, 0.3),
    "cache": Prior(4.0, 0.3),
}


@dataclass(frozen=True)
class ElementwiseConstants:
    """``start_us``: from the start of a kernel to its end with nothing to do. ``memory``: share of the
    bandwidth. ``issue``: bytes a clock that an SM's instructions move in a scalar kernel. ``cache``: how
    often faster than memory the L2 serves. ``row``: a row's latency against the pattern's. ``generation``:
    of the library's kernels, 1 (scalar) or 2 (vectorised)."""

    start_us: float = PRIORS["start_us"].usual
    memory: float = PRIORS["memory"].usual
    issue: float = PRIORS["issue"].usual
    cache: float = PRIORS["cache"].usual
    row: float = PRIORS["row"].usual
    generation: float = 1.0

    @property
    def patterns(self) -> Mapping[str, Pattern]:
        """What the kernels of that generation do; of constants that are means, the nearer one."""
        return GENERATIONS[min(max(round(self.generation), min(GENERATIONS)), max(GENERATIONS))]


@dataclass(frozen=True)
class ElementwiseTime:
    """Seconds of a kernel, and what its start, its instructions and memory need by themselves."""

    seconds: Any
    launch: Any
    vector: Any
    memory: Any


def elementwise_time(
    device: Device,
    constants: ElementwiseConstants,
    rows: Any,
    width: Any,
    pattern: Pattern,
    *,
    nbytes: Any = None,
    at_least: Any = 0.0,
) -> ElementwiseTime:
    """The time over [rows, width], either of which may be an array. The kernel moves ``nbytes``, else 2
    an element and pass; its arithmetic takes ``at_least`` so many seconds, as units that a pattern does not
    know may need."""
    touched = 2.0 * pattern.distinct * rows * width if nbytes is None else nbytes
    moved = touched * (pattern.passes / pattern.distinct)
    clock = device.clock_hz or USUAL_CLOCK_HZ
    if pattern.kept is None:
        padding = np.ceil(width / pattern.block) * pattern.block / width
        missed = moved * (1 - _found(touched, device.on_chip.cache))
    else:
        padding = np.ceil(rows / device.units) * device.units / rows
        missed = touched * (
            1 - np.minimum(1.0, pattern.kept * (device.on_chip.cache or 0) / np.maximum(touched, 1))
        )
    rate = device.bandwidth * constants.memory
    memory = missed / rate + (moved - missed) / (rate * constants.cache)
    issue = moved * padding * pattern.work / (constants.issue * device.units * clock)
    row = constants.row * pattern.row * width / clock
    work = (memory**OVERLAP + np.maximum(issue, at_least) ** OVERLAP + row**OVERLAP) ** (1 / OVERLAP)
    start = constants.start_us * 1e-6 * pattern.start
    return ElementwiseTime(start + work, start + row, issue, memory)


def _found(touched: Any, cache: int | None) -> Any:
    """The share of what a kernel touches that an L2 of so many bytes holds, if it runs by itself."""
    if not cache:
        return 0.0
    least, most = CACHE_FILL
    return np.clip((most - touched / cache) / (most - least), 0.0, 1.0)


def seconds(
    device: Device, constants: ElementwiseConstants, rows: Any, width: Any, pattern: str
) -> np.ndarray:
    """Seconds of one of ``OPS`` over [rows, width] of 16-bit elements."""
    return elementwise_time(device, constants, rows, width, constants.patterns[pattern]).seconds


def fit(device: Device, points: Points) -> ElementwiseConstants:
    """The constants of these kernels on ``device``, of the generation that explains them best."""

    def errors(constants: ElementwiseConstants) -> np.ndarray:
        found = _of_points(device, constants, points)
        return (found - points.seconds) / np.hypot(ROUNDING_SECONDS, TOLERANCE * points.seconds)

    def miss(constants: ElementwiseConstants) -> float:
        return float(np.hypot(errors(constants), 1).mean())

    fitted = [
        fit_constants(partial(ElementwiseConstants, generation=float(n)), priors, errors, scale=1.0)
        for n, priors in ((1, PRIORS), (2, VECTORISED_PRIORS))
    ]
    return min(fitted, key=miss)


def _of_points(device: Device, constants: ElementwiseConstants, points: Points) -> np.ndarray:
    found = np.empty(len(points))
    for name in np.unique(points["op"]):
        mine = points["op"] == name
        found[mine] = seconds(device, constants, points["rows"][mine], points["width"][mine], str(name))
    return found


def _roofline(device: Device, points: Points) -> np.ndarray:
    passes = np.array([SCALAR[str(name)].distinct for name in points["op"]])
    return device.launch_seconds + 2 * passes * points["rows"] * points["width"] / device.bandwidth


KIND = Kind(
    name="elementwise",
    numbers=("rows", "width"),
    texts={"op": OPS},
    constants=ElementwiseConstants,
    seconds=_of_points,
    fit=fit,
    share=12,
    roofline=_roofline,
)
