"""Time of a kernel on a GPU that works element by element, or row by row, over [rows, width].

It moves its operands through memory, or through the L2 cache where they fit there; its instructions issue
only so many bytes a clock on each SM; and a row takes time for itself, because one block of threads walks
it. These overlap in part. What a kernel's code does (:class:`Pattern`) is told apart from what the GPU
does with it (:class:`ElementwiseConstants`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    come in blocks of ``block``, of which the last may idle."""

    passes: int
    distinct: int
    start: float
    row: float
    work: float
    block: int = 1


#: As PyTorch's vectorised addition and vLLM's scalar kernels have it, whose norm reads its input twice.
PATTERNS: Mapping[str, Pattern] = {
    "add": Pattern(3, 3, 1.0, 0.1, 0.35),
    "rms_norm": Pattern(3, 2, 0.5, 1.3, 1.0),
    "rope": Pattern(2, 2, 1.2, 0.6, 1.1),
    "silu_mul": Pattern(3, 3, 0.8, 0.8, 1.0, block=1024),
}
#: How reads and rows overlap with memory: the exponent of the norm that joins them.
OVERLAP = 2.0
#: The L2 serves all while the operands fill it up to the first share, and nothing beyond the second.
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


@dataclass(frozen=True)
class ElementwiseConstants:
    """``start_us``: from the start of a kernel to its end with nothing to do. ``memory``: share of the
    bandwidth. ``issue``: bytes a clock that an SM's instructions move in a scalar kernel. ``cache``: how
    often faster than memory the L2 serves. ``row``: a row's latency against the pattern's."""

    start_us: float = PRIORS["start_us"].usual
    memory: float = PRIORS["memory"].usual
    issue: float = PRIORS["issue"].usual
    cache: float = PRIORS["cache"].usual
    row: float = PRIORS["row"].usual


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
    moved = 2.0 * pattern.distinct * rows * width if nbytes is None else nbytes
    issued = moved * (pattern.passes / pattern.distinct)
    clock = device.clock_hz or USUAL_CLOCK_HZ
    padding = np.ceil(width / pattern.block) * pattern.block / width
    cached = 0.0
    if device.on_chip.cache:
        least, most = CACHE_FILL
        cached = np.clip((most - moved / device.on_chip.cache) / (most - least), 0.0, 1.0)
    memory = issued / (device.bandwidth * constants.memory) * (1 - cached + cached / constants.cache)
    issue = issued * padding * pattern.work / (constants.issue * device.units * clock)
    row = constants.row * pattern.row * width / clock
    work = (memory**OVERLAP + np.maximum(issue, at_least) ** OVERLAP + row**OVERLAP) ** (1 / OVERLAP)
    start = constants.start_us * 1e-6 * pattern.start
    return ElementwiseTime(start + work, start + row, issue, memory)


def seconds(
    device: Device, constants: ElementwiseConstants, rows: Any, width: Any, pattern: str
) -> np.ndarray:
    """Seconds of one of ``PATTERNS`` over [rows, width] of 16-bit elements."""
    return elementwise_time(device, constants, rows, width, PATTERNS[pattern]).seconds


def fit(device: Device, points: Points) -> ElementwiseConstants:
    """The constants of these kernels on ``device``."""

    def errors(constants: ElementwiseConstants) -> np.ndarray:
        found = _of_points(device, constants, points)
        return (found - points.seconds) / np.hypot(ROUNDING_SECONDS, TOLERANCE * points.seconds)

    return fit_constants(ElementwiseConstants, PRIORS, errors, scale=1.0)


def _of_points(device: Device, constants: ElementwiseConstants, points: Points) -> np.ndarray:
    found = np.empty(len(points))
    for name in np.unique(points["op"]):
        mine = points["op"] == name
        found[mine] = seconds(device, constants, points["rows"][mine], points["width"][mine], str(name))
    return found


def _roofline(device: Device, points: Points) -> np.ndarray:
    passes = np.array([PATTERNS[str(name)].distinct for name in points["op"]])
    return device.launch_seconds + 2 * passes * points["rows"] * points["width"] / device.bandwidth


KIND = Kind(
    name="elementwise",
    numbers=("rows", "width"),
    texts={"op": tuple(PATTERNS)},
    constants=ElementwiseConstants,
    seconds=_of_points,
    fit=fit,
    share=12,
    roofline=_roofline,
)
