"""Attention over pages: sequences that decode, prompts, and encoders, without a rotation and without
appending."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from ridgeline.hardware.gpu.plan import GpuPlan
from ridgeline.hardware.gpu.work import Work
from ridgeline.hardware.probes.passes import cache_spec
from ridgeline.ops.batch import Span
from ridgeline.ops.records import Heads, Mask, Score

if TYPE_CHECKING:
    from ridgeline.ops.gpu import Gpu


#: Heads that caches after the first are timed with: each is a kernel to compile.
FEW_HEADS = 2


def attention_work(plan: GpuPlan, ops: Gpu) -> list[list[Work]]:
    """Work for the tables ``decode.FORMAT``, ``prompt.FORMAT`` and ``encode.FORMAT``, a list for each."""
    heads = [Heads(*given) for given in plan.heads]
    found = []
    for number, format in enumerate(plan.caches):
        mine = heads[:FEW_HEADS] if number else heads
        spans = product(plan.decode_keys, plan.decode_sequences, mine)
        decodes = [_cached(plan, ops, format, h, Span(1, keys - 1), n) for keys, n, h in spans]
        prompts = [_cached(plan, ops, format, h, Span(*p), 1) for p, h in product(plan.prompts, mine)]
        found += [[work for work in decodes if work], [work for work in prompts if work]]
    encodes = [_plain(plan, ops, h, rows, n) for (rows, n), h in product(plan.encodes, heads)]
    return [*found, [work for work in encodes if work]]


def _cached(plan: GpuPlan, ops: Gpu, format: str, heads: Heads, span: Span, count: int) -> Work | None:
    spec = cache_spec(heads, format)
    nbytes = count * span.keys * spec.bytes_per_token + 4 * count * span.rows * heads.query * heads.dim
    if nbytes > plan.most_bytes:
        return None
    sizes = (heads.query, heads.kv, heads.dim)
    decodes = span.rows == 1
    point = (count, span.keys, *sizes) if decodes else (span.rows, span.past, count, *sizes)
    make = partial(_make_cached, ops, format, heads, span, count)
    return Work(f"{'decode' if decodes else 'prompt'}.{format}", point, make, nbytes)


def _make_cached(ops: Gpu, format: str, heads: Heads, span: Span, count: int) -> Callable[[], Any]:
    spec = cache_spec(heads, format)
    blocks = -(-span.keys // spec.block_size)
    cache = ops.alloc_cache(spec, count * blocks)
    cache.randomise()
    spans = spans_in(ops, [table_of(span, i * blocks, blocks) for i in range(count)])
    q = normal(ops, count * span.rows, heads.query, heads.dim)
    score = Score(heads.dim**-0.5)
    given = {"spans": spans, "mask": Mask(causal=True), "score": score, "cache": cache.layer(0)}
    return partial(ops.attend, q, None, None, **given)


def _plain(plan: GpuPlan, ops: Gpu, heads: Heads, rows: int, count: int) -> Work | None:
    nbytes = 4 * count * rows * (heads.query + heads.kv) * heads.dim
    if nbytes > plan.most_bytes:
        return None
    point = (rows, count, heads.query, heads.kv, heads.dim)
    return Work("encode.bf16", point, partial(_make_plain, ops, heads, rows, count), nbytes)


def _make_plain(ops: Gpu, heads: Heads, rows: int, count: int) -> Callable[[], Any]:
    q, k, v = (normal(ops, count * rows, n, heads.dim) for n in (heads.query, heads.kv, heads.kv))
    spans = spans_in(ops, [Span(rows)] * count)
    return partial(ops.attend, q, k, v, spans=spans, mask=Mask(causal=False), score=Score(heads.dim**-0.5))


def spans_in(ops: Gpu, spans: list[Span]) -> Any:
    """The spans of a step as the gpu reading takes them; what it makes of them once, it keeps."""
    from ridgeline.ops.gpu_batch import GpuSpans
    from ridgeline.ops.torch_batch import TorchSpans

    return GpuSpans.of(TorchSpans(tuple(spans), ops.device))


def table_of(span: Span, first: int, blocks: int) -> Span:
    """The span in the cache blocks from number ``first`` on."""
    return Span(span.rows, span.past, table=tuple(range(first, first + blocks)))


def normal(ops: Gpu, *shape: int) -> Any:
    """Numbers of N(0, 1) in the reading's dtype, where it runs."""
    import torch

    return torch.empty(shape, dtype=ops.dtype, device=ops.device).normal_()
