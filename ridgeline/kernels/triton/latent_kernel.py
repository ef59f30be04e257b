"""Kernels of latent attention in its absorbed form, over a cache of one vector a token.

A cached vector is a latent, which is key and value of all heads alike, and a rotated part, which only scores
see. A product of queries and keys is therefore two, of latents and of rotated parts, and the heads of a row
are rows of one tile. Splits of keys are those of :mod:`ridgeline.kernels.triton.attention_forward`: counted
from key 0, merged in order, as many as the longest context can have.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.runtime import LOG2E, dot, load_tile


@triton.jit
def turn_append(
    q, kv, weight, cos, sin, positions, slots, turned, stored, eps,
    q_r, q_h, kv_r, a_r, t_r, t_h, s_r, heads,
    CONTENT: tl.constexpr, RANK: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr,
    TURN: tl.constexpr, POSITIONS: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Grid: [rows, heads + 1]: a program turns the last elements of a query head into ``turned``; the last
    one stores the row's latent, normalised, and its key's rotated part: in its slot, or in its row without
    SLOTS. A row of slot -1 is padding, and is not stored. Neighbours that are turned together come to lie
    half of ROTATED apart."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = ROTATED // 2
    d = tl.arange(0, BLOCK_H)
    inside = d < half
    slot = row
    source = q + row * q_r + head * q_h + CONTENT
    target = turned + row * t_r + head * t_h
    if head == heads:
        if SLOTS:
            slot = tl.load(slots + row).to(tl.int64)
        if slot < 0:
            return
        r = tl.arange(0, BLOCK_R)
        latent = tl.load(kv + row * kv_r + r, mask=r < RANK, other=0.0).to(tl.float32)
        factor = 1 / tl.sqrt_rn(tl.sum(latent * latent, 0) / RANK + eps)
        latent = latent * factor * tl.load(weight + r, mask=r < RANK, other=0.0).to(tl.float32)
        tl.store(stored + slot * s_r + r, latent.to(stored.dtype.element_ty), mask=r < RANK)
        source = kv + row * kv_r + RANK
        target = stored + slot * s_r + RANK
    step: tl.constexpr = 2 if INTERLEAVED else 1
    apart: tl.constexpr = 1 if INTERLEAVED else half
    first = tl.load(source + d * step, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + d * step + apart, mask=inside, other=0.0).to(tl.float32)
    if TURN:
        angle = tl.load(positions + row).to(tl.int64) if POSITIONS else row
        c1 = tl.load(cos + angle * a_r + d, mask=inside, other=0.0)
        s1 = tl.load(sin + angle * a_r + d, mask=inside, other=0.0)
        c2 = tl.load(cos + angle * a_r + half + d, mask=inside, other=0.0)
        s2 = tl.load(sin + angle * a_r + half + d, mask=inside, other=0.0)
        first, second = first * c1 - second * s1, second * c2 + first * s2
    tl.store(target + d, first.to(target.dtype.element_ty), mask=inside)
    tl.store(target + half + d, second.to(target.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["splits", "table_b"])
def attend(
    q, turned, stored, out, lse, cu_rows, lengths, tables,
    q_r, q_h, t_r, t_h, c_b, c_r, o_s, o_r, o_h, l_s, l_r, table_b, splits, scale,
    HEADS: tl.constexpr, RANK: tl.constexpr, ROTATED: tl.constexpr, PAGE: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Grid: [tiles of rows * heads * splits, sequences], causal. Strides are in elements: of a row (_r), a
    head (_h), a split (_s), a block and a token of the cache (c_b, c_r)."""
    b = tl.program_id(1).to(tl.int64)
    split, tile = tl.program_id(0) % splits, tl.program_id(0) // splits
    row_start = tl.load(cu_rows + b).to(tl.int64)
    rows = (tl.load(cu_rows + b + 1) - row_start).to(tl.int32)
    if tile * BLOCK_M >= rows * HEADS:
        return
    keys = tl.load(lengths + b).to(tl.int32)
    begin = split * SPLIT
    if SPLIT:
        if begin >= keys:
            return
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, head = m // HEADS, m % HEADS
    in_tile = row < rows
    p = row + keys - rows
    r, t = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_T)
    at = row_start + row
    query = load_tile(
        q + (at * q_r + head * q_h)[:, None] + r[None, :], in_tile, r < RANK, True, RANK != BLOCK_R
    )
    turn = load_tile(
        turned + (at * t_r + head * t_h)[:, None] + t[None, :], in_tile, t < ROTATED, True, ROTATED != BLOCK_T
    )
    last = tl.minimum(((tile + 1) * BLOCK_M - 1) // HEADS, rows - 1) + keys - rows
    end = last + 1
    if SPLIT:
        end = tl.minimum(end, begin + SPLIT)
    table = tables + b * table_b
    acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for first in range(begin, end, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        known = j < end
        page = tl.load(table + j // PAGE, mask=known, other=0).to(tl.int64)
        place = stored + (page * c_b + (j % PAGE) * c_r)[:, None]
        latent = load_tile(place + r[None, :], known, r < RANK, True, RANK != BLOCK_R)
        rotated = load_tile(place + RANK + t[None, :], known, t < ROTATED, True, ROTATED != BLOCK_T)
        scores = dot(query, tl.trans(latent), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        scores = dot(turn, tl.trans(rotated), scores) * (scale * LOG2E)
        scores = tl.where(known[None, :] & (j[None, :] <= p[:, None]), scores, float("-inf"))
        grown = tl.maximum(most, tl.max(scores, 1))
        # A row that has seen nothing yet keeps its -inf; its exponentials are taken from 0.
        base = tl.where(grown == float("-inf"), 0.0, grown)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(most - base)
        total = total * shrink + tl.sum(weights, 1)
        acc = dot(weights.to(latent.dtype), latent, acc * shrink[:, None])
        most = grown
    nothing = total == 0.0
    result = tl.where(nothing[:, None], 0.0, acc / tl.where(nothing, 1.0, total)[:, None])
    o_at = split.to(tl.int64) * o_s + at * o_r + head * o_h
    fits = in_tile[:, None] & (r < RANK)[None, :]
    tl.store(out + o_at[:, None] + r[None, :], result.to(out.dtype.element_ty), mask=fits)
    if SPLIT:
        log = tl.where(nothing, float("-inf"), most + tl.log2(tl.where(nothing, 1.0, total)))
        tl.store(lse + split.to(tl.int64) * l_s + at * l_r + head, log, mask=in_tile)


@triton.jit
def merge(
    partial, lse, out, cu_rows, lengths, p_s, p_r, p_h, l_s, l_r, o_r, o_h,
    RANK: tl.constexpr, SPLIT: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Grid: [rows of the longest sequence, heads, sequences]: the splits that a sequence's keys have, in
    order; their LSE are to base 2."""
    row, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row_start = tl.load(cu_rows + b).to(tl.int64)
    if row_start + row >= tl.load(cu_rows + b + 1):
        return
    states = tl.cdiv(tl.load(lengths + b).to(tl.int32), SPLIT)
    r = tl.arange(0, BLOCK_R)
    at = row_start + row
    partial += at * p_r + head * p_h + r
    lse += at * l_r + head
    acc = tl.zeros([BLOCK_R], tl.float32)
    total = 0.0
    most = float("-inf")
    for _ in range(0, states):
        log = tl.load(lse)
        if log > float("-inf"):  # else it is empty
            grown = tl.maximum(most, log)
            weight, shrink = tl.exp2(log - grown), tl.exp2(most - grown)
            value = tl.load(partial, mask=r < RANK, other=0.0)
            total = total * shrink + weight
            acc = acc * shrink + weight * value
            most = grown
        partial += p_s
        lse += l_s
    result = tl.where(total == 0.0, 0.0, acc / tl.where(total == 0.0, 1.0, total))
    tl.store(out + at * o_r + head * o_h + r, result.to(out.dtype.element_ty), mask=r < RANK)
