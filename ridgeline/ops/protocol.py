"""What a forward pass may ask for: the operators and the plain records that they take.

A model is written once against :class:`Ops`. Whoever supplies the operators decides what the
pass means: a count, a reference computation, a fast execution, a profile. Nothing here imports
PyTorch.

Tensors are packed: ``x`` is ``[rows, width]``, the rows of all sequences of a batch one after
another, prefill and decode alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ridgeline.ops.formats import get_format
from ridgeline.ops.numbers import Number

if TYPE_CHECKING:
    from ridgeline.ops.latent import Latent
    from ridgeline.ops.mixture import Experts, Router

T = Any  # a tensor of the reading: torch.Tensor, or a counted value
Layer = TypeVar("Layer", bound="Layered")

#: Tokens of a cache block: what the native kernels' caches are made of.
BLOCK_TOKENS = 32

#: The rows of a step that want logits: each sequence's last, all of them, or those of the given numbers.
Wanted = Literal["last", "all"] | Sequence[int]

#: Marks a dataclass field in which otherwise identical layers may differ (``ops.repeat``).
PER_LAYER = {"per_layer": True}

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "tanh", "silu_gated"]


@dataclass(frozen=True)
class Shard:
    """Which part of a weight a rank holds, of ``ranks`` that share it.

    ``outputs``: some of a matrix's outputs, so that a product's result stays divided among the ranks.
    ``inputs``: some of its inputs, so that products are partial sums, which the ranks add before the
    epilogue. ``vocab``: some rows of a table: looked-up rows are added over the ranks, logits are
    gathered. ``experts``: some of the experts; the ranks are those of ``replicas`` replicas, which hand each
    other the tokens of their experts.
    """

    cut: Literal["outputs", "inputs", "vocab", "experts"]
    ranks: int
    replicas: int = 1

    @property
    def tensor(self) -> int:
        """The ranks of one replica."""
        return self.ranks // self.replicas


@dataclass(eq=False)
class Weight:
    """A parameter: its role in the layer, its shape, how it is stored, and its data, if any.

    ``name`` is the role without the layer's number (``attention.qkv``), so that a trace, which
    holds identical layers once, and a profile, which meets each of them, can be joined by it.
    A matrix is ``[out, in]``, those of experts ``[experts, out, in]``. ``stored`` is the shape with the
    padding that it has in memory, if it has any. ``shard`` says that these are one rank's part of a weight.
    One that is not ``trained`` gets no gradient and is no parameter: a buffer.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    data: Any = None
    stored: tuple[int, ...] | None = None
    shard: Shard | None = None
    trained: bool = True

    @property
    def numel(self) -> int:
        n = 1
        for dim in self.shape:
            n *= dim
        return n

    def part(self, number: int) -> Weight:
        """One expert's matrix, [out, in]."""
        return Weight(self.name, self.shape[1:], self.format, self.data[number])

    @property
    def nbytes(self) -> float:
        """Bytes as stored, scales and padding included."""
        return get_format(self.format).nbytes(self.stored or self.shape)


@dataclass(frozen=True)
class Norm:
    """RMS norm (x / sqrt(mean(x²) + eps) * weight) or layer norm (mean removed, bias added).

    The weight counts as (weight + offset) * scale, in float32: Gemma stores how far it is from 1, T5
    divides what a norm gives to its head.
    ``weight`` is None where a norm only normalises; its operator then goes by ``role`` in traces.
    """

    kind: Literal["rms", "layer"]
    weight: Weight | None
    eps: float
    bias: Weight | None = None
    role: str = ""
    offset: float = 0.0
    scale: float = 1.0

    @property
    def changes_weight(self) -> bool:
        return self.offset != 0 or self.scale != 1

    @property
    def name(self) -> str:
        """The operator's name in traces."""
        return self.role if self.weight is None else self.weight.name


