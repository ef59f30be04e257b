"""The forward kernel of attention, and the merging of partial results.

A program takes a tile of rows of one sequence and key head. The query heads that share a key head are rows of
one tile, query by query, so that a single query of a group still fills tensor cores. It meets tiles of keys
with a running softmax (Dao 2023, arXiv 2307.08691): first those that all its rows see, without a mask, then
the rest. Tiles that no row sees are not visited.

With SPLIT, a program takes only keys from a multiple of SPLIT to the next, and writes a partial result.
Splits are counted from key 0 and their number is that of the longest context that can be, so the grid, and
thus a CUDA graph, is the same for every length: a program whose split is empty ends at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.runtime import LN2, LOG2E, dot, load_tile
from ridgeline.kernels.triton.scores import finish_scores, kept, key_offsets, key_range, visible

#: Numbers that change from call to call without being worth a kernel of their own.
_VARYING = ["rows_each", "keys_each", "splits", "left", "right", "sinks", "table_b", "seed", "reach"]


@triton.jit
def _meet(
    acc, total, most, q, p, slopes, bias, reach, first,
    k, v, table, k_b, k_r, k_start, v_b, v_r, v_start,
    stop, scale, softcap, left, right, sinks, seed, b, head, row, dropout, d, e,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
    PAGED: tl.constexpr, PAGE: tl.constexpr, CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    SINKS: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DISTANCE: tl.constexpr,
    DROPOUT: tl.constexpr,
):  # fmt: skip
    """The running softmax after the keys from ``first`` on; those from ``stop`` on are left out."""
    j = first + tl.arange(0, BLOCK_N)
    inside = j < stop
    k_at = key_offsets(j, stop, table, k_b, k_r, k_start, PAGED, PAGE)
    v_at = key_offsets(j, stop, table, v_b, v_r, v_start, PAGED, PAGE)
    key = load_tile(k + k_at[:, None] + d[None, :], inside, d < DIM, MASKED, DIM != d.shape[0])
    value = load_tile(v + v_at[:, None] + e[None, :], inside, e < VALUE_DIM, MASKED, VALUE_DIM != e.shape[0])
    products = dot(q, tl.trans(key), tl.zeros([q.shape[0], BLOCK_N], tl.float32))
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
    acc = dot(weights.to(value.dtype), value, acc * shrink[:, None])
    return acc, total, grown


@triton.jit(do_not_specialize=_VARYING)
def forward(
    q, k, v, out, lse, cu_rows, cu_keys, lengths, tables, alibi, sink_logits, bias,
    q_b, q_r, q_h, k_b, k_r, k_h, v_b, v_r, v_h, o_s, o_b, o_r, o_h, l_s, l_b, l_r, l_h, table_b,
    rows_each, keys_each, splits, scale, softcap, left, right, sinks, dropout, seed, reach,
    GROUP: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PACKED: tl.constexpr, PACKED_KEYS: tl.constexpr, LENGTHS: tl.constexpr, PAGED: tl.constexpr,
    PAGE: tl.constexpr, CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SINKS: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DISTANCE: tl.constexpr, DROPOUT: tl.constexpr,
    SINK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Grid: [tiles of rows * splits, key heads, sequences]. Strides are in elements: of a sequence or page
    (_b), a row (_r), a head (_h), a split (_s)."""
    kv_head, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    if SPLIT:
        split = tl.program_id(0) % splits
        tile = tl.program_id(0) // splits
    else:
        tile = tl.num_programs(0) - 1 - tl.program_id(0)  # under a causal mask the last tiles take longest
    if PACKED:
        row_start = tl.load(cu_rows + b).to(tl.int64)
        rows = (tl.load(cu_rows + b + 1) - row_start).to(tl.int32)
    else:
        row_start = b * 0
        rows = rows_each
    if tile * BLOCK_M >= rows * GROUP:
        return
    key_start = b * 0
    if PACKED_KEYS:
        key_start = tl.load(cu_keys + b).to(tl.int64)
        keys = (tl.load(cu_keys + b + 1) - key_start).to(tl.int32)
    elif LENGTHS:
        keys = tl.load(lengths + b).to(tl.int32)
    else:
        keys = keys_each
    if SPLIT:
        if split * SPLIT >= keys:
            return

    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, head = m // GROUP, kv_head * GROUP + m % GROUP
    in_tile = row < rows
    p = row + keys - rows
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    q_at = b * q_b + (row_start + row) * q_r + head * q_h
    query = load_tile(q + q_at[:, None] + d[None, :], in_tile, d < DIM, True, DIM != BLOCK_D)
    slopes = tl.load(alibi + head) if ALIBI else tl.zeros([BLOCK_M], tl.float32)

    p_first = tile * BLOCK_M // GROUP + keys - rows
    p_last = tl.minimum(((tile + 1) * BLOCK_M - 1) // GROUP, rows - 1) + keys - rows
    sunk, begin, end, whole, partial = key_range(
        p_first, p_last, keys, left, right, sinks, CAUSAL, LEFT, RIGHT, SINKS
    )
    stop = keys
    if SPLIT and LEFT:
        # Which tiles need no mask depends on the rows beside a row: all take one, in the order of their keys.
        whole, partial = begin, begin
    if SPLIT:
        low, high = split * SPLIT, tl.minimum((split + 1) * SPLIT, keys)
        stop = high
        sunk_first = tl.minimum(low, sunk)
        sunk = tl.minimum(sunk, high)
        begin, end = tl.minimum(tl.maximum(begin, low), high), tl.minimum(tl.maximum(end, low), high)
        whole, partial = tl.minimum(tl.maximum(whole, low), high), tl.minimum(tl.maximum(partial, low), high)
    else:
        sunk_first = 0
    # In whole tiles from here on. Tiles from `tile_whole` to `tile_partial` need no mask.
    tile_begin, tile_end = begin // BLOCK_N, tl.cdiv(end, BLOCK_N)
    tile_whole = tl.minimum(tl.maximum(tl.cdiv(whole, BLOCK_N), tile_begin), tile_end)
    tile_partial = tl.minimum(tl.maximum(partial // BLOCK_N, tile_whole), tile_end)
    tile_end = tl.where(begin < end, tile_end, tile_partial)
    tile_begin = tl.where(begin < end, tile_begin, tile_whole)
    tile_sunk = sunk_first // BLOCK_N
    sunk_tiles = tl.maximum(tl.minimum(tl.cdiv(sunk, BLOCK_N), tile_begin) - tile_sunk, 0)
    sunk_tiles = tl.where(sunk_first < sunk, sunk_tiles, 0)  # a split may lie behind the sinks

    k += kv_head.to(tl.int64) * k_h
    v += kv_head.to(tl.int64) * v_h
    table = tables + b * table_b
    if PAGED:
        k_start, v_start = b * 0, b * 0
    else:
        k_start, v_start = b * k_b + key_start * k_r, b * v_b + key_start * v_r
    acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for first in range(tile_whole * BLOCK_N, tile_partial * BLOCK_N, BLOCK_N):
        acc, total, most = _meet(
            acc, total, most, query, p, slopes, bias, reach, first,
            k, v, table, k_b, k_r, k_start, v_b, v_r, v_start,
            stop, scale, softcap, left, right, sinks, seed, b, head, row, dropout, d, e,
            DIM, VALUE_DIM, BLOCK_N, False, PAGED, PAGE, CAUSAL, LEFT, RIGHT, SINKS, SOFTCAP, ALIBI,
            DISTANCE, DROPOUT,
        )  # fmt: skip
    before = sunk_tiles + tile_whole - tile_begin
    for i in range(0, before + tile_end - tile_partial):
        met = tl.where(i < sunk_tiles, tile_sunk + i, tile_begin + i - sunk_tiles)
        met = tl.where(i < before, met, tile_partial + i - before)
        acc, total, most = _meet(
            acc, total, most, query, p, slopes, bias, reach, met * BLOCK_N,
            k, v, table, k_b, k_r, k_start, v_b, v_r, v_start,
            stop, scale, softcap, left, right, sinks, seed, b, head, row, dropout, d, e,
            DIM, VALUE_DIM, BLOCK_N, True, PAGED, PAGE, CAUSAL, LEFT, RIGHT, SINKS, SOFTCAP, ALIBI,
            DISTANCE, DROPOUT,
        )  # fmt: skip

    if SINK:  # a logit that only enlarges the denominator
        sink = tl.load(sink_logits + head, mask=in_tile, other=0.0) * LOG2E
        grown = tl.maximum(most, sink)
        base = tl.where(grown == float("-inf"), 0.0, grown)
        shrink = tl.exp2(most - base)
        total = total * shrink + tl.exp2(sink - base)
        acc *= shrink[:, None]
        most = grown
    nothing = total == 0.0
    result = tl.where(nothing[:, None], 0.0, acc / tl.where(nothing, 1.0, total)[:, None])
    o_at = b * o_b + (row_start + row) * o_r + head * o_h
    l_at = b * l_b + (row_start + row) * l_r + head * l_h
    if SPLIT:
        o_at += split.to(tl.int64) * o_s
        l_at += split.to(tl.int64) * l_s
    fits = in_tile[:, None] & (e < VALUE_DIM)[None, :]
    tl.store(out + o_at[:, None] + e[None, :], result.to(out.dtype.element_ty), mask=fits)
    log = tl.where(nothing, float("-inf"), (most + tl.log2(tl.where(nothing, 1.0, total))) * LN2)
    tl.store(lse + l_at, log, mask=in_tile)


@triton.jit(do_not_specialize=["rows_each", "keys_each", "states"])
def merge(
    partial, partial_lse, out, lse, cu_rows, lengths, sink_logits,
    p_s, p_b, p_r, p_h, m_s, m_b, m_r, m_h, o_b, o_r, o_h, l_b, l_r, l_h,
    rows_each, keys_each, states,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, PACKED: tl.constexpr,
    LENGTHS: tl.constexpr, SINK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Grid: [rows of the longest sequence, heads, sequences]. With SPLIT a sequence has as many states as its
    keys have splits, else ``states``. A state whose LSE is infinite is empty, and not read."""
    row, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row_start = b * 0
    rows = rows_each
    if PACKED:
        row_start = tl.load(cu_rows + b).to(tl.int64)
        rows = (tl.load(cu_rows + b + 1) - row_start).to(tl.int32)
    if row >= rows:
        return
    if SPLIT:
        keys = tl.load(lengths + b).to(tl.int32) if LENGTHS else keys_each
        states = tl.cdiv(keys, SPLIT)
    s, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    partial += b * p_b + (row_start + row) * p_r + head * p_h
    partial_lse += b * m_b + (row_start + row) * m_r + head * m_h
    acc = tl.zeros([BLOCK_D], tl.float32)
    total = 0.0
    most = float("-inf")
    if SINK:
        most = tl.load(sink_logits + head) * LOG2E
        total = tl.where(most == float("-inf"), 0.0, 1.0)
    for first in range(0, states, BLOCK_S):
        state = (first + s).to(tl.int64)
        logs = tl.load(partial_lse + state * m_s, mask=state < states, other=float("-inf")) * LOG2E
        logs = tl.where(logs == float("inf"), float("-inf"), logs)
        kept = logs > float("-inf")
        outputs = tl.load(
            partial + state[:, None] * p_s + d[None, :], mask=kept[:, None] & (d < DIM)[None, :], other=0.0
        )
        grown = tl.maximum(most, tl.max(logs, 0))
        base = tl.where(grown == float("-inf"), 0.0, grown)
        weights = tl.exp2(logs - base)
        shrink = tl.exp2(most - base)
        total = total * shrink + tl.sum(weights, 0)
        acc = acc * shrink + tl.sum(weights[:, None] * outputs, 0)
        most = grown
    nothing = total == 0.0
    result = tl.where(nothing, 0.0, acc / tl.where(nothing, 1.0, total))
    o_at = b * o_b + (row_start + row) * o_r + head * o_h
    tl.store(out + o_at + d, result.to(out.dtype.element_ty), mask=d < DIM)
    log = tl.where(nothing, float("-inf"), (most + tl.log2(tl.where(nothing, 1.0, total))) * LN2)
    tl.store(lse + b * l_b + (row_start + row) * l_r + head * l_h, log)
