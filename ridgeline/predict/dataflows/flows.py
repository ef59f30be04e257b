"""Dataflows of attention as loop nests: what each moves, holds on the chip and launches.

Every nest works on one problem of :class:`AttentionShape` (a sequence and a key/value head) with
tiles of ``rows`` query rows and ``keys`` keys. ``buffers`` copies of whatever comes from or goes to
main memory are held on the chip (2: the next tile loads while this one computes); what is
accumulated there has one copy, in float32. The tests run each nest tile by tile and count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

from ridgeline.ops.kernel import Flops
from ridgeline.ops.online_softmax import merged, renormalised, rescaled
from ridgeline.predict.dataflows.shape import (
    STATE_BYTES,
    AttentionShape,
    Tiles,
    powers_to,
    tiles_of,
    visible_tiles,
)

#: The least tile in rows and keys that a matrix unit is fed with.
LEAST_TILE = 16


@dataclass(frozen=True)
class Launch:
    """One kernel of a dataflow: bytes that it reads and writes in main memory, its operations, the
    blocks that can run side by side, and the grid by which a GPU launches them, if it does."""

    name: str
    reads: float
    writes: float
    flops: Flops
    blocks: int
    grid: tuple[int, int, int] | None = None

    @property
    def bytes(self) -> float:
        return self.reads + self.writes


@dataclass(frozen=True)
class Dataflow(ABC):
    """A way to order and to tile attention's loops."""

    name: str
    buffers: int = field(default=1, kw_only=True)

    @abstractmethod
    def live(self, shape: AttentionShape, tiles: Tiles) -> float:
        """Bytes that one block holds on the chip at once."""

    @abstractmethod
    def launches(self, shape: AttentionShape, tiles: Tiles, on_chip: float) -> tuple[Launch, ...]:
        """The kernels of all problems, with ``on_chip`` bytes for a block."""

    def stored_elements(self, shape: AttentionShape, tiles: Tiles) -> dict[str, int]:
        """Elements of what it keeps in main memory between its kernels, beside Q, K, V and O."""
        return {}

    def stored_bytes(self, shape: AttentionShape, tiles: Tiles) -> float:
        return 0.0

    def candidates(self, shape: AttentionShape) -> Iterator[Tiles]:
        """Tiles to choose from: powers of two from the least that feeds a matrix unit."""
        for rows in powers_to(LEAST_TILE, shape.rows):
            for keys in powers_to(LEAST_TILE, shape.keys):
                yield Tiles(rows, keys)

    def _held(self, shape: AttentionShape, elements: int, state: int) -> float:
        """Bytes of buffered operand elements and of state."""
        return self.buffers * elements * shape.element_bytes + state * STATE_BYTES


@dataclass(frozen=True)
class Naive(Dataflow):
    """Three kernels, with the scores and then the weights in main memory, masked ones too."""

    name: str = "naive"

    def live(self, shape: AttentionShape, tiles: Tiles) -> float:
        r, c, d = tiles.rows, tiles.keys, shape.dim
        return max(self._held(shape, (r + c) * d, r * c), self._held(shape, r * c + c * d, r * d))

    def launches(self, shape: AttentionShape, tiles: Tiles, on_chip: float) -> tuple[Launch, ...]:
        n, s, d, count = shape.rows, shape.keys, shape.dim, shape.problems
        row_tiles = tiles_of(n, tiles.rows)
        size = shape.element_bytes * count
        # A row that does not fit is read once for its maximum and sum, and again to be normalised.
        passes = 1 if s * shape.element_bytes <= on_chip else 2
        heads = shape.batch * shape.heads
        across, down = tiles_of(s, tiles.keys), tiles_of(shape.queries, tiles.rows)
        work = shape.square_work
        blocks = count * row_tiles
        return (
            Launch(
                "scores",
                (n * d + row_tiles * s * d) * size,
                n * s * size,
                work["scores"],
                blocks * across,
                (across, down, heads),
            ),
            Launch(
                "softmax",
                passes * n * s * size,
                n * s * size,
                work["softmax"],
                count * n,
                (heads * shape.queries, 1, 1),
            ),
            Launch(
                "values",
                (n * s + row_tiles * s * d) * size,
                n * d * size,
                work["values"],
                blocks,
                (1, down, heads),
            ),
        )

    def stored_elements(self, shape: AttentionShape, tiles: Tiles) -> dict[str, int]:
        return {"scores": shape.score_elements, "weights": shape.score_elements}

    def stored_bytes(self, shape: AttentionShape, tiles: Tiles) -> float:
        return 2 * shape.score_elements * shape.element_bytes


