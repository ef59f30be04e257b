"""The attention that a dataflow computes, and which of its tiles a causal mask leaves to compute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from ridgeline.errors import InputError
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.formats import get_format
from ridgeline.ops.kernel import Flops
from ridgeline.ops.records import Mask, Score

#: Bytes of a number that is accumulated, or of a row's running maximum and sum: float32.
STATE_BYTES = 4


@dataclass(frozen=True)
class AttentionShape:
    """``batch`` sequences of ``queries`` rows that attend to ``keys`` keys, ``heads`` of size ``dim``.

    The query heads that share a key/value head are rows of one problem, as in kernels that pack
    groups: there are :attr:`problems` of them with :attr:`rows` rows each. A causal mask is aligned to
    the end, so that the last query sees every key. ``format`` is how Q, K, V and O are stored.

    Raises InputError for sizes below 1, query heads that the key/value heads do not divide, and
    a causal mask over fewer keys than queries.
    """

    heads: int
    kv_heads: int
    dim: int
    queries: int
    keys: int
    batch: int = 1
    causal: bool = True
    format: str = "bf16"

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "dim", "queries", "keys", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise InputError(f"{self.kv_heads} key/value heads do not divide {self.heads} query heads")
        if self.causal and self.keys < self.queries:
            raise InputError(
                f"a causal mask needs a key for every query: {self.keys} keys are fewer than {self.queries}"
            )

    @property
    def group(self) -> int:
        """Query heads to a key/value head."""
        return self.heads // self.kv_heads

    @property
    def problems(self) -> int:
        """Attentions that share nothing: one a sequence and key/value head."""
        return self.batch * self.kv_heads

    @property
    def rows(self) -> int:
        """Query rows of one problem: row r belongs to position r // group."""
        return self.queries * self.group

    @property
    def past(self) -> int:
        """Keys before the first query's own."""
        return self.keys - self.queries

    @property
    def element_bytes(self) -> float:
        return get_format(self.format).bits / 8

    @property
    def operand_elements(self) -> tuple[int, int]:
        """Elements of Q (or O), and of K (or V), over all problems."""
        return self.problems * self.rows * self.dim, self.problems * self.keys * self.dim

    @property
    def operand_bytes(self) -> float:
        """Bytes of Q, K, V and O, each once: no dataflow moves less."""
        q, k = self.operand_elements
        return 2 * (q + k) * self.element_bytes

    @property
    def score_elements(self) -> int:
        """Elements of the whole score matrix, masked ones included."""
        return self.problems * self.rows * self.keys

    def at_length(self, queries: int) -> AttentionShape:
        """The same with so many queries, after as many keys."""
        return replace(self, queries=queries, keys=self.past + queries)

    @cached_property
    def work(self) -> dict[str, Flops]:
        """Operations of the parts of the operator (scores, softmax, values) on the pairs that the mask
        lets through, as the count has them."""
        return self._work(Pairs.VISIBLE)

    @cached_property
    def square_work(self) -> dict[str, Flops]:
        """The same on all pairs, which is what an implementation that stores all scores computes."""
        return self._work(Pairs.SQUARE)

    def _work(self, pairs: Pairs) -> dict[str, Flops]:
        ops = Count(activations=self.format, pairs=pairs)
        q = ops.input("q", (self.batch * self.queries, self.heads, self.dim), self.format)
        k, v = (
            ops.input(name, (self.batch * self.keys, self.kv_heads, self.dim), self.format) for name in "kv"
        )
        spans = ops.batch([Span(self.queries, self.past, self.batch)]).spans
        out = ops.attend(q, k, v, spans=spans, mask=Mask(causal=self.causal), score=Score(1.0))
        (op,) = ops.trace(out).ops
        return {part.kind: part.flops for part in op.parts}


@dataclass(frozen=True)
class Tiles:
    """Rows of Q and keys that are on the chip at a time, and splits of the keys."""

    rows: int
    keys: int
    splits: int = 1

    def __post_init__(self) -> None:
        for name in ("rows", "keys", "splits"):
            if getattr(self, name) < 1:
                raise InputError(f"a tile's {name} must be at least 1, not {getattr(self, name)}")


def paper_tiles(on_chip: int, dim: int) -> Tiles:
    """The tiles that FlashAttention's algorithm 1 takes for ``on_chip`` elements of on-chip memory
    (Dao et al. 2022, arXiv:2205.14135): B_c = ceil(M / 4d), B_r = min(B_c, d)."""
    keys = -(-on_chip // (4 * dim))
    return Tiles(min(keys, dim), keys)


@dataclass(frozen=True)
class VisibleTiles:
    """The tile pairs of one problem that hold a visible pair: how many, and the rows and the keys of
    the tiles, added up over the pairs."""

    pairs: int
    rows: int
    keys: int


def tiles_of(length: int, tile: int) -> int:
    return -(-length // tile)


def visible_tiles(shape: AttentionShape, rows: int, keys: int) -> VisibleTiles:
    """Which pairs of ``rows``-row and ``keys``-key tiles a kernel that skips hidden ones meets.

    Row tile i ends with row e = min((i + 1) rows, n) - 1, which sees past + 1 + e // group keys, so
    it meets floor((e + group (past + keys)) / (group keys)) key tiles: a sum of floors of a line.
    """
    n, s, g = shape.rows, shape.keys, shape.group
    row_tiles, key_tiles = tiles_of(n, rows), tiles_of(s, keys)
    if not shape.causal:
        return VisibleTiles(row_tiles * key_tiles, n * key_tiles, s * row_tiles)
    full = row_tiles - 1  # the last tile sees every key, and may be shorter
    before = floor_sum(full, g * keys, rows, rows - 1 + g * (shape.past + keys))
    pairs = before + key_tiles
    first_to_reach_last = g * max(0, (key_tiles - 1) * keys - shape.past)
    reaching = 1 + max(0, full - max(0, tiles_of(first_to_reach_last - rows + 1, rows)))
    return VisibleTiles(
        pairs=pairs,
        rows=rows * before + (n - full * rows) * key_tiles,
        keys=keys * pairs - reaching * (key_tiles * keys - s),
    )


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """sum over i < n of (a i + b) // m, for a, b >= 0 and m > 0, in time that grows with log m."""
    total = 0
    while n > 0:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        last = a * n + b
        if last < m:
            break
        n, m, a, b = last // m, a, m, last % m
    return total


def powers_to(first: int, limit: int) -> list[int]:
    """first, 2 first, 4 first, ... below ``limit``, and ``limit`` itself."""
    sizes = []
    while first < limit:
        sizes.append(first)
        first *= 2
    return [*sizes, limit]
