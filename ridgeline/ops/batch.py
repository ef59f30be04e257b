"""One step's input: the sequences of a packed batch, the rows that want logits, and the caches they read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from ridgeline.ops.formats import kv_format
from ridgeline.ops.numbers import Number

T = Any  # a tensor of the reading: torch.Tensor, or a counted value

#: Tokens of a cache block: what the native kernels' caches are made of.
BLOCK_TOKENS = 32

#: The rows of a step that want logits: each sequence's last, all of them, or those of the given numbers.
Wanted = Literal["last", "all"] | Sequence[int]


@dataclass(frozen=True)
class Span:
    """One sequence's part of a packed batch: ``rows`` new tokens after ``past`` cached ones.

    ``table`` lists the cache blocks that hold the sequence; ``admitted`` is the length the
    request was admitted with, on which length-dependent RoPE scaling is fixed. If the table leaves
    blocks out, ``skipped`` is how many tokens they hold: ``past`` does not count them, positions do.
    A count may let one span stand for ``count`` alike, and any of the numbers be an array.
    """

    rows: Number
    past: Number = 0
    count: Number = 1
    table: tuple[int, ...] = ()
    admitted: int = 0
    skipped: int = 0

    @property
    def keys(self) -> Number:
        return self.past + self.rows

    @property
    def positions(self) -> range:
        """The places of the new rows in the sequence, where the numbers are whole."""
        first = self.past + self.skipped
        return range(first, first + self.rows)


def wanted_rows(wanted: Wanted, starts: Sequence[int]) -> Sequence[int]:
    """The numbers of the wanted rows of a step, whose sequences begin at ``starts``; its end is the last."""
    if wanted == "all":
        return range(starts[-1])
    return [stop - 1 for stop in starts[1:]] if wanted == "last" else wanted


class Spans(Protocol):
    """The spans of a batch; an executing reading keeps its index tensors beside them."""

    def __iter__(self) -> Iterator[Span]: ...


@dataclass(frozen=True)
class CacheSpec:
    """The shape of a key/value cache: ``layers`` of blocks of ``block_size`` tokens.

    ``value_dim`` is the size of a head's values, None that of its keys. At 0 there are none: the cache is one
    of latents, of which values are made too.
    """

    layers: int
    kv_heads: int
    head_dim: int
    format: str
    block_size: int = BLOCK_TOKENS
    value_dim: int | None = None

    @property
    def is_latent(self) -> bool:
        return self.value_dim == 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of a head's key and of its value, or of its latent alone."""
        if self.is_latent:
            return (self.head_dim,)
        return self.head_dim, self.head_dim if self.value_dim is None else self.value_dim

    @property
    def elements_per_token(self) -> int:
        return self.layers * self.kv_heads * sum(self.sizes)

    @property
    def bytes_per_token(self) -> float:
        """As stored: where elements have scales, each head's key and value has one of its own at least, in
        float32."""
        format = kv_format(self.format)
        return sum(format.nbytes((self.layers * self.kv_heads, size)) for size in self.sizes)


class LayerCache(Protocol):
    """One layer's part of a cache; opaque, each reading owns its layout."""


class Cache(Protocol):
    spec: CacheSpec

    def layer(self, index: int) -> LayerCache: ...


@dataclass(frozen=True)
class Memory:
    """What cross-attention reads of other sequences, such as an encoder's output: their ``states``
    [rows, width], packed, or a ``cache`` that holds the keys and values made of them.

    ``spans`` are those of the other sequences, in the order of the batch's own. In a :class:`Batch` they are
    as attention takes them (:func:`cross_spans`).
    """

    spans: Spans
    states: T | None = None
    cache: Cache | None = None

    def layer_cache(self, index: int) -> LayerCache | None:
        return None if self.cache is None else self.cache.layer(index)


def cross_spans(spans: Iterable[Span], others: Iterable[Span]) -> tuple[Span, ...]:
    """Each sequence's rows beside the keys of the sequence that it reads, all of which they see; ``past`` is
    below 0 where there are fewer keys than rows."""
    return tuple(
        replace(other, rows=span.rows, past=other.keys - span.rows, count=span.count)
        for span, other in zip(spans, others, strict=True)
    )


@dataclass(frozen=True)
class Batch:
    """One step's input: token ids, their positions, the spans, and the rows that want logits.

    ``logit_rows`` None means every row. ``first_rows`` are the rows that sequences begin with, which
    BERT pools; ``segments`` are its token types. ``memory`` is what a decoder behind an encoder reads of it.
    """

    ids: T
    positions: T
    spans: Spans
    logit_rows: T | None = None
    first_rows: T | None = None
    segments: T | None = None
    cache: Cache | None = None
    memory: Memory | None = None

    def layer_cache(self, index: int) -> LayerCache | None:
        return None if self.cache is None else self.cache.layer(index)