@dataclass(frozen=True)
class Flat(Dataflow):
    """Scores, softmax and the product with V fused over whole rows of scores, which stay on the chip
    (Kao et al. 2023, FLAT, arXiv:2107.06419). ``granularity`` is what is computed at a time: all
    (matrix), a sequence (batch), a key/value head (head), or so many rows of one (row), past which
    its keys and values stay on the chip. Off-chip traffic is Q, K, V and O once.
    """

    granularity: str = "row"
    buffers: int = field(default=2, kw_only=True)

    def live(self, shape: AttentionShape, tiles: Tiles) -> float:
        at_once = self._at_once(shape)
        rows = tiles.rows if self.granularity == "row" else shape.rows
        operands = self.buffers * (2 * rows + 2 * shape.keys) * shape.dim
        return at_once * (operands + rows * shape.keys) * shape.element_bytes

    def launches(self, shape: AttentionShape, tiles: Tiles, on_chip: float) -> tuple[Launch, ...]:
        work = shape.square_work
        q, k = (elements * shape.element_bytes for elements in shape.operand_elements)
        reads, writes = q + 2 * k, q
        blocks = shape.problems // self._at_once(shape)
        return (Launch(self.name, reads, writes, sum(work.values(), Flops()), blocks),)

    def candidates(self, shape: AttentionShape) -> Iterator[Tiles]:
        for rows in powers_to(1, shape.rows) if self.granularity == "row" else (shape.rows,):
            yield Tiles(rows, shape.keys)

    def _at_once(self, shape: AttentionShape) -> int:
        """Problems that are on the chip together."""
        return {"matrix": shape.problems, "batch": shape.kv_heads}.get(self.granularity, 1)


@dataclass(frozen=True)
class FlashV1(Dataflow):
    """FlashAttention's first loop order (Dao et al. 2022, arXiv:2205.14135, algorithm 1): a tile of
    keys and values stays, and Q, O and each row's maximum and sum come and go for every one. O is in
    the operands' format; it and the state begin in main memory. A block takes a whole problem."""

    name: str = "flash v1"

    def live(self, shape: AttentionShape, tiles: Tiles) -> float:
        r, c, d = tiles.rows, tiles.keys, shape.dim
        return self._held(shape, 2 * c * d + 2 * r * d, 2 * r * self.buffers + r * c)

    def launches(self, shape: AttentionShape, tiles: Tiles, on_chip: float) -> tuple[Launch, ...]:
        n, d, count = shape.rows, shape.dim, shape.problems
        met = visible_tiles(shape, tiles.rows, tiles.keys)
        row, state = d * shape.element_bytes, 2 * STATE_BYTES
        reads = 2 * shape.keys * row + met.rows * (2 * row + state)
        writes = n * (row + state) + met.rows * (row + state)
        extra = renormalised(met.rows, d) * count
        work = sum(shape.work.values(), extra)
        return (Launch(self.name, reads * count, writes * count, work, count, (shape.batch, shape.heads, 1)),)

    def stored_bytes(self, shape: AttentionShape, tiles: Tiles) -> float:
        return 2 * STATE_BYTES * shape.problems * shape.rows


