"""What multi-head latent attention costs: the count's ``attend_latent``, in both forms.

The cache holds latents in either. Sequences of a step that run in different forms are different kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from ridgeline.ops.batch import Span
from ridgeline.ops.count_attend import cache_values, pairs_of
from ridgeline.ops.count_costs import ROTATE_COST, SOFTMAX_COST
from ridgeline.ops.count_pairs import keys_read
from ridgeline.ops.formats import product_format
from ridgeline.ops.kernel import Access, Flops, Kernel, SequenceWork, Value, whole
from ridgeline.ops.latent import Latent, Mla, is_absorbed
from ridgeline.ops.numbers import Number, is_array, maximum, where
from ridgeline.ops.records import Mask, Rope

if TYPE_CHECKING:
    from ridgeline.ops.count import Count
    from ridgeline.ops.counted import CountedCache, CountedSpans


@dataclass(frozen=True)
class _Inputs:
    """The parts of queries and keys before any product: [rows, heads, ..] and [rows, ..]. ``latents`` and
    ``rotated_keys`` are where all keys are read: the cache, or the step's own rows."""

    queries: Value
    rotated: Value
    latents: Value
    rotated_keys: Value


def attend_latent(
    count: Count,
    q: Value,
    kv: Value,
    latent: Latent,
    spans: CountedSpans,
    mask: Mask,
    rope: Rope | None,
    cache: CountedCache | None,
) -> Value:
    """The heads' outputs, [rows, heads * value]."""
    rows, heads = q.shape[0], latent.heads
    content = count.view("q", q, (rows, heads, latent.content))
    rotated = count.view("q_rotated", q, (rows, heads, latent.rotated))
    compressed = count.view("latent", kv, (rows, latent.rank))
    shared = count.view("k_rotated", kv, (rows, latent.rotated))
    norm = count.weight(latent.norm.weight)
    normed = count.activation("latent", (rows, latent.rank), compressed, norm)
    parts = [count.norm_part(compressed, normed, latent.norm)]
    if rope is not None:
        turned = tuple(count.scratch(value.name, value.shape, value) for value in (rotated, shared))
        work = Flops(vector=ROTATE_COST * (rotated.elements + shared.elements))
        reads, writes = (whole(rotated), whole(shared)), tuple(map(whole, turned))
        parts.append(count.part("rotate", reads, writes, work, rows))
        rotated, shared = turned
    block, inputs = 1, _Inputs(content, rotated, normed, shared)
    if cache is not None:
        block = cache.spec.block_size
        (stored,) = cache_values(count, cache, spans)
        new = (Access(stored, rows * latent.stored),)
        parts.append(count.part("append", (whole(normed), whole(shared)), new, Flops(), rows))
        inputs = replace(inputs, latents=stored, rotated_keys=stored)
    out = count.activation("attention", (rows, heads * latent.value), content, rotated, normed, shared)
    form = Mla.EXPANDED if count.train else count.lowering.mla
    for run, items in zip((_expanded, _absorbed), _by_form(spans, latent, form), strict=True):
        if items:
            count.assume(f"latent attention runs {run.__name__.strip('_')}")
            parts += run(count, inputs, latent, items, mask, block, out)
    count.emit("attention", "attend_latent", *parts)
    return out


def _by_form(spans: CountedSpans, latent: Latent, form: Mla) -> tuple[list[Span], list[Span]]:
    """The spans that run expanded and those that run absorbed. In a sweep one may be both, as often as 0
    times where it is the other."""
    forms: tuple[list[Span], list[Span]] = [], []
    for span in spans:
        absorbed = is_absorbed(latent, form, span.rows, span.keys)
        for items, count in zip(forms, (where(absorbed, 0, span.count), where(absorbed, span.count, 0))):
            if count.any() if is_array(count) else count:
                items.append(replace(span, count=count))
    return forms


