"""The plain records that operators take: weights, norms, heads, masks, rotations, scores. No PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ridgeline.ops.formats import get_format

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