@dataclass(frozen=True)
class FlashV2(Dataflow):
    """FlashAttention-2's loop order (Dao 2023, arXiv:2307.08691): a tile of rows stays with its O and
    state, and the keys and values that it sees pass by. Row tiles are blocks of their own."""

    name: str = "flash v2"

    def live(self, shape: AttentionShape, tiles: Tiles) -> float:
        r, c, d = tiles.rows, tiles.keys, shape.dim
        return self._held(shape, r * d + 2 * c * d, r * c + r * d + 2 * r)

    def launches(self, shape: AttentionShape, tiles: Tiles, on_chip: float) -> tuple[Launch, ...]:
        met = visible_tiles(shape, tiles.rows, tiles.keys)
        row, count = shape.dim * shape.element_bytes, shape.problems
        reads, writes = (shape.rows + 2 * met.keys) * row * count, shape.rows * row * count
        blocks = count * tiles_of(shape.rows, tiles.rows)
        grid = (tiles_of(shape.queries, tiles.rows), shape.batch, shape.heads)
        return (Launch(self.name, reads, writes, self._work(shape, met.rows), blocks, grid),)

    def _work(self, shape: AttentionShape, visits: int) -> Flops:
        """With O rescaled whenever a row's maximum may have grown."""
        extra = rescaled(visits, shape.dim) * shape.problems
        return sum(shape.work.values(), extra)


@dataclass(frozen=True)
class SplitKV(FlashV2):
    """Flash-Decoding: the second loop order over each split of the keys by itself, whose O and
    log-sum-exp go to main memory in float32, and a second kernel that merges them."""

    name: str = "split-KV"

    def launches(self, shape: AttentionShape, tiles: Tiles, on_chip: float) -> tuple[Launch, ...]:
        length, splits = self.split(shape, tiles)
        if splits == 1:
            return super().launches(shape, tiles, on_chip)
        d, count, row = shape.dim, shape.problems, shape.dim * shape.element_bytes
        met = visible_tiles(shape, tiles.rows, tiles.keys)
        queries = visible_tiles(shape, tiles.rows, length).rows  # a row tile that sees none of a split leaves
        partial = splits * shape.rows * (d + 1) * STATE_BYTES
        row_tiles = tiles_of(shape.rows, tiles.rows)
        heads = shape.batch * shape.heads
        merging = merged(splits * shape.rows, d) * count
        return (
            Launch(
                self.name,
                (queries + 2 * met.keys) * row * count,
                partial * count,
                self._work(shape, met.rows),
                count * row_tiles * splits,
                (tiles_of(shape.queries, tiles.rows), splits, heads),
            ),
            Launch(
                "merge",
                partial * count,
                shape.rows * row * count,
                merging,
                count * shape.rows,
                (heads * shape.queries, 1, 1),
            ),
        )

    def split(self, shape: AttentionShape, tiles: Tiles) -> tuple[int, int]:
        """Keys of a split, whole tiles of them, and how many splits that makes."""
        length = tiles_of(tiles_of(shape.keys, tiles.keys), tiles.splits) * tiles.keys
        return length, tiles_of(shape.keys, length)

    def stored_elements(self, shape: AttentionShape, tiles: Tiles) -> dict[str, int]:
        _, splits = self.split(shape, tiles)
        if splits == 1:
            return {}
        return {"partial results": splits * shape.problems * shape.rows * shape.dim}

    def stored_bytes(self, shape: AttentionShape, tiles: Tiles) -> float:
        _, splits = self.split(shape, tiles)
        rows = splits * shape.problems * shape.rows
        return 0.0 if splits == 1 else rows * (shape.dim + 1) * STATE_BYTES

    def candidates(self, shape: AttentionShape) -> Iterator[Tiles]:
        for tiles in super().candidates(shape):
            for splits in powers_to(2, max(2, min(256, tiles_of(shape.keys, tiles.keys)))):
                yield Tiles(tiles.rows, tiles.keys, splits)


#: In the order in which they are shown.
DATAFLOWS: tuple[Dataflow, ...] = (
    Naive(),
    Flat("FLAT matrix", "matrix"),
    Flat("FLAT batch", "batch"),
    Flat("FLAT head", "head"),
    Flat("FLAT row", "row"),
    FlashV1(),
    FlashV2(),
    SplitKV(),
)