@dataclass(frozen=True)
class Heads:
    """Query and key/value heads of one size; query head h reads kv head h // (query / kv).

    ``query_norm`` and ``key_norm``, if given, normalise every head's vector (Qwen3).
    """

    query: int
    kv: int
    dim: int
    query_norm: Norm | None = None
    key_norm: Norm | None = None


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees, counted from the bottom-right corner.

    Query i of n sees key j of m when ``j <= i + m - n`` if causal, and within
    ``window = (left, right)`` of the diagonal, both inclusive; -1 is unlimited.
    """

    causal: bool
    window: tuple[int, int] = (-1, -1)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length (see ``ops.rope``).

    ``short`` and ``long`` are LongRoPE's factors of the frequencies.
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
    factor: float
    original_length: int
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding over a head's first ``dim`` elements, halves rotated together, or neighbours
    if ``interleaved``."""

    dim: int
    theta: float
    scaling: RopeScaling | None = None
    interleaved: bool = False

    @property
    def by_request(self) -> bool:
        """Whether angles depend on the length that a request was admitted with, not on positions alone."""
        return self.scaling is not None and self.scaling.kind in ("dynamic", "longrope")


@dataclass(frozen=True)
class RelativeBias:
    """A learned number a head for each bucket of distances between key and query (T5): ``table`` is
    [buckets, heads], and :func:`ridgeline.ops.relative.buckets` says which row a distance reads.

    Distances grow logarithmically from half of a side's buckets on, up to ``max_distance``; where not
    ``bidirectional``, keys after the query count as distance 0.
    """

    table: Weight
    max_distance: int
    bidirectional: bool


@dataclass(frozen=True)
class Score:
    """How a query-key product becomes a score: ``scale`` times the product; then, with a ``softcap`` above
    0, softcap tanh(score / softcap); then plus the ``bias`` of the key's distance, if there is one."""

    scale: float
    softcap: float = 0.0
    bias: RelativeBias | None = None


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
        """As stored: where elements have scales, each head's key and value has one of its own at least."""
        format = get_format(self.format)
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


