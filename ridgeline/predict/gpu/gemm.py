"""Time of a matrix product [m, k] x [k, n] on a GPU.

The output is cut into tiles, each computed by one streaming multiprocessor (SM) in a loop over k; k too may
be split. Tiles that are more than the SMs run in waves, of which the last is rarely full. A tile's loop is
held up by the matrix units, and by what brings its operands to them: (rows + columns) a step of k for
rows x columns of work, so large tiles are efficient, and wasteful where the output does not fill them.
Meanwhile main memory moves operands and result once. Both overlap, not fully. The library is taken to choose
the split that is predicted fastest, and a tile that is near it: its own estimate is as rough as this one, so
the time is the mean over tiles, of which one that is longer by ``DOUBT`` counts 1/e.

After the tile and wave quantisation of NVIDIA's "Matrix Multiplication Background User's Guide".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ridgeline.hardware.device import Device
from ridgeline.predict.gpu.fitting import Prior, fit_constants
from ridgeline.predict.gpu.kinds import Kind, Points

#: Columns (of n) and rows (of m) of the tiles that libraries have.
TILES = ((256, 128), (128, 256), (128, 128), (256, 64), (128, 64), (64, 64), (128, 16))
#: Into how many parts k may be split; the parts are summed in float32 through memory.
SPLITS = (1, 2, 3, 4, 6, 8, 16)
#: Up to this size of a tile, two run on an SM at a time.
SHARING = 128 * 128
#: Steps of the loop over k come in blocks of this many.
K_BLOCK = 32
#: How much longer than the fastest, relatively, what the library chooses may well be.
DOUBT = 0.1
#: Taken where a datasheet gives no clock.
USUAL_CLOCK_HZ = 1.5e9

PRIORS: Mapping[str, Prior] = {
    "launch_us": Prior(3.5, 0.5),
    "matrix": Prior(0.95, 0.12),
    "memory": Prior(0.87, 0.1),
    "feed": Prior(170.0, 0.25),
    "tile_us": Prior(0.8, 0.5),
    "wave": Prior(0.25, 0.5, is_share=True),
    "overlap": Prior(2.4, 0.25),
}


@dataclass(frozen=True)
class GemmConstants:
    """``launch_us``: from the start of the kernel to the first work, and from the last to its end.
    ``matrix``: share of the matrix rate that the clock and the scheduling leave. ``memory``: share of the
    bandwidth. ``feed``: bytes a clock that reach the matrix units of an SM. ``tile_us``: filling and
    draining the pipeline of a tile. ``wave``: how much of a last wave's idle SMs is lost; below 1 where
    tiles share an SM or are cut further. ``overlap``: p of (compute^p + memory^p)^(1/p); the larger, the
    better both overlap."""

    launch_us: float = PRIORS["launch_us"].usual
    matrix: float = PRIORS["matrix"].usual
    memory: float = PRIORS["memory"].usual
    feed: float = PRIORS["feed"].usual
    tile_us: float = PRIORS["tile_us"].usual
    wave: float = PRIORS["wave"].usual
    overlap: float = PRIORS["overlap"].usual


@dataclass(frozen=True)
class GemmTime:
    """Seconds of a product, and what launch, matrix units and memory need of them by themselves."""

    seconds: Any
    launch: Any
    matrix: Any
    memory: Any


def gemm_time(
    device: Device,
    constants: GemmConstants,
    m: Any,
    n: Any,
    k: Any,
    *,
    dtype: str = "fp16",
    nbytes: Any = None,
    batch: Any = 1,
    element_bytes: float = 2.0,
) -> GemmTime:
    """The time of ``batch`` products of that shape in one kernel; shapes may be arrays that broadcast.

    Multiplied in ``dtype``, whose elements have ``element_bytes`` where they are fed to the matrix units.
    ``nbytes`` moves to and from main memory: operands and results once, in ``element_bytes``, unless given.

    Raises InputError if the device cannot compute in ``dtype``.
    """
    m, n, k, batch = (np.asarray(x, float) for x in (m, n, k, batch))
    one = (1,) * np.broadcast(m, n, k, batch, 0.0 if nbytes is None else nbytes).ndim
    columns, rows, split = (_AXES[i].reshape(-1, *one) for i in range(3))
    rate = device.matrix_rate(dtype) / device.units * constants.matrix  # of an SM
    bandwidth = device.bandwidth * constants.memory

    hunger = _hunger(device, constants, dtype, element_bytes)
    a_step = 2 * rows * columns / rate * (1 + hunger * (1 / rows + 1 / columns))
    steps = np.ceil(k / split / K_BLOCK) * K_BLOCK
    a_tile = steps * a_step + constants.tile_us * 1e-6
    tiles = np.ceil(n / columns) * np.ceil(m / rows) * split * batch / device.units  # of an SM
    shared = np.where(rows * columns <= SHARING, 2, 1)
    rounds = shared * np.ceil(tiles / shared)
    compute = (constants.wave * rounds + (1 - constants.wave) * np.maximum(tiles, 1)) * a_tile
    moved = element_bytes * batch * (m * n + n * k + m * k) if nbytes is None else nbytes
    partial = np.where(split > 1, 8 * split * batch * m * n, 0.0)  # float32, written and read
    memory = (moved + partial) / bandwidth
    work = (compute**constants.overlap + memory**constants.overlap) ** (1 / constants.overlap)
    best = np.argmin(work, 0, keepdims=True)
    compute, memory = (
        np.take_along_axis(np.broadcast_to(x, work.shape), best, 0)[0] for x in (compute, memory)
    )
    launch = constants.launch_us * 1e-6
    return GemmTime(launch + _likely(work), launch, compute, memory)


def _likely(work: np.ndarray) -> np.ndarray:
    """The time to expect of [tiles x splits, ...]: of each tile the best split, and of tiles those near the
    best one."""
    tiles = work.reshape(len(TILES), len(SPLITS), *work.shape[1:]).min(1)
    weight = np.exp((1 - tiles / tiles.min(0)) / DOUBT)
    return (weight * tiles).sum(0) / weight.sum(0)


def product_time(
    device: Device, constants: GemmConstants, flops: Any, *, nbytes: Any, dtype: str, element_bytes: float
) -> GemmTime:
    """The time of products of which only the operations and the bytes are known: in full tiles of the
    largest size, on all SMs. What it leaves out, :func:`gemm_time` has."""
    rows, columns = TILES[0]
    hunger = _hunger(device, constants, dtype, element_bytes)
    rate = device.matrix_rate(dtype) * constants.matrix / (1 + hunger * (1 / rows + 1 / columns))
    compute = constants.tile_us * 1e-6 + flops / rate
    memory = nbytes / (device.bandwidth * constants.memory)
    work = (compute**constants.overlap + memory**constants.overlap) ** (1 / constants.overlap)
    launch = constants.launch_us * 1e-6
    return GemmTime(launch + work, launch, compute, memory)


def _hunger(device: Device, constants: GemmConstants, dtype: str, element_bytes: float) -> float:
    """How much longer a tile of one row and no columns would wait for its operands than for the units."""
    flop_a_clock = device.matrix_rate(dtype) / device.units / (device.clock_hz or USUAL_CLOCK_HZ)
    return flop_a_clock / constants.feed * element_bytes / 2


_AXES = [np.array(axis, float) for axis in zip(*((*t, s) for t in TILES for s in SPLITS), strict=True)]


def seconds(
    device: Device, constants: GemmConstants, m: Any, n: Any, k: Any, format: str = "fp16"
) -> np.ndarray:
    """Seconds of [m, k] x [k, n] with operands and result in the 16-bit ``format``. See :func:`gemm_time`."""
    return gemm_time(device, constants, m, n, k, dtype=format).seconds


def fit(device: Device, points: Points) -> GemmConstants:
    """The constants of these products on ``device``."""
    measured = np.log(points.seconds)

    def errors(constants: GemmConstants) -> np.ndarray:
        return np.log(_of_points(device, constants, points)) - measured

    return fit_constants(GemmConstants, PRIORS, errors)


def _of_points(device: Device, constants: GemmConstants, points: Points) -> np.ndarray:
    return seconds(device, constants, points["m"], points["n"], points["k"])


def _roofline(device: Device, points: Points) -> np.ndarray:
    m, n, k = (points[name] for name in ("m", "n", "k"))
    compute, memory = (
        2 * m * n * k / device.matrix_rate("fp16"),
        2 * (m * n + n * k + m * k) / device.bandwidth,
    )
    return device.launch_seconds + np.maximum(compute, memory)


KIND = Kind(
    name="gemm",
    numbers=("m", "n", "k"),
    constants=GemmConstants,
    seconds=_of_points,
    fit=fit,
    share=40,
    roofline=_roofline,
)
