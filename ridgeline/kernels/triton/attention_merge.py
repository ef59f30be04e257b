"""The merging of partial results of attention, by their LSEs."""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.runtime import LN2, LOG2E
from ridgeline.kernels.triton.scores import split_range


@triton.jit(do_not_specialize=["rows_each", "keys_each", "states", "left", "sinks"])
def merge(
    partial, partial_lse, out, lse, cu_rows, lengths, sink_logits,
    p_s, p_b, p_r, p_h, m_s, m_b, m_r, m_h, o_b, o_r, o_h, l_b, l_r, l_h,
    rows_each, heads, keys_each, states, left, sinks,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, PACKED: tl.constexpr,
    LENGTHS: tl.constexpr, LEFT: tl.constexpr, SINKS: tl.constexpr, SINK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Grid: [sequences * rows of the longest * heads]. With SPLIT a sequence has the states of the splits
    that :func:`split_range` names, else all ``states``. A state whose LSE is infinite is empty, and not read.
    States are added in blocks of BLOCK_S, counted from state 0, so that the order of sums depends on their
    numbers alone."""
    place = tl.program_id(0)
    head, row = place % heads, place // heads % rows_each
    b = (place // heads // rows_each).to(tl.int64)
    row_start = b * 0
    rows = rows_each
    if PACKED:
        row_start = tl.load(cu_rows + b).to(tl.int64)
        rows = (tl.load(cu_rows + b + 1) - row_start).to(tl.int32)
    if row >= rows:
        return
    sunk, low = states * 0, states * 0
    if SPLIT:
        keys = tl.load(lengths + b).to(tl.int32) if LENGTHS else keys_each
        sunk, low, states = split_range(rows, keys, left, sinks, LEFT, SINKS, SPLIT)
    s, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    head = head.to(tl.int64)
    partial += b * p_b + (row_start + row) * p_r + head * p_h
    partial_lse += b * m_b + (row_start + row) * m_r + head * m_h
    acc = tl.zeros([BLOCK_D], tl.float32)
    total = 0.0
    most = float("-inf")
    if SINK:
        most = tl.load(sink_logits + head) * LOG2E
        total = tl.where(most == float("-inf"), 0.0, 1.0)
    before = tl.cdiv(sunk, BLOCK_S)
    behind = tl.maximum(before, low // BLOCK_S)
    for block in range(0, before + tl.maximum(tl.cdiv(states, BLOCK_S) - behind, 0)):
        state = tl.where(block < before, block, behind + block - before) * BLOCK_S + s
        there = (state < states) & ((state >= low) | (state < sunk))
        state = state.to(tl.int64)
        logs = tl.load(partial_lse + state * m_s, mask=there, other=float("-inf")) * LOG2E
        logs = tl.where(logs == float("inf"), float("-inf"), logs)
        empty = logs == float("-inf")  # NaN is not
        outputs = tl.load(
            partial + state[:, None] * p_s + d[None, :],
            mask=(~empty)[:, None] & (d < DIM)[None, :],
            other=0.0,
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
