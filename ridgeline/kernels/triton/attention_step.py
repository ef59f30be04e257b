"""The inner step of attention: a tile of keys and values is fetched, and a running softmax meets it.

Keys and values come through pointers, or, with BULK, through tensor descriptors, which Hopper and later GPUs
copy in bulk. Stored as int8 or as FP8 they have a float32 scale a token and head: a key's multiplies its
score, a value's the weight that meets it, so that elements are only widened, in registers and exactly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.runtime import INTERPRETED, dot, load_tile
from ridgeline.kernels.triton.scores import finish_scores, kept, key_offsets, visible


@triton.jit
def widened(x, FLOAT: tl.constexpr):
    """Stored elements as FLOAT, which holds them exactly; FP8 (e4m3) comes as bytes where the GPU has no
    conversion."""
    if x.dtype == tl.uint8:
        bits = x.to(tl.int32)
        half = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).to(tl.int16).to(tl.float16, bitcast=True)
        return (half.to(tl.float32) * 256).to(FLOAT)  # exponents count from 7, those of float16 from 15
    elif x.dtype == FLOAT:
        return x
    elif INTERPRETED:
        return x.to(tl.float32).to(FLOAT)
    else:
        return x.to(FLOAT)


@triton.jit
def fetch(
    source, offsets, page, place, kv_head, inside, d,
    SIZE: tl.constexpr, MASKED: tl.constexpr, BULK: tl.constexpr, CLEAN: tl.constexpr,
):  # fmt: skip
    """A tile [keys, elements] of a key head. Without BULK what is not ``inside`` is 0, and not read; with it
    only where CLEAN says so: it may be another sequence's, or nobody's."""
    if BULK:
        box = source.load([page, place, kv_head, 0])
        tile = tl.reshape(box, [offsets.shape[0], d.shape[0]])
        if MASKED and CLEAN:
            tile = tl.where(inside[:, None], tile, tl.zeros_like(tile))
        return tile
    else:
        return load_tile(source + offsets[:, None] + d[None, :], inside, d < SIZE, MASKED, SIZE != d.shape[0])


@triton.jit
def meet(
    acc, total, most, q, q_scale, p, slopes, bias, reach, first,
    k, v, k_scales, v_scales, table, k_b, k_r, k_start, v_b, v_r, v_start, s_b, s_start, box_page, box_start,
    stop, scale, softcap, left, right, sinks, seed, b, kv_head, head, row, dropout, d, e,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_N: tl.constexpr, FLOAT: tl.constexpr,
    MASKED: tl.constexpr, PAGED: tl.constexpr, PAGE: tl.constexpr, CAUSAL: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, SINKS: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
    DISTANCE: tl.constexpr, DROPOUT: tl.constexpr, SCALED_Q: tl.constexpr, SCALED_K: tl.constexpr,
    SCALED_V: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    """The running softmax after the keys from ``first`` on; those from ``stop`` on are left out."""
    j = first + tl.arange(0, BLOCK_N)
    inside = j < stop
    page, place = box_page, box_start + first
    if BULK:
        k_at, v_at = j, j
        if PAGED:
            page, place = tl.load(table + first // PAGE).to(tl.int32), first % PAGE
    else:
        k_at = key_offsets(j, stop, table, k_b, k_r, k_start, PAGED, PAGE)
        v_at = key_offsets(j, stop, table, v_b, v_r, v_start, PAGED, PAGE)
    key = fetch(k, k_at, page, place, kv_head, inside, d, DIM, MASKED, BULK, False)
    value = fetch(v, v_at, page, place, kv_head, inside, e, VALUE_DIM, MASKED, BULK, True)
    if not SCALED_Q:
        key = widened(key, FLOAT)
    products = dot(q, tl.trans(key), tl.zeros([q.shape[0], BLOCK_N], tl.float32))
    if SCALED_Q:
        products *= q_scale[:, None]
    if SCALED_K or SCALED_V:
        s_at = key_offsets(j, stop, table, s_b, 1, 0, PAGED, PAGE) + s_start
    if SCALED_K:
        if MASKED:
            products *= tl.load(k_scales + s_at, mask=inside, other=0.0)[None, :]
        else:
            products *= tl.load(k_scales + s_at)[None, :]
    scores, _ = finish_scores(
        products, p[:, None], j[None, :], head[:, None], slopes[:, None], bias, reach, scale, softcap,
        SOFTCAP, ALIBI, DISTANCE,
    )  # fmt: skip
    if MASKED:
        seen = visible(p[:, None], j[None, :], stop, left, right, sinks, CAUSAL, LEFT, RIGHT, SINKS)
        scores = tl.where(seen, scores, float("-inf"))
    grown = tl.maximum(most, tl.max(scores, 1))
    # A row that has seen nothing yet keeps its -inf; its exponentials are taken from 0.
    base = tl.where(grown == float("-inf"), 0.0, grown)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(most - base)
    total = total * shrink + tl.sum(weights, 1)
    if DROPOUT:
        keep = kept(seed, b, head[:, None], row[:, None], j[None, :], dropout)
        weights = tl.where(keep, weights / (1 - dropout), 0.0)
    if SCALED_V:
        if MASKED:
            by_key = tl.load(v_scales + s_at, mask=inside, other=0.0)[None, :]
            weights = tl.where(seen, weights * by_key, 0.0)  # a scale that nobody sees may be NaN
        else:
            weights *= tl.load(v_scales + s_at)[None, :]
    value = widened(value, FLOAT)
    acc = dot(weights.to(FLOAT), value, acc * shrink[:, None])
    return acc, total, grown
