"""What attention does, counted: rotating, filling the cache, scores, softmax and the sum over values."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

from ridgeline.ops.batch import Span
from ridgeline.ops.count_costs import DROPOUT_COST, ROTATE_COST, SOFTMAX_COST
from ridgeline.ops.count_pairs import Pairs, keys_read, most_keys, visible_pairs
from ridgeline.ops.count_scores import score_changes
from ridgeline.ops.counted import CountedCache, CountedSpans
from ridgeline.ops.kernel import Access, Flops, Kernel, Role, SequenceWork, Value, whole
from ridgeline.ops.numbers import Number, maximum, round_up
from ridgeline.ops.records import Mask, Rope, Score

if TYPE_CHECKING:
    from ridgeline.ops.count import Count


def attend(
    count: Count,
    q: Value,
    k: Value | None,
    v: Value | None,
    spans: CountedSpans,
    mask: Mask,
    score: Score,
    rope: Rope | None,
    cache: CountedCache | None,
    name: str,
) -> Value:
    """The heads' outputs, [rows, heads * dim]."""
    rows, heads, dim = q.shape
    kv_heads = cache.spec.kv_heads if k is None else k.shape[1]
    kv_width = kv_heads * (cache.spec.head_dim if k is None else k.shape[2])
    parts = []
    if rope is not None:
        turned_q, turned_k = count.scratch("q", q.shape, q), count.scratch("k", k.shape, k)
        work = Flops(vector=ROTATE_COST * (rows * heads * rope.dim + rows * k.shape[1] * rope.dim))
        turned = (whole(turned_q), whole(turned_k))
        parts.append(count.part("rotate", (whole(q), whole(k)), turned, work, rows))
        q, k = turned_q, turned_k
    block = 1
    if cache is not None:
        block = cache.spec.block_size
        keys, values = cache_values(count, cache, spans)
        if k is not None:
            new = (Access(keys, rows * kv_width), Access(values, rows * kv_width))
            parts.append(count.part("append", (whole(k), whole(v)), new, Flops(), rows))
        k, v = keys, values
    keys_by_span = [keys_read(s, mask, block) for s in spans]
    read = kv_width * sum(keys * s.count for keys, s in zip(keys_by_span, spans, strict=True))
    square = sum(s.rows * s.keys * s.count for s in spans)
    pairs_by_span = [pairs_of(count, s, mask) for s in spans]
    pairs = sum(n * s.count for n, s in zip(pairs_by_span, spans, strict=True))
    rows_a_span = reduce(maximum, (s.rows for s in spans), 0)
    scores = count.scratch("scores", (heads, square), q, k)
    changes, changed = score_changes(count, score, scores, pairs * heads, rows_a_span)
    weights = count.scratch("weights", (heads, square), changed)
    out = count.activation(name, (rows, heads * dim), weights, v)
    product = Flops(matrix=2 * pairs * heads * dim)
    from_cache = 0 if cache is None else Access(k, kv_width).bytes + Access(v, kv_width).bytes
    shape = (heads, kv_heads, dim)
    sequences = tuple(
        SequenceWork(s.rows, s.count, 4 * n * heads * dim, keys * from_cache, most_keys(s, mask), *shape)
        for s, n, keys in zip(spans, pairs_by_span, keys_by_span, strict=True)
    )
    soft = Flops(vector=SOFTMAX_COST * pairs * heads, exp=pairs * heads)
    scoring = count.part("scores", (whole(q), Access(k, read)), (whole(scores),), product, rows_a_span)
    dropped = count.scratch("dropped", weights.shape, weights) if count.dropout else weights
    reads = (whole(dropped), Access(v, read))
    weighting = count.part("values", reads, (whole(out),), product, rows_a_span)
    parts += [
        replace(scoring, sequences=sequences, compute=count.attention),
        *changes,
        count.part("softmax", (whole(changed),), (whole(weights),), soft, rows_a_span),
        *_dropout_parts(count, weights, dropped, pairs * heads, rows_a_span),
        replace(weighting, compute=count.attention),
    ]
    count.emit(name, "attend", *parts)
    return out


def store(count: Count, k: Value, v: Value, spans: CountedSpans, cache: CountedCache) -> None:
    """Keys and values written to the cache that later attention reads."""
    new = tuple(Access(to, a.elements) for to, a in zip(cache_values(count, cache, spans), (k, v)))
    part = count.part("append", (whole(k), whole(v)), new, Flops(), k.shape[0])
    count.emit("store", "store", part)


def cache_values(count: Count, cache: CountedCache, spans: CountedSpans) -> tuple[Value, ...]:
    """One layer's keys and values, or its latents, as large as the spans' sequences are after this
    step."""
    spec = cache.spec
    tokens = sum(round_up(s.keys, spec.block_size) * s.count for s in spans)
    names = ("latents",) if spec.is_latent else ("keys", "values")
    shapes = ((tokens, spec.kv_heads, size) for size in spec.sizes)
    return tuple(
        count.value(name, shape, spec.format, Role.CACHE) for name, shape in zip(names, shapes, strict=True)
    )


def pairs_of(count: Count, span: Span, mask: Mask) -> Number:
    return span.rows * span.keys if count.pairs is Pairs.SQUARE else visible_pairs(span, mask)


def _dropout_parts(count: Count, x: Value, y: Value, visible: Number, rows: Number) -> list[Kernel]:
    if not count.dropout:
        return []
    work = Flops(vector=DROPOUT_COST * visible)
    return [count.part("dropout", (whole(x),), (whole(y), whole(count.dropout_mask(y))), work, rows)]
