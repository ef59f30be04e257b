"""Time of attention on a GPU, computed as FlashAttention-2 does over a paged cache (Dao 2023).

A thread block takes a tile of query rows of one head and meets the keys that they see, a tile of them at a
time; each multiprocessor runs one block after another. The grid runs tile by tile, sequence by sequence,
head by head, all sequences of a step in one launch. From that follow, without a fitted figure:

- whole tiles are paid for, and whole waves of blocks: a lone decode row costs a head a tile of rows;
- a step that only decodes goes another way: the query heads that share keys make the rows of one tile, and a
  sequence's keys are split over more blocks while multiprocessors would idle, to be combined after;
- in a mixed step heads that share keys read them at the same time only while so many blocks run at once, and
  later from the L2 cache only if one head's keys of the whole step fit in it;
- a block that starts late ends late: the step waits for the longest sequence's last head.

Fitted are the share of the rates that is reached, and what a launch, a block, and an empty block cost. One
constant describes what was measured and has no such reason: a step that only decodes takes longer than its
parts by up to ``stall_seconds``, the more sequences it has, but no longer with their length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy import ndarray

from ridgeline.hardware.device import Device
from ridgeline.ops.trace import SequenceWork
from ridgeline.predict.gpu.thread_blocks import (
    BLOCKS_A_UNIT,
    TILE_ROWS,
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


@dataclass(frozen=True)
class Attention:
    """Constants of the model. The generic ones are the RTX 4090's, fitted to 20 points of LLMServingSim's
    profiles (KAIST CASYS): no other accelerator's attention was at hand.

    Attributes:
        launch_seconds: a launch and the first block's start.
        block_seconds: what a block costs beside its tiles.
        empty_seconds: a block of the grid that finds no rows to do, in a step of unlike sequences.
        matrix_efficiency: share of the matrix, vector and exponential rates that a tile reaches.
        bandwidth_efficiency: share of the memory's bandwidth that a large read reaches.
        regroup_seconds: bringing the query heads that share keys together and their outputs back.
        combine_seconds: merging the splits.
        stall_seconds: what a step that only decodes waits beside, with many sequences and much to read.
    """

    launch_seconds: float = 4.8e-6
    block_seconds: float = 1.2e-6
    empty_seconds: float = 0.37e-6
    matrix_efficiency: float = 0.87
    bandwidth_efficiency: float = 0.96
    regroup_seconds: float = 3.8e-6
    combine_seconds: float = 2.8e-6
    stall_seconds: float = 38e-6


@dataclass(frozen=True)
class AttentionTime:
    """``seconds`` of a kernel, and how long each resource is needed by itself: matrix, vector, exp, memory
    and launch (with what does not grow with the work)."""

    seconds: ndarray
    needs: dict[str, ndarray]


def attend(
    device: Device, constants: Attention, sequences: Sequence[SequenceWork], dtype: str
) -> AttentionTime:
    """The time of one layer's attention over all ``sequences`` of a step, multiplied in ``dtype``.

    Numbers of the sequences may be arrays; groups with a ``count`` of 0 take no time.
    """
    heads, kv_heads, head_dim = (
        np.asarray(getattr(sequences[0], name), float) for name in ("heads", "kv_heads", "head_dim")
    )
    counts = [np.asarray(s.count, float) for s in sequences]
    shared, units = heads / kv_heads, device.units
    decodes = [np.less_equal(s.rows, 1) | (n == 0) for s, n in zip(sequences, counts, strict=True)]
    grouped = reduce(np.logical_and, decodes) & (shared > 1)
    grid_heads = np.where(grouped, kv_heads, heads)
    key_tile = key_tile_of(head_dim)
    rates = _rates(device, constants, head_dim, key_tile, dtype)

    groups = [blocks_of(s, grid_heads, key_tile) for s in sequences]
    longest = reduce(np.maximum, (g.last for g in groups))
    wanted = splits_for(sum(g.blocks for g in groups), longest, BLOCKS_A_UNIT * units)
    splits = np.where(grouped, wanted, 1)
    groups = [split(g, splits) for g in groups]
    rows = reduce(np.maximum, (g.row_tiles for g in groups))
    empty = sum((rows - g.row_tiles) * g.sequences for g in groups) * grid_heads * constants.empty_seconds
    work = empty + sum(g.blocks * rates.block(g.tiles) for g in groups)
    ends = ends_at(groups, grid_heads, work, rates)

    moved = sum(n * _kv_bytes(s, dtype) for n, s in zip(counts, sequences, strict=True)) / kv_heads
    reading = moved / (device.bandwidth * constants.bandwidth_efficiency)  # one kv head's keys, once
    blocks = sum(g.row_tiles * g.sequences for g in groups)  # of one head
    passes = np.where(grouped, 1, np.clip(shared * blocks / units, 1, shared))
    missed = np.clip(2 * (moved / _l2(device) - 1), 0, 1)
    a_pass = work / units / kv_heads / passes
    busy = kv_heads * (_slower(a_pass, reading) + (passes - 1) * _slower(a_pass, reading * missed))
    once = reading * kv_heads
    decoding = _slower(ends, once) + _stall(constants.stall_seconds, once, sum(counts) * kv_heads / units)

    copied = 4 * sum(counts) * heads * head_dim * COPIED_BYTES / device.bandwidth
    regroup = np.where(grouped & (blocks > 1), constants.regroup_seconds + copied, 0)
    fixed = constants.launch_seconds + regroup + np.where(splits > 1, constants.combine_seconds, 0)
    computed = sum(g.blocks * g.tiles for g in groups) / units
    needs = {name: computed * seconds for name, seconds in rates.parts.items()}
    needs["memory"] = once * (1 + (passes - 1) * missed)
    needs["launch"] = fixed
    return AttentionTime(fixed + np.where(grouped, decoding, busy + ends - work / units), needs)


def _rates(device: Device, constants: Attention, head_dim: ndarray, key_tile: ndarray, dtype: str) -> Rates:
    scores = TILE_ROWS * key_tile / constants.matrix_efficiency * device.units
    parts = {
        "matrix": 4 * scores * head_dim / device.matrix_rate(dtype),
        "vector": SOFTMAX_OPERATIONS * scores / device.vector_rate("fp32"),
        "exp": scores / device.exp_rate,
    }
    return Rates(parts, constants.block_seconds, device.units)


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