class Ops(Protocol):
    """The operators. Every method names what it does in the field's own terms."""

    def embed(self, ids: T, weight: Weight, *, offset: int = 0, scale: float = 1.0) -> T:
        """Rows ``ids + offset`` of the table, times ``scale``: [rows] -> [rows, width]."""

    def norm(
        self,
        x: T,
        norm: Norm,
        *,
        shift: T | None = None,
        scale: T | None = None,
        spans: Spans | None = None,
    ) -> T:
        """Each row normalised; same shape. With ``shift`` and ``scale``, [sequences, width], the result is
        then times 1 + scale plus shift, those of the row's sequence among ``spans`` (adaLN)."""

    def linear(
        self,
        x: T,
        weight: Weight,
        *,
        bias: Weight | None = None,
        activation: Activation | None = None,
        residual: T | None = None,
        name: str | None = None,
        gate: T | None = None,
        spans: Spans | None = None,
    ) -> T:
        """residual + act(x W^T + bias): [rows, in] -> [rows, out]; a gated activation takes
        act of the first half of the columns times the second half, so [rows, out / 2].

        ``gate``, [sequences, out], is multiplied with what is added to the residual: every row with that of
        its sequence among ``spans`` (adaLN-Zero). It takes a residual.
        ``name`` is the operator's in traces where the weight's own would mislead (a tied head)."""

    def split_heads(self, qkv: T, heads: Heads) -> tuple[T, T, T]:
        """[rows, (query + 2 kv) dim] -> q, k, v of [rows, heads, dim], q and k normalised if
        the heads say so."""

    def attend(
        self,
        q: T,
        k: T | None,
        v: T | None,
        *,
        spans: Spans,
        mask: Mask,
        score: Score,
        rope: Rope | None = None,
        cache: LayerCache | None = None,
        name: str = "attention",
    ) -> T:
        """Rotates q and k, appends k and v to the cache, attends: [rows, query * dim].

        Without a cache each sequence attends to its ``keys`` rows of k and v: its own, or another's in
        cross-attention. With k and v None it reads a cache that :meth:`store` has filled, and appends
        nothing. A row that sees no key is 0. ``name`` is the operator's in traces.
        """

    def store(self, k: T, v: T, *, spans: Spans, cache: LayerCache) -> None:
        """Fills a cache with keys and values, which later attention reads and doesn't append to."""

    def softcap(self, x: T, cap: float) -> T:
        """cap tanh(x / cap); same shape."""

    def attend_latent(
        self,
        q: T,
        kv: T,
        latent: Latent,
        *,
        spans: Spans,
        mask: Mask,
        score: Score,
        rope: Rope | None = None,
        cache: LayerCache | None = None,
    ) -> T:
        """Attention to keys and values that are made of latents: [rows, heads * value].

        ``q`` is [rows, heads * (content + rotated)], ``kv`` [rows, rank + rotated]: the latent before its
        norm and the key that all heads share. Rotates, appends latents and rotated keys to the cache,
        attends.
        """

    def route(self, x: T, router: Router) -> T:
        """Which experts every row takes, and with which weights: what :meth:`experts` is handed."""

    def experts(self, x: T, routes: T, experts: Experts, *, residual: T | None = None) -> T:
        """residual + sum over a row's experts of weight * down(act(gate x) * (up x)): [rows, width]."""

    def add(self, a: T, b: T) -> T: ...

    def take_rows(self, x: T, rows: T | None) -> T:
        """The rows of x whose results are wanted; None keeps them all."""

    def activate(self, x: T, activation: Activation) -> T:
        """act(x); same shape."""

    def add_vector(self, x: T, vector: Weight) -> T:
        """The vector added to every row; a row that is n times shorter stands n times side by side."""

    def columns(self, x: T, parts: int) -> tuple[T, ...]:
        """x cut into ``parts`` of equally many columns: views."""

    def stack_columns(self, x: T, parts: int) -> T:
        """Each row cut into ``parts`` of equally many columns, laid one below the other: a view,
        [rows * parts, columns / parts]."""

    def unstack_rows(self, x: T, parts: int) -> T:
        """Every ``parts`` rows side by side as one: a view, what :meth:`stack_columns` undoes."""

    def join_columns(self, a: T, b: T) -> T:
        """The columns of a, then those of b."""

    def permute_rows(self, x: T, order: T) -> T:
        """Row i of the result is row ``order[i]`` of x; every row is taken once."""

    def join_rows(self, a: T, b: T, *, first: Spans, second: Spans) -> T:
        """Of each sequence its rows in a, then its rows in b: [rows of a + rows of b, ...]. ``first`` are the
        spans of a, ``second`` those of b."""

    def split_rows(self, x: T, *, first: Spans, second: Spans) -> tuple[T, T]:
        """What :meth:`join_rows` made one, taken apart again."""

    def repeat(self, layers: Sequence[Layer], body: Callable[[Layer, T], T], x: T) -> T:
        """body(layer, x) for each layer in turn; identical layers are counted once. ``x`` may be a tuple of
        tensors, and then body's result is one, too."""

    def alloc_cache(self, spec: CacheSpec, blocks: int) -> Cache: ...


@dataclass(frozen=True)
class Layered:
    """Base of a layer's record: its number, in which identical layers differ."""

    index: int = field(metadata=PER_LAYER)

    @cached_property
    def signature(self) -> Any:
        """All that decides what the layer costs: equal for layers that differ only in their data
        and in per-layer fields."""
        return _signature(self)

    @cached_property
    def weight_ids(self) -> frozenset[int]:
        """The ids of the layer's weights, by which layers that share one are told."""
        return frozenset(id(weight) for weight in weights_of(self))


def _signature(record: Any) -> Any:
    if isinstance(record, Weight):
        return (record.name, record.shape, record.format, record.stored, record.shard)
    if isinstance(record, tuple):
        return tuple(map(_signature, record))
    fields = getattr(type(record), "__dataclass_fields__", None)
    if fields is None:
        return record
    return tuple(
        _signature(getattr(record, name)) for name, f in fields.items() if not f.metadata.get("per_layer")
    )


def weights_of(node: Any) -> Iterator[Weight]:
    """The weights in a tree of records and tuples, in order; a shared one as often as it is met."""
    if isinstance(node, Weight):
        yield node
    elif isinstance(node, tuple):
        for item in node:
            yield from weights_of(item)
    elif is_dataclass(node):
        for f in fields(node):
            yield from weights_of(getattr(node, f.name))
