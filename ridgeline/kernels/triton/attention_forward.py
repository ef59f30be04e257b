"""The forward kernels of attention.

A program takes a tile of rows of one sequence and key head. The query heads that share a key head are rows of
one tile, query by query, so that a single query of a group still fills tensor cores. It meets tiles of keys
with a running softmax (Dao 2023, arXiv 2307.08691), in the order of their positions: those that all its rows
see without a mask, the others with one. Tiles that no row sees are not visited.

``forward`` has a program for each tile of rows. ``forward_splits`` cuts keys every SPLIT, counted from key 0,
and writes a partial result for each. Its grid is of one size whatever the lengths are: every program finds
the list of (sequence, split, tile of rows, key head) in the sequences' lengths, and takes every so-manieth
item of it. So one CUDA graph serves all lengths, and no program is started for splits that there are not.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.attention_step import meet
from ridgeline.kernels.triton.runtime import LN2, LOG2E, load_tile
from ridgeline.kernels.triton.scores import key_range, split_range

#: Numbers that change from call to call without being worth a kernel of their own.
_VARYING = ["rows_each", "keys_each", "batch", "cells", "left", "right", "sinks", "table_b", "seed", "reach"]


@triton.jit
def _attend(
    b, kv_head, tile, split, row_start, rows, key_start, keys,
    q, k, v, q_scales, k_scales, v_scales, out, lse, tables, alibi, sink_logits, bias,
    q_b, q_r, q_h, k_b, k_r, k_h, v_b, v_r, v_h, g_b, g_h, s_b, s_h, o_s, o_b, o_r, o_h, l_s, l_b, l_r, l_h,
    table_b, scale, softcap, left, right, sinks, dropout, seed, reach,
    GROUP: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, FLOAT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PACKED_KEYS: tl.constexpr, PAGED: tl.constexpr, PAGE: tl.constexpr, CAUSAL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SINKS: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
    DISTANCE: tl.constexpr, DROPOUT: tl.constexpr, SINK: tl.constexpr, SPLIT: tl.constexpr,
    SCALED_Q: tl.constexpr, SCALED_K: tl.constexpr, SCALED_V: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    """A tile of rows and the keys that it sees, those of one split with SPLIT."""
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, head = m // GROUP, kv_head * GROUP + m % GROUP
    in_tile = row < rows
    p = row + keys - rows
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    wide = head.to(tl.int64)  # a head's stride may be that of a whole sequence
    q_at = b * q_b + (row_start + row) * q_r + wide * q_h
    query = load_tile(q + q_at[:, None] + d[None, :], in_tile, d < DIM, True, DIM != BLOCK_D)
    slopes = tl.load(alibi + head) if ALIBI else tl.zeros([BLOCK_M], tl.float32)
    q_scale = slopes
    if SCALED_Q:
        q_scale = tl.load(q_scales + b * g_b + row_start + row + wide * g_h, mask=in_tile, other=0.0)

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

    wide_head = kv_head.to(tl.int64)
    if not BULK:
        k += wide_head * k_h
        v += wide_head * v_h
    table = tables + b * table_b
    s_start = wide_head * s_h
    box_page, box_start = 0, 0
    if PAGED:
        k_start, v_start = b * 0, b * 0
    else:
        k_start, v_start = b * k_b + key_start * k_r, b * v_b + key_start * v_r
        s_start += b * s_b + key_start
        if PACKED_KEYS:
            box_start = key_start.to(tl.int32)
        else:
            box_page = b.to(tl.int32)
    acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if LEFT:  # sinks, and the window's left edge
        tile_sunk = sunk_first // BLOCK_N
        sunk_tiles = tl.maximum(tl.minimum(tl.cdiv(sunk, BLOCK_N), tile_begin) - tile_sunk, 0)
        sunk_tiles = tl.where(sunk_first < sunk, sunk_tiles, 0)  # a split may lie behind the sinks
        for i in range(0, sunk_tiles + tile_whole - tile_begin):
            met = tl.where(i < sunk_tiles, tile_sunk + i, tile_begin + i - sunk_tiles)
            acc, total, most = meet(
                acc, total, most, query, q_scale, p, slopes, bias, reach, met * BLOCK_N, k, v, k_scales,
                v_scales, table, k_b, k_r, k_start, v_b, v_r, v_start, s_b, s_start, box_page, box_start,
                stop, scale, softcap, left, right, sinks, seed, b, kv_head, head, row, dropout, d, e,
                DIM, VALUE_DIM, BLOCK_N, FLOAT, True, PAGED, PAGE, CAUSAL, LEFT, RIGHT, SINKS, SOFTCAP, ALIBI,
                DISTANCE, DROPOUT, SCALED_Q, SCALED_K, SCALED_V, BULK,
            )  # fmt: skip
    for first in range(tile_whole * BLOCK_N, tile_partial * BLOCK_N, BLOCK_N):
        acc, total, most = meet(
            acc, total, most, query, q_scale, p, slopes, bias, reach, first, k, v, k_scales,
            v_scales, table, k_b, k_r, k_start, v_b, v_r, v_start, s_b, s_start, box_page, box_start,
            stop, scale, softcap, left, right, sinks, seed, b, kv_head, head, row, dropout, d, e,
            DIM, VALUE_DIM, BLOCK_N, FLOAT, False, PAGED, PAGE, CAUSAL, LEFT, RIGHT, SINKS, SOFTCAP, ALIBI,
            DISTANCE, DROPOUT, SCALED_Q, SCALED_K, SCALED_V, BULK,
        )  # fmt: skip
    for first in range(tile_partial * BLOCK_N, tile_end * BLOCK_N, BLOCK_N):
        acc, total, most = meet(
            acc, total, most, query, q_scale, p, slopes, bias, reach, first, k, v, k_scales,
            v_scales, table, k_b, k_r, k_start, v_b, v_r, v_start, s_b, s_start, box_page, box_start,
            stop, scale, softcap, left, right, sinks, seed, b, kv_head, head, row, dropout, d, e,
            DIM, VALUE_DIM, BLOCK_N, FLOAT, True, PAGED, PAGE, CAUSAL, LEFT, RIGHT, SINKS, SOFTCAP, ALIBI,
            DISTANCE, DROPOUT, SCALED_Q, SCALED_K, SCALED_V, BULK,
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
    o_at = b * o_b + (row_start + row) * o_r + wide * o_h
    l_at = b * l_b + (row_start + row) * l_r + wide * l_h
    if SPLIT:
        o_at += split.to(tl.int64) * o_s
        l_at += split.to(tl.int64) * l_s
    fits = in_tile[:, None] & (e < VALUE_DIM)[None, :]
    tl.store(out + o_at[:, None] + e[None, :], result.to(out.dtype.element_ty), mask=fits)
    log = tl.where(nothing, float("-inf"), (most + tl.log2(tl.where(nothing, 1.0, total))) * LN2)
    tl.store(lse + l_at, log, mask=in_tile)


@triton.jit
def _sequence(
    b, cu_rows, cu_keys, lengths, rows_each, keys_each, there,
    PACKED: tl.constexpr, PACKED_KEYS: tl.constexpr, LENGTHS: tl.constexpr,
):  # fmt: skip
    """Where the rows and keys of sequence b begin, and their numbers; b may be a tile, where ``there``."""
    row_start, key_start = b * 0, b * 0
    rows, keys = (b * 0).to(tl.int32) + rows_each, (b * 0).to(tl.int32) + keys_each
    if PACKED:
        row_start = tl.load(cu_rows + b, mask=there, other=0).to(tl.int64)
        rows = (tl.load(cu_rows + b + 1, mask=there, other=0) - row_start).to(tl.int32)
    if PACKED_KEYS:
        key_start = tl.load(cu_keys + b, mask=there, other=0).to(tl.int64)
        keys = (tl.load(cu_keys + b + 1, mask=there, other=0) - key_start).to(tl.int32)
    elif LENGTHS:
        keys = tl.load(lengths + b, mask=there, other=0).to(tl.int32)
    return row_start, rows, key_start, keys


@triton.jit(do_not_specialize=_VARYING)
def forward(
    q, k, v, q_scales, k_scales, v_scales, out, lse, cu_rows, cu_keys, lengths, tables, alibi, sink_logits,
    bias, q_b, q_r, q_h, k_b, k_r, k_h, v_b, v_r, v_h, g_b, g_h, s_b, s_h, o_s, o_b, o_r, o_h,
    l_s, l_b, l_r, l_h, table_b, rows_each, keys_each, batch, kv_heads, cells, scale, softcap, left, right,
    sinks, dropout, seed, reach,
    GROUP: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, FLOAT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PACKED: tl.constexpr, PACKED_KEYS: tl.constexpr, LENGTHS: tl.constexpr, PAGED: tl.constexpr,
    PAGE: tl.constexpr, CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SINKS: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DISTANCE: tl.constexpr, DROPOUT: tl.constexpr,
    SINK: tl.constexpr, SPLIT: tl.constexpr, BATCH: tl.constexpr, SCALED_Q: tl.constexpr,
    SCALED_K: tl.constexpr, SCALED_V: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    """Grid: [sequences * key heads * cells], ``cells`` tiles of rows each; SPLIT and BATCH are 0. Strides are
    in elements: of a sequence or page (_b), a row (_r), a head (_h), a split (_s)."""
    place = tl.program_id(0)
    b, kv_head = (place // cells // kv_heads).to(tl.int64), place // cells % kv_heads
    tile = cells - 1 - place % cells  # under a causal mask the last tiles take longest
    row_start, rows, key_start, keys = _sequence(
        b, cu_rows, cu_keys, lengths, rows_each, keys_each, True, PACKED, PACKED_KEYS, LENGTHS
    )
    if tile * BLOCK_M >= rows * GROUP:
        return
    _attend(
        b, kv_head, tile, 0, row_start, rows, key_start, keys,
        q, k, v, q_scales, k_scales, v_scales, out, lse, tables, alibi, sink_logits, bias,
        q_b, q_r, q_h, k_b, k_r, k_h, v_b, v_r, v_h, g_b, g_h, s_b, s_h, o_s, o_b, o_r, o_h,
        l_s, l_b, l_r, l_h, table_b, scale, softcap, left, right, sinks, dropout, seed, reach,
        GROUP, DIM, VALUE_DIM, FLOAT, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_E, PACKED_KEYS, PAGED, PAGE, CAUSAL,
        LEFT, RIGHT, SINKS, SOFTCAP, ALIBI, DISTANCE, DROPOUT, SINK, SPLIT, SCALED_Q, SCALED_K, SCALED_V,
        BULK,
    )  # fmt: skip


@triton.jit(do_not_specialize=_VARYING)
def forward_splits(
    q, k, v, q_scales, k_scales, v_scales, out, lse, cu_rows, cu_keys, lengths, tables, alibi, sink_logits,
    bias, q_b, q_r, q_h, k_b, k_r, k_h, v_b, v_r, v_h, g_b, g_h, s_b, s_h, o_s, o_b, o_r, o_h,
    l_s, l_b, l_r, l_h, table_b, rows_each, keys_each, batch, kv_heads, cells, scale, softcap, left, right,
    sinks, dropout, seed, reach,
    GROUP: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, FLOAT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PACKED: tl.constexpr, PACKED_KEYS: tl.constexpr, LENGTHS: tl.constexpr, PAGED: tl.constexpr,
    PAGE: tl.constexpr, CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SINKS: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DISTANCE: tl.constexpr, DROPOUT: tl.constexpr,
    SINK: tl.constexpr, SPLIT: tl.constexpr, BATCH: tl.constexpr, SCALED_Q: tl.constexpr,
    SCALED_K: tl.constexpr, SCALED_V: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    """Grid: any number of programs. ``batch`` sequences, at most BATCH, each have as many items as splits
    that one of its rows may see, times tiles of rows, times key heads; key heads, side by side in a cache,
    come one after another."""
    every = tl.arange(0, BATCH)
    there = every < batch
    _starts, rows_of, _key_starts, keys_of = _sequence(
        every, cu_rows, cu_keys, lengths, rows_each, keys_each, there, PACKED, PACKED_KEYS, LENGTHS
    )
    sunk_of, low_of, high_of = split_range(rows_of, keys_of, left, sinks, LEFT, SINKS, SPLIT)
    items_of = (sunk_of + high_of - low_of) * tl.cdiv(rows_of * GROUP, BLOCK_M)
    items_of = tl.where(there, items_of, 0)
    ends = tl.cumsum(items_of, 0)
    for item in range(tl.program_id(0), tl.sum(items_of, 0) * kv_heads, tl.num_programs(0)):
        kv_head, place = item % kv_heads, item // kv_heads
        b = tl.sum((ends <= place).to(tl.int32), 0)
        place -= tl.sum(tl.where(every < b, items_of, 0), 0)
        b = b.to(tl.int64)
        row_start, rows, key_start, keys = _sequence(
            b, cu_rows, cu_keys, lengths, rows_each, keys_each, True, PACKED, PACKED_KEYS, LENGTHS
        )
        sunk, low, _high = split_range(rows, keys, left, sinks, LEFT, SINKS, SPLIT)
        tiles = tl.cdiv(rows * GROUP, BLOCK_M)
        split = place // tiles
        split = tl.where(split < sunk, split, low + split - sunk)
        _attend(
            b, kv_head, place % tiles, split, row_start, rows, key_start, keys,
            q, k, v, q_scales, k_scales, v_scales, out, lse, tables, alibi, sink_logits, bias,
            q_b, q_r, q_h, k_b, k_r, k_h, v_b, v_r, v_h, g_b, g_h, s_b, s_h, o_s, o_b, o_r, o_h,
            l_s, l_b, l_r, l_h, table_b, scale, softcap, left, right, sinks, dropout, seed, reach,
            GROUP, DIM, VALUE_DIM, FLOAT, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_E, PACKED_KEYS, PAGED, PAGE,
            CAUSAL, LEFT, RIGHT, SINKS, SOFTCAP, ALIBI, DISTANCE, DROPOUT, SINK, SPLIT, SCALED_Q, SCALED_K,
            SCALED_V, BULK,
        )  # fmt: skip
