"""The backward kernels of attention, by recomputation from the LSE (Dao 2023, arXiv 2307.08691).

With P = e^(scores - LSE) and D = rowsum(dO O): dV = P^T dO, dS = P (dO V^T - D), dQ = scale dS K and
dK = scale dS^T Q. One kernel goes over rows for a tile of keys, one over keys for a tile of rows, so that
every gradient is summed by one program, in one order: no atomics, the same bits every time. Rows are queries
of all heads that share a key head, as in the forward kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.runtime import LOG2E, dot, load_tile
from ridgeline.kernels.triton.scores import finish_scores, kept, key_range, visible

_VARYING = ["rows_each", "keys_each", "cells", "left", "right", "sinks", "seed"]


@triton.jit
def _sequence(cu, b, each, PACKED: tl.constexpr):
    """Where sequence b begins, and its length."""
    if PACKED:
        start = tl.load(cu + b).to(tl.int64)
        return start, (tl.load(cu + b + 1) - start).to(tl.int32)
    else:
        return b * 0, each


@triton.jit(do_not_specialize=_VARYING)
def keys_and_values(
    q, k, v, grad, lse, delta, dk, dv, cu_rows, cu_keys, alibi,
    q_b, q_r, q_h, k_b, k_r, k_h, v_b, v_r, v_h, g_b, g_r, g_h, l_b, l_r, l_h,
    e_b, e_r, e_h, f_b, f_r, f_h,
    rows_each, keys_each, kv_heads, cells, scale, softcap, left, right, sinks, dropout, seed,
    GROUP: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PACKED: tl.constexpr, CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SINKS: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """Grid: [sequences * key heads * cells], ``cells`` tiles of keys each. Scores are transposed, [n, m]:
    keys are rows of the tile."""
    place = tl.program_id(0)
    b, kv_head = (place // cells // kv_heads).to(tl.int64), place // cells % kv_heads
    wide_head = kv_head.to(tl.int64)  # a head's stride may be that of a whole sequence
    row_start, rows = _sequence(cu_rows, b, rows_each, PACKED)
    key_start, keys = _sequence(cu_keys, b, keys_each, PACKED)
    n_first = place % cells * BLOCK_N
    if n_first >= keys:
        return
    j = n_first + tl.arange(0, BLOCK_N)
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    k_at = b * k_b + (key_start + j) * k_r + wide_head * k_h
    v_at = b * v_b + (key_start + j) * v_r + wide_head * v_h
    key = load_tile(k + k_at[:, None] + d[None, :], j < keys, d < DIM, True, BLOCK_D != DIM)
    value = load_tile(v + v_at[:, None] + e[None, :], j < keys, e < VALUE_DIM, True, BLOCK_E != VALUE_DIM)

    # The rows that may see a key of the tile.
    offset = keys - rows
    first_row, last_row = rows * 0, rows - 1
    if CAUSAL:
        first_row = tl.maximum(first_row, n_first - offset)
    if RIGHT:
        if SINKS:
            seen_by_all = n_first < sinks
            first_row = tl.where(seen_by_all, first_row, tl.maximum(first_row, n_first - right - offset))
        else:
            first_row = tl.maximum(first_row, n_first - right - offset)
    if LEFT:
        near = tl.minimum(last_row, n_first + BLOCK_N - 1 + left - offset)
        if SINKS:
            near = tl.where(n_first < sinks, last_row, near)
        last_row = near

    dk_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_sum = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)
    for m_first in range(first_row * GROUP // BLOCK_M * BLOCK_M, (last_row + 1) * GROUP, BLOCK_M):
        m = m_first + tl.arange(0, BLOCK_M)
        row, head = m // GROUP, kv_head * GROUP + m % GROUP
        wide = head.to(tl.int64)
        inside = row < rows
        q_at = b * q_b + (row_start + row) * q_r + wide * q_h
        g_at = b * g_b + (row_start + row) * g_r + wide * g_h
        l_at = b * l_b + (row_start + row) * l_r + wide * l_h
        query = load_tile(q + q_at[:, None] + d[None, :], inside, d < DIM, True, BLOCK_D != DIM)
        out_grad = load_tile(
            grad + g_at[:, None] + e[None, :], inside, e < VALUE_DIM, True, BLOCK_E != VALUE_DIM
        )
        log = tl.load(lse + l_at, mask=inside, other=0.0) * LOG2E
        log = tl.where(log == float("-inf"), 0.0, log)
        means = tl.load(delta + l_at, mask=inside, other=0.0)
        slopes = tl.load(alibi + head) if ALIBI else means
        p = row + offset
        products = dot(key, tl.trans(query), tl.zeros([BLOCK_N, BLOCK_M], tl.float32))
        scores, steep = finish_scores(
            products, p[None, :], j[:, None], head, slopes[None, :], alibi, 0, scale, softcap,
            SOFTCAP, ALIBI, False,
        )  # fmt: skip
        seen = visible(p[None, :], j[:, None], keys, left, right, sinks, CAUSAL, LEFT, RIGHT, SINKS)
        weights = tl.where(seen & inside[None, :], tl.exp2(scores - log[None, :]), 0.0)
        weight_grad = dot(value, tl.trans(out_grad), tl.zeros([BLOCK_N, BLOCK_M], tl.float32))
        used = weights
        if DROPOUT:
            keep = kept(seed, b, head[None, :], row[None, :], j[:, None], dropout)
            used = tl.where(keep, weights / (1 - dropout), 0.0)
            weight_grad = tl.where(keep, weight_grad / (1 - dropout), 0.0)
        dv_sum = dot(used.to(out_grad.dtype), out_grad, dv_sum)
        score_grad = weights * (weight_grad - means[None, :]) * steep
        dk_sum = dot(score_grad.to(query.dtype), query, dk_sum)
    e_at = b * e_b + (key_start + j) * e_r + wide_head * e_h
    f_at = b * f_b + (key_start + j) * f_r + wide_head * f_h
    dk_sum *= scale
    tl.store(
        dk + e_at[:, None] + d[None, :],
        dk_sum.to(dk.dtype.element_ty),
        mask=(j < keys)[:, None] & (d < DIM)[None, :],
    )
    tl.store(
        dv + f_at[:, None] + e[None, :],
        dv_sum.to(dv.dtype.element_ty),
        mask=(j < keys)[:, None] & (e < VALUE_DIM)[None, :],
    )


@triton.jit(do_not_specialize=_VARYING)
def queries(
    q, k, v, grad, lse, delta, dq, cu_rows, cu_keys, alibi,
    q_b, q_r, q_h, k_b, k_r, k_h, v_b, v_r, v_h, g_b, g_r, g_h, l_b, l_r, l_h, e_b, e_r, e_h,
    rows_each, keys_each, kv_heads, cells, scale, softcap, left, right, sinks, dropout, seed,
    GROUP: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PACKED: tl.constexpr, CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SINKS: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """Grid: [sequences * key heads * cells], ``cells`` tiles of rows each."""
    place = tl.program_id(0)
    b, kv_head = (place // cells // kv_heads).to(tl.int64), place // cells % kv_heads
    wide_head = kv_head.to(tl.int64)
    row_start, rows = _sequence(cu_rows, b, rows_each, PACKED)
    key_start, keys = _sequence(cu_keys, b, keys_each, PACKED)
    tile = cells - 1 - place % cells  # under a causal mask the last tiles take longest
    if tile * BLOCK_M >= rows * GROUP:
        return
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, head = m // GROUP, kv_head * GROUP + m % GROUP
    wide = head.to(tl.int64)
    inside = row < rows
    p = row + keys - rows
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    q_at = b * q_b + (row_start + row) * q_r + wide * q_h
    g_at = b * g_b + (row_start + row) * g_r + wide * g_h
    l_at = b * l_b + (row_start + row) * l_r + wide * l_h
    query = load_tile(q + q_at[:, None] + d[None, :], inside, d < DIM, True, BLOCK_D != DIM)
    out_grad = load_tile(grad + g_at[:, None] + e[None, :], inside, e < VALUE_DIM, True, BLOCK_E != VALUE_DIM)
    log = tl.load(lse + l_at, mask=inside, other=0.0) * LOG2E
    log = tl.where(log == float("-inf"), 0.0, log)
    means = tl.load(delta + l_at, mask=inside, other=0.0)
    slopes = tl.load(alibi + head) if ALIBI else means
    p_first = tile * BLOCK_M // GROUP + keys - rows
    p_last = tl.minimum(((tile + 1) * BLOCK_M - 1) // GROUP, rows - 1) + keys - rows
    sunk, begin, end, _, _ = key_range(p_first, p_last, keys, left, right, sinks, CAUSAL, LEFT, RIGHT, SINKS)
    tile_begin = begin // BLOCK_N
    tile_end = tl.where(begin < end, tl.cdiv(end, BLOCK_N), tile_begin)
    sunk_tiles = tl.minimum(tl.cdiv(sunk, BLOCK_N), tl.where(begin < end, tile_begin, tl.cdiv(sunk, BLOCK_N)))

    dq_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i in range(0, sunk_tiles + tile_end - tile_begin):
        j = tl.where(i < sunk_tiles, i, tile_begin + i - sunk_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
        k_at = b * k_b + (key_start + j) * k_r + wide_head * k_h
        v_at = b * v_b + (key_start + j) * v_r + wide_head * v_h
        key = load_tile(k + k_at[:, None] + d[None, :], j < keys, d < DIM, True, BLOCK_D != DIM)
        value = load_tile(v + v_at[:, None] + e[None, :], j < keys, e < VALUE_DIM, True, BLOCK_E != VALUE_DIM)
        products = dot(query, tl.trans(key), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        scores, steep = finish_scores(
            products, p[:, None], j[None, :], head, slopes[:, None], alibi, 0, scale, softcap,
            SOFTCAP, ALIBI, False,
        )  # fmt: skip
        seen = visible(p[:, None], j[None, :], keys, left, right, sinks, CAUSAL, LEFT, RIGHT, SINKS)
        weights = tl.where(seen & inside[:, None], tl.exp2(scores - log[:, None]), 0.0)
        weight_grad = dot(out_grad, tl.trans(value), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        if DROPOUT:
            keep = kept(seed, b, head[:, None], row[:, None], j[None, :], dropout)
            weight_grad = tl.where(keep, weight_grad / (1 - dropout), 0.0)
        score_grad = weights * (weight_grad - means[:, None]) * steep
        dq_sum = dot(score_grad.to(key.dtype), key, dq_sum)
    dq_sum *= scale
    e_at = b * e_b + (row_start + row) * e_r + wide * e_h
    tl.store(
        dq + e_at[:, None] + d[None, :],
        dq_sum.to(dq.dtype.element_ty),
        mask=inside[:, None] & (d < DIM)[None, :],
    )
