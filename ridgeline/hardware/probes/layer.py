"""A layer of fixed shape that belongs to no model: counted for its parts, and run between timed calls.

A call that is repeated alone finds its code in the caches and its branches predicted, which makes a
short operator look a third faster than it is in a model, between others. So a small layer runs
before every timed call of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ridgeline.ops.count import Count
from ridgeline.ops.protocol import Batch, CacheSpec, Heads, Mask, Norm, Ops, Rope, Score, Span, Weight
from ridgeline.ops.trace import CPU

CAUSAL = Mask(causal=True)
#: What the layer computes itself, or a part that has no function.
OWN_FUNCTIONS = ("", "rms")
#: What runs in between is as narrow as it can be: its work shall not push anything out of the caches.
NARROW = Heads(query=4, kv=2, dim=16)
#: Four query heads a key/value head, 64 wide, as many small and middling models have it.
WIDE = Heads(query=16, kv=4, dim=64)
#: Weights and cache of the layer.
FORMAT = "bf16"


@dataclass(frozen=True)
class Layer:
    """An embedding and a gated decoder layer as wide as its query heads."""

    heads: Heads
    table: Weight
    norm: Norm
    qkv: Weight
    out: Weight
    gate_up: Weight
    down: Weight

    @property
    def rope(self) -> Rope:
        return Rope(self.heads.dim, 10_000.0)

    @property
    def score(self) -> Score:
        return Score(self.heads.dim**-0.5)


#: The values of a weight by its shape, and by whether it is gated, None if it is not multiplied.
Data = Callable[[tuple[int, ...], bool | None], Any]


def make_layer(heads: Heads, vocabulary: int, data: Data = lambda shape, gated: None) -> Layer:
    """A count needs no ``data``."""

    def weight(*shape: int, gated: bool | None = None) -> Weight:
        return Weight("weight", shape, FORMAT, data(shape, gated))

    width = heads.query * heads.dim
    return Layer(
        heads=heads,
        table=weight(vocabulary, width),
        norm=Norm("rms", weight(width), 1e-5),
        qkv=weight(width + 2 * heads.kv * heads.dim, width, gated=False),
        out=weight(width, width, gated=False),
        gate_up=weight(2 * width, width, gated=True),
        down=weight(width, width, gated=False),
    )


def run_layer(ops: Ops, layer: Layer, batch: Batch) -> Any:
    """Every operator, with each of its parts, at least once; the batch's one sequence begins here."""
    x = ops.embed(batch.ids, layer.table)
    q, k, v = ops.split_heads(ops.linear(ops.norm(x, layer.norm), layer.qkv), layer.heads)
    a = ops.attend(
        q,
        k,
        v,
        spans=batch.spans,
        mask=CAUSAL,
        score=layer.score,
        rope=layer.rope,
        cache=batch.layer_cache(0),
    )
    x = ops.linear(a, layer.out, residual=x)
    h = ops.linear(ops.norm(x, layer.norm), layer.gate_up, activation="silu_gated")
    x = ops.linear(h, layer.down, residual=x)
    return ops.take_rows(ops.add(x, x), batch.positions)


def cache_spec(heads: Heads, format: str = FORMAT) -> CacheSpec:
    """One layer's cache."""
    return CacheSpec(layers=1, kv_heads=heads.kv, head_dim=heads.dim, format=format)


def span_of(rows: int, past: int, block_size: int) -> Span:
    """A sequence in the first blocks of a cache."""
    return Span(rows, past, table=tuple(range(-(-(past + rows) // block_size))))


def bytes_by_part(rows: int) -> dict[str, float]:
    """Bytes that each part of the wide layer moves, as the count reading counts them. The layer's
    own norm goes by its kind, every other one as ``kind.function``."""
    ops = Count(activations=CPU.activations, lowering=CPU)
    spec = cache_spec(WIDE)
    span = span_of(rows, 0, spec.block_size)
    batch = ops.batch([span], cache=ops.alloc_cache(spec, len(span.table)))
    layer = make_layer(WIDE, rows)
    x = run_layer(ops, layer, batch)
    trace = ops.trace(ops.norm(x, layer_norm(layer)))
    return {part_name(kernel.kind, kernel.function): kernel.bytes for _, kernel in trace.kernels()}


def part_name(kind: str, function: str) -> str:
    """What a part is called in the tables: the layer's own functions need no name."""
    return kind if function in OWN_FUNCTIONS else f"{kind}.{function}"


def layer_norm(layer: Layer) -> Norm:
    """A layer norm as wide as the layer; its weight serves as its bias."""
    return Norm("layer", layer.norm.weight, layer.norm.eps, layer.norm.weight)


def interlude() -> Callable[[], tuple[()]]:
    """A step of the narrow layer, to be the ``prepare`` of a probe of the cpu reading. Like a step of a
    model it leaves PyTorch with one thread."""
    import torch

    from ridgeline.kernels import pack_linear
    from ridgeline.ops.cpu import Cpu

    def data(shape: tuple[int, ...], gated: bool | None) -> Any:
        values = torch.randn(shape).bfloat16()
        return values if gated is None else pack_linear(values, FORMAT, gated=gated)

    ops, spec = Cpu(), cache_spec(NARROW)
    layer = make_layer(NARROW, 16, data)
    span = span_of(1, 0, spec.block_size)
    cache = ops.alloc_cache(spec, len(span.table))

    def step() -> tuple[()]:
        torch.set_num_threads(1)
        run_layer(ops, layer, ops.batch([0], [span], cache=cache))
        return ()

    return step
