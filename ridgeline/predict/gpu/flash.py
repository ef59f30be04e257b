"""Time of attention on a GPU, computed as FlashAttention does over a paged cache: its second generation (Dao
2023), or its third (Shah et al. 2024), which is for Hopper. A calibration takes the one that fits better;
without one Hopper is predicted with the third, as vLLM runs it there, and every other GPU with the second.

A thread block takes a tile of query rows of one head and meets the keys that they see, a tile of them at a
time; each multiprocessor runs one block after another. The grid runs tile by tile, sequence by sequence,
head by head, all sequences of a step in one launch. From that follow:

- whole tiles are paid for, and whole waves of blocks: a lone decode row costs a head a tile of rows;
- a step that only decodes goes another way: the query heads that share keys make the rows of one tile, and a
  sequence's keys are split over more blocks while multiprocessors would idle, to be combined after;
- in a mixed step heads that share keys read them at the same time only while so many blocks run at once, and
  later from the L2 cache only if one head's keys of the whole step fit in it;
- the third generation packs the heads that share keys and splits in every step, launches no block without
  work, and multiplies without the warps' help, so that it reaches more of the matrix rate;
- a block that starts late ends late: the step waits for the longest sequence's last head.

How much of the softmax no products hide is set so that published times come out (``FLASH_2``, ``FLASH_3``),
and how sharply computing and reading overlap is assumed. Fitted are the share
of the rates that is reached, and what a launch, a block, and an empty block cost. One
constant describes what was measured and has no such reason: a step that only decodes takes longer than its
parts by up to ``stall_us``, the more sequences it has, but no longer with their length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy import ndarray

from ridgeline.hardware.device import Device
from ridgeline.ops.kernel import SequenceWork
from ridgeline.predict.gpu.fitting import Prior
from ridgeline.predict.gpu.thread_blocks import (
    FLASH_2,
    FLASH_3,
    Design,
    Rates,
    blocks_of,
    ends_at,
    key_tile_of,
    split,
    splits_for,
)

#: Vector operations a score in the softmax between the products: scale, maximum, subtract, sum, convert.
SOFTMAX_OPERATIONS = 5
#: How sharply the slower of computing and reading takes over (the p of a p-norm).
OVERLAP = 6
#: Bytes of an element of queries and outputs.
COPIED_BYTES = 2
MICRO = 1e-6


#: What the constants usually are: the RTX 4090's, fitted to 20 points of LLMServingSim's profiles (KAIST
#: CASYS), because no other accelerator's attention was at hand.
PRIORS: Mapping[str, Prior] = {
    "launch_us": Prior(4.8, 0.5),
    "block_us": Prior(1.2, 0.5),
    "empty_us": Prior(0.37, 0.5),
    "matrix": Prior(0.86, 0.5, is_share=True),
    "memory": Prior(0.96, 0.5, is_share=True),
    "regroup_us": Prior(3.8, 0.5),
    "combine_us": Prior(2.8, 0.5),
    "stall_us": Prior(38.0, 0.5),
}
#: With these an H100 is within 4 % on average of the 30 times published for it (Shah et al. 2024, figure 5).
FLASH_3_PRIORS: Mapping[str, Prior] = {
    **PRIORS,
    "matrix": Prior(0.95, 0.5, is_share=True),
    "block_us": Prior(1.5, 0.5),
}
DESIGNS: Mapping[int, Design] = {2: FLASH_2, 3: FLASH_3}


@dataclass(frozen=True)
class AttentionConstants:
    """``launch_us``: a launch and the first block's start. ``block_us``: what a block costs beside its tiles.
    ``empty_us``: a block of the grid that finds no rows to do, in a step of unlike sequences. ``matrix``:
    share of the matrix, vector and exponential rates that a tile reaches. ``memory``: share of the bandwidth.
    ``regroup_us``: bringing the query heads that share keys together, and their outputs back. ``combine_us``:
    merging splits. ``stall_us``: what a step that only decodes waits beside, with many sequences and much to
    read. ``generation``: of FlashAttention, 2 or 3."""

    launch_us: float = PRIORS["launch_us"].usual
    block_us: float = PRIORS["block_us"].usual
    empty_us: float = PRIORS["empty_us"].usual
    matrix: float = PRIORS["matrix"].usual
    memory: float = PRIORS["memory"].usual
    regroup_us: float = PRIORS["regroup_us"].usual
    combine_us: float = PRIORS["combine_us"].usual
    stall_us: float = PRIORS["stall_us"].usual
    generation: float = 2.0

    @property
    def design(self) -> Design:
        """What the kernel of that generation does; of constants that are means, the nearer one."""
        return DESIGNS[min(max(round(self.generation), min(DESIGNS)), max(DESIGNS))]


@dataclass(frozen=True)
class AttentionTime:
    """``seconds`` of a kernel, and how long each resource is needed by itself: matrix, vector, exp, memory
    and launch (with what does not grow with the work)."""

    seconds: ndarray
    needs: dict[str, ndarray]


def attend(
    device: Device, constants: AttentionConstants, sequences: Sequence[SequenceWork], dtype: str
) -> AttentionTime:
    """The time of one layer's attention over all ``sequences`` of a step, multiplied in ``dtype``.

    Numbers of the sequences may be arrays; groups with a ``count`` of 0 take no time.
    """
    heads, kv_heads, head_dim = (
        np.asarray(getattr(sequences[0], name), float) for name in ("heads", "kv_heads", "head_dim")
    )
    counts = [np.asarray(s.count, float) for s in sequences]
    shared, units, design = heads / kv_heads, device.units, constants.design
    decodes = [np.less_equal(s.rows, 1) | (n == 0) for s, n in zip(sequences, counts, strict=True)]
    grouped = design.always_groups | (reduce(np.logical_and, decodes) & (shared > 1))
    grid_heads = np.where(grouped, kv_heads, heads)
    tile_rows = design.tile_rows / np.where(grouped, shared, 1)
    key_tile = key_tile_of(head_dim)
    rates = _rates(device, constants, head_dim, key_tile, dtype)

    groups = [blocks_of(s, grid_heads, tile_rows, key_tile) for s in sequences]
    longest = reduce(np.maximum, (g.last for g in groups))
    wanted = splits_for(sum(g.blocks for g in groups), longest, design.blocks_a_unit * units)
    splits = np.where(grouped & (longest >= design.least_split), wanted, 1)
    groups = [split(g, splits) for g in groups]
    rows = reduce(np.maximum, (g.row_tiles for g in groups))
    idle = np.where(grouped, 0, sum((rows - g.row_tiles) * g.sequences for g in groups))
    empty = idle * grid_heads * constants.empty_us * MICRO
    work = empty + sum(g.blocks * rates.block(g.tiles) for g in groups)
    ends = ends_at(groups, grid_heads, work, rates)

    moved = sum(n * _kv_bytes(s, dtype) for n, s in zip(counts, sequences, strict=True)) / kv_heads
    reading = moved / (device.bandwidth * constants.memory)  # one kv head's keys, once
    blocks = sum(g.row_tiles * g.sequences for g in groups)  # of one head
    passes = np.where(grouped, 1, np.clip(shared * blocks / units, 1, shared))
    missed = np.clip(2 * (moved / _l2(device) - 1), 0, 1)
    a_pass = work / units / kv_heads / passes
    busy = kv_heads * (_slower(a_pass, reading) + (passes - 1) * _slower(a_pass, reading * missed))
    once = reading * kv_heads
    decoding = _slower(ends, once) + _stall(constants.stall_us * MICRO, once, sum(counts) * kv_heads / units)

    copied = 4 * sum(counts) * heads * head_dim * COPIED_BYTES / device.bandwidth
    apart = grouped & (not design.always_groups)
    regroup = np.where(apart & (blocks > 1), constants.regroup_us * MICRO + copied, 0)
    fixed = constants.launch_us * MICRO + regroup + np.where(splits > 1, constants.combine_us * MICRO, 0)
    computed = sum(g.blocks * g.tiles for g in groups) / units
    needs = {name: computed * seconds for name, seconds in rates.parts.items()}
    needs["memory"] = once * (1 + (passes - 1) * missed)
    needs["launch"] = fixed
    return AttentionTime(fixed + np.where(grouped, decoding, busy + ends - work / units), needs)


def _rates(
    device: Device, constants: AttentionConstants, head_dim: ndarray, key_tile: ndarray, dtype: str
) -> Rates:
    design = constants.design
    scores = design.tile_rows * key_tile / constants.matrix * device.units
    parts = {
        "matrix": 4 * scores * head_dim / device.matrix_rate(dtype),
        "vector": SOFTMAX_OPERATIONS * scores / device.vector_rate("fp32"),
        "exp": scores / device.exp_rate,
    }
    softmax = parts["vector"] + parts["exp"]
    tile = np.maximum(parts["matrix"] + design.exposed * softmax, softmax)
    return Rates(parts, tile, constants.block_us * MICRO, device.units)


def _stall(most: float, reading: ndarray, blocks_a_unit: ndarray) -> ndarray:
    """What a step that only decodes waits, found by looking: it grows with both and ends at ``most``."""
    return most * blocks_a_unit / (blocks_a_unit + 1) * reading / (reading + most)


def _kv_bytes(work: SequenceWork, dtype: str) -> ndarray:
    """Bytes of keys and values that a sequence's rows see: from the cache, or handed over in ``dtype``."""
    from ridgeline.ops.formats import get_format

    fresh = get_format(dtype).nbytes((2 * work.kv_heads * work.head_dim * work.keys,))
    return np.where(np.asarray(work.cache_bytes) > 0, work.cache_bytes, fresh)


def _l2(device: Device) -> float:
    """Bytes of the last cache before main memory."""
    if device.on_chip.cache:
        return device.on_chip.cache
    return device.levels[-2].capacity if len(device.levels) > 1 else 1.0


def _slower(a: ndarray, b: ndarray) -> ndarray:
    return (a**OVERLAP + b**OVERLAP) ** (1 / OVERLAP)