def _expanded(
    count: Count, x: _Inputs, latent: Latent, spans: Sequence[Span], mask: Mask, block: int, out: Value
) -> list[Kernel]:
    keys = sum(s.keys * s.count for s in spans)
    read = sum(keys_read(s, mask, block) * s.count for s in spans)
    per_head = latent.content + latent.value
    up = count.weight(latent.up)
    made = count.scratch("expanded", (keys, latent.heads, per_head), x.latents, up)
    k = count.view("keys", made, (keys, latent.heads, latent.content))
    v = count.view("values", made, (keys, latent.heads, latent.value))
    expand = Kernel(
        "expand",
        (Access(x.latents, read * latent.rank), whole(up)),
        (whole(made),),
        Flops(matrix=2 * keys * latent.rank * latent.heads * per_head),
        _compute(count, latent),
        keys,
    )
    rows = sum(s.rows * s.count for s in spans)
    queries = (
        Access(x.queries, rows * latent.heads * latent.content),
        Access(x.rotated, rows * latent.heads * latent.rotated),
    )
    sources = (*queries, whole(k), Access(x.rotated_keys, read * latent.rotated))
    written = Access(out, rows * latent.heads * latent.value)
    work = (latent.key, latent.value)
    return [expand, *_attention(count, latent, spans, mask, sources, (whole(v),), written, work, lambda n: 0)]


def _absorbed(
    count: Count, x: _Inputs, latent: Latent, spans: Sequence[Span], mask: Mask, block: int, out: Value
) -> list[Kernel]:
    rows, heads = sum(s.rows * s.count for s in spans), latent.heads
    read = sum(keys_read(s, mask, block) * s.count for s in spans)
    up = count.weight(latent.up)
    per_head = up.elements / (latent.content + latent.value)  # a row of `up` of every head
    long_q = count.scratch("q_latent", (rows, heads, latent.rank), x.queries, up)
    summed = count.scratch("attended_latent", (rows, heads, latent.rank), x.rotated, x.latents)

    def product(kind: str, source: Access, columns: int, result: Access) -> Kernel:
        work = Flops(matrix=2 * rows * heads * latent.rank * columns)
        reads = (source, Access(up, per_head * columns))
        return Kernel(kind, reads, (result,), work, _compute(count, latent), rows)

    content = Access(x.queries, rows * heads * latent.content)
    rotated = Access(x.rotated, rows * heads * latent.rotated)
    if x.latents is x.rotated_keys:  # the cache, whose tokens are one vector each
        keys = (Access(x.latents, read * latent.stored),)
    else:
        keys = (Access(x.latents, read * latent.rank), Access(x.rotated_keys, read * latent.rotated))
    values = (Access(x.latents, read * latent.rank),)
    work = (latent.stored, latent.rank)

    def cached(keys: Number) -> Number:
        return Access(x.latents, keys * latent.stored).bytes

    return [
        product("absorb", content, latent.content, whole(long_q)),
        *_attention(
            count, latent, spans, mask, (whole(long_q), rotated, *keys), values, whole(summed), work, cached
        ),
        product("project", whole(summed), latent.value, Access(out, rows * heads * latent.value)),
    ]


def _attention(
    count: Count,
    latent: Latent,
    spans: Sequence[Span],
    mask: Mask,
    sources: tuple[Access, ...],
    values: tuple[Access, ...],
    written: Access,
    work: tuple[int, int],
    cached: Callable[[Number], Number],
) -> list[Kernel]:
    """Scores, softmax and sum over the values; ``work`` are the elements of a key and of a value."""
    heads, (key, value) = latent.heads, work
    by_span = [pairs_of(count, s, mask) for s in spans]
    pairs = sum(n * s.count for n, s in zip(by_span, spans, strict=True))
    square = sum(s.rows * s.keys * s.count for s in spans)
    rows = reduce(maximum, (s.rows for s in spans), 0)
    inputs = [access.value for access in (*sources, *values)]
    scores = count.scratch("scores", (heads, square), *inputs)
    weights = count.scratch("weights", (heads, square), scores)
    sequences = tuple(
        SequenceWork(s.rows, s.count, 2 * n * heads * (key + value), cached(s.keys))
        for s, n in zip(spans, by_span, strict=True)
    )
    scoring = count.part("scores", sources, (whole(scores),), Flops(matrix=2 * pairs * heads * key), rows)
    soft = Flops(vector=SOFTMAX_COST * pairs * heads, exp=pairs * heads)
    summing = Flops(matrix=2 * pairs * heads * value)
    weighting = count.part("values", (whole(weights), *values), (written,), summing, rows)
    return [
        replace(scoring, sequences=sequences, compute=count.attention),
        count.part("softmax", (whole(scores),), (whole(weights),), soft, rows),
        replace(weighting, compute=count.attention),
    ]


def _compute(count: Count, latent: Latent) -> str:
    return count.activations if count.lowering.activations is None else product_format(latent.up.format)
