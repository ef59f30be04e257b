"""Thread blocks of attention on a GPU's multiprocessors: how many there are, how long each takes, and when
the last one ends.

The grid runs tile by tile, sequence by sequence, head by head, and each multiprocessor takes the next block
when it is done with the one before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ridgeline.ops.kernel import SequenceWork

#: A sequence's keys are split at most so often, and not at all once the blocks fill this share of the places
#: for them; the fewest splits are taken that fill this share of what the best would.
MOST_SPLITS, FULL_ENOUGH, GOOD_ENOUGH = 128, 0.8, 0.85


@dataclass(frozen=True)
class Design:
    """How a kernel cuts attention up. ``tile_rows`` are the query rows of a tile. ``always_groups``: query
    heads that share keys make the rows of one tile in every step, not only where all sequences decode, and
    such tiles' keys may be split. That fills ``blocks_a_unit`` on each multiprocessor, for at least
    ``least_split`` tiles of keys. ``exposed`` is the share of the softmax that no products of other warps
    hide."""

    tile_rows: int
    always_groups: bool
    blocks_a_unit: int
    least_split: int
    exposed: float


#: FlashAttention's kernels for paged caches, second and third generation. Half of the second's softmax is
#: exposed: then an A100's long prompts come out as published (Dao 2023: 50 to 73 % of the matrix rate) with
#: the share of the rates that an RTX 4090 reaches. Of the third's so much is that an H100's come out as
#: published for heads of 64, 128 and 256 (Shah et al. 2024, figure 5) with one share of the rates.
FLASH_2 = Design(64, always_groups=False, blocks_a_unit=2, least_split=2, exposed=0.5)
FLASH_3 = Design(128, always_groups=True, blocks_a_unit=1, least_split=5, exposed=0.6)


@dataclass(frozen=True)
class Group:
    """Blocks of alike sequences: how many there are (``blocks``), of which sequences, with how many tiles
    of keys on average (``tiles``), in the longest (``last``) and in the shortest (``first``)."""

    sequences: ndarray
    row_tiles: ndarray
    blocks: ndarray
    tiles: ndarray
    first: ndarray
    last: ndarray


@dataclass(frozen=True)
class Rates:
    """Seconds of one multiprocessor: what a tile of scores needs of each resource (``parts``), how long it
    takes, and what a block takes beside its tiles (``start``)."""

    parts: dict[str, ndarray]
    tile: ndarray
    start: float
    units: int

    def block(self, tiles: ndarray) -> ndarray:
        return self.start + tiles * self.tile

    def square(self, g: Group) -> ndarray:
        """Mean square of the blocks' seconds, as the tiles grow from the first to the last."""
        tiles = (g.first**2 + g.first * g.last + g.last**2) / 3
        return self.start**2 + 2 * self.start * g.tiles * self.tile + tiles * self.tile**2


def key_tile_of(head_dim: ndarray) -> ndarray:
    """Keys of a tile, which are fewer the larger a head is."""
    return np.where(head_dim <= 64, 256.0, np.where(head_dim <= 128, 128, 64))


def blocks_of(work: SequenceWork, heads: ndarray, tile_rows: ndarray, key_tile: ndarray) -> Group:
    """The blocks of sequences in which the rows see ``work.keys`` keys at most, and the mean that follows
    from the FLOPs. A tile has ``tile_rows`` rows of each of the ``heads`` that the grid has."""
    rows, count, keys = (np.asarray(n, float) for n in (work.rows, work.count, work.keys))
    there = count > 0
    row_tiles = np.where(there, np.ceil(rows / tile_rows), 0)
    mean = work.flops / (4 * work.heads * work.head_dim * np.maximum(rows, 1))
    seen = np.minimum(mean + (np.minimum(rows, tile_rows) - 1) / 2, keys)  # by a whole tile of rows
    last = np.where(there, np.maximum(np.ceil(keys / key_tile), 1), 0)
    up = np.maximum(1 - tile_rows / key_tile, 0) / 2  # rounding up, as tiles of rows end at any of theirs
    tiles = np.where(row_tiles > 1, np.clip(seen / key_tile + up, np.minimum(last, 1), last), last)
    first = np.where(row_tiles > 1, np.clip(2 * tiles - last, np.minimum(last, 1), last), last)
    return Group(count, row_tiles, count * row_tiles * heads, tiles, first, last)


def split(group: Group, splits: ndarray) -> Group:
    """The same keys in so many blocks each."""
    first, last, tiles = (
        np.where(splits > 1, np.ceil(n / splits), n) for n in (group.first, group.last, group.tiles)
    )
    return Group(group.sequences, group.row_tiles, group.blocks * splits, tiles, first, last)


def splits_for(blocks: ndarray, tiles: ndarray, slots: int) -> ndarray:
    """Into how many the keys are split so that ``blocks`` fill the ``slots`` well, by the kernel's rule."""
    blocks, tiles = np.broadcast_arrays(np.asarray(blocks, float), tiles)
    n = np.arange(1, MOST_SPLITS + 1).reshape(-1, *(1,) * blocks.ndim)
    each = np.ceil(tiles / n)
    differs = np.concatenate([np.ones_like(each[:1], bool), each[1:] != each[:-1]])
    waves = np.maximum(blocks, 1) * n / slots
    filled = np.where(differs & (n <= np.maximum(np.minimum(tiles, slots), 1)), waves / np.ceil(waves), 0)
    enough = np.argmax((filled > 0) & (filled >= GOOD_ENOUGH * filled.max(0)), 0) + 1
    return np.where(blocks >= FULL_ENOUGH * slots, 1, enough)


def ends_at(groups: list[Group], heads: ndarray, work: ndarray, rates: Rates) -> ndarray:
    """When the last block ends, if they are handed out in turn to multiprocessors that do nothing else."""
    at_once = sum(g.blocks for g in groups) <= rates.units
    ends = work / rates.units
    for g in groups:
        begins = np.where(at_once, 0, _last_begins(g, work, heads, rates))
        ends = np.maximum(ends, np.where(g.blocks > 0, begins + rates.block(g.last), 0))
    return ends


def _last_begins(g: Group, work: ndarray, heads: ndarray, rates: Rates) -> ndarray:
    """When the last block of a group begins, with ``work`` seconds to do in all groups.

    Few blocks come evenly among the others' w seconds of work. While none has ended, those that run leave the
    rest of the machine to w: when the share x of it is done, blocks * x run, so the last begins after the
    integral of w / (units - blocks * x). Otherwise a group that has the work nearly to itself runs in waves,
    if its blocks are alike; and if they are not, or come among others, the last begins when all is done but
    what is under way, which is half its mean square over its mean for each unit that it runs on.
    """
    mean, units = rates.block(g.tiles), rates.units
    own = g.blocks * mean
    others = np.maximum(work - own, 0)
    share = own / np.maximum(work, 1e-30)
    run = g.blocks / units * (1 - 1 / (2 * heads))
    few = others / np.maximum(units * run, 1e-9) * -np.log(np.maximum(1 - run, 1 / (4 * units)))
    mixed = np.maximum(work / units - share * rates.square(g) / (2 * mean), 0)
    waves = np.maximum(np.ceil(g.blocks / units) - 1, 0) * mean + others / units
    alike = share * (1 - (g.last - g.first) / np.maximum(g.last, 1))
    some = np.where(few < mean, few, np.maximum(mixed, mean))
    return np.where(g.blocks <= units, some, alike * waves + (1 - alike) * mixed)
