"""Passes of fixed shape that belong to no model, recorded and timed as the cpu reading runs a model's.

A call that is repeated alone finds its code in the caches and its branches predicted, which makes a
short operator look a third faster than it is in a model, between others. So a step of a small layer runs
before every timed call of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ridgeline.ops.batch import Batch, CacheSpec, Span
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Heads, Mask, Norm, Rope, Score, Weight

if TYPE_CHECKING:
    import torch

    from ridgeline.ops.native_cache import NativeCache
    from ridgeline.ops.replay import Replay

#: Weights that are not multiplied, and the cache unless said otherwise.
FORMAT = "bf16"
CAUSAL = Mask(causal=True)
THETA = 10_000.0
#: What runs in between is as narrow as it can be: its work shall not push anything out of the caches.
NARROW = Heads(query=4, kv=2, dim=16)
#: Four query heads a key/value head, 64 wide, as many small and middling models have it.
WIDE = Heads(query=16, kv=4, dim=64)
#: The same keys for twice the queries.
MANY = Heads(query=32, kv=4, dim=64)
#: A key/value head for every query head, as encoders and older decoders have it.
ALIKE = Heads(query=16, kv=16, dim=64)
#: Context of the step whose cost beside its kernels is measured.
STEP_CONTEXT = 512


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass: as much of a model as a reading needs to run it."""

    forward: Callable[[Ops, Batch], Any]


def width_of(heads: Heads) -> int:
    """Columns of queries, keys and values together."""
    return (heads.query + 2 * heads.kv) * heads.dim


def attend(ops: Ops, x: Any, heads: Heads, batch: Batch) -> Any:
    """Causal attention with rotation over the cache's first layer, from x of :func:`width_of` columns."""
    q, k, v = ops.split_heads(x, heads)
    return ops.attend(
        q,
        k,
        v,
        spans=batch.spans,
        mask=CAUSAL,
        score=Score(heads.dim**-0.5),
        rope=Rope(heads.dim, THETA),
        cache=batch.layer_cache(0),
    )


def attend_whole(ops: Ops, x: Any, heads: Heads, batch: Batch) -> Any:
    """Every row to every row of its sequence, without rotation or cache, as an encoder attends."""
    q, k, v = ops.split_heads(x, heads)
    return ops.attend(q, k, v, spans=batch.spans, mask=Mask(causal=False), score=Score(heads.dim**-0.5))


def cache_spec(heads: Heads, format: str = FORMAT) -> CacheSpec:
    """One layer's cache."""
    return CacheSpec(layers=1, kv_heads=heads.kv, head_dim=heads.dim, format=format)


def span_of(rows: int, past: int, block_size: int, first: int = 0) -> Span:
    """A sequence in the blocks of a cache from number ``first`` on."""
    blocks = -(-(past + rows) // block_size)
    return Span(rows, past, table=tuple(range(first, first + blocks)))


def plain(name: str, *shape: int) -> Weight:
    """A random weight that is not multiplied."""
    import torch

    from ridgeline.ops.torch_batch import TORCH_DTYPE

    return Weight(name, shape, FORMAT, torch.randn(shape).to(TORCH_DTYPE[FORMAT]))


def packed(name: str, out: int, inputs: int, *, gated: bool = False) -> Weight:
    """A random weight that is multiplied."""
    import torch

    from ridgeline.kernels import pack_linear

    return Weight(name, (out, inputs), FORMAT, pack_linear(torch.randn(out, inputs), FORMAT, gated=gated))


def recorded(forward: Callable[[Ops, Batch], Any], cache: NativeCache | None = None) -> Replay:
    """The pass as it is replayed, its results those of the rows that a step wants."""
    from ridgeline.ops.record import record
    from ridgeline.ops.replay import Replay

    return Replay(record(Pass(forward), all_rows=False, cache=cache, attention_format=FORMAT))


def narrow_layer() -> Callable[[Ops, Batch], Any]:
    """The pass of a small gated decoder layer with its embedding."""
    width = NARROW.query * NARROW.dim
    table, norm = plain("embedding", 1, width), Norm("rms", plain("norm", width), 1e-5)
    qkv, out = packed("qkv", width_of(NARROW), width), packed("out", width, width)
    gate_up, down = packed("gate_up", 2 * width, width, gated=True), packed("down", width, width)

    def forward(ops: Ops, batch: Batch) -> Any:
        x = ops.embed(batch.ids, table)
        a = attend(ops, ops.linear(ops.norm(x, norm), qkv), NARROW, batch)
        x = ops.linear(a, out, residual=x)
        h = ops.linear(ops.norm(x, norm), gate_up, activation="silu_gated")
        return ops.linear(h, down, residual=x)

    return forward


class Step:
    """A step of the narrow layer: one row at :data:`STEP_CONTEXT`."""

    def __init__(self) -> None:
        from ridgeline.ops.cpu import Cpu

        spec = cache_spec(NARROW)
        self._spans = [span_of(1, STEP_CONTEXT - 1, spec.block_size)]
        self._cache = Cpu().alloc_cache(spec, len(self._spans[0].table))
        self._cache.randomise()
        self._replay = recorded(narrow_layer(), self._cache)

    def run(self) -> torch.Tensor:
        return self._replay.run([0], self._spans, [0], self._cache)

    def kernel_seconds(self) -> float:
        """What its kernels take, without what prepares them."""
        return sum(op.total for op in self._replay.profile([0], self._spans, [0], self._cache))

    def between(self) -> Sequence[Any]:
        """To be the ``prepare`` of a probe."""
        self.run()
        return ()
