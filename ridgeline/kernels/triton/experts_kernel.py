"""Kernels of a mixture of experts: choosing, sorting rows by expert, products of each expert, their sum.

All shapes follow from the numbers of rows, experts and choices, never from what is chosen, so a CUDA graph
may hold them and the host waits for nothing. Nothing is added by atomics: results repeat.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.activations import apply
from ridgeline.kernels.triton.runtime import LOG2E, dot

_NONE = tl.constexpr(1 << 30)


@triton.jit
def _first_of_best(value, candidate, number):
    """The least of the candidates' numbers whose value is the largest, a scalar; of one or two dimensions."""
    best = tl.max(tl.ravel(tl.where(candidate, value, float("-inf"))), 0)
    return tl.min(tl.ravel(tl.where(candidate & (value == best), number, _NONE)), 0)


@triton.jit
def route(
    logits, bias, experts, weights, l_r, scale,
    EXPERTS: tl.constexpr, CHOSEN: tl.constexpr, GROUPS: tl.constexpr, OPEN: tl.constexpr,
    SIGMOID: tl.constexpr, TOP2: tl.constexpr, NORMALISED: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Grid: [rows]. Experts are a tile of groups; those chosen are stored in ascending order. A NaN is the
    last choice, so that whatever comes in, as many different experts as asked for are chosen."""
    row = tl.program_id(0).to(tl.int64)
    size: tl.constexpr = EXPERTS // GROUPS
    group, place = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_E)
    inside = (group < GROUPS)[:, None] & (place < size)[None, :]
    number = group[:, None] * size + place[None, :]
    logit = tl.load(logits + row * l_r + number, mask=inside, other=float("-inf")).to(tl.float32)
    if SIGMOID:
        scores = 1 / (1 + tl.exp2(-logit * LOG2E))
    else:
        powers = tl.exp2((logit - tl.max(tl.ravel(logit), 0)) * LOG2E)
        scores = powers / tl.sum(tl.ravel(powers), 0)
    preference = scores
    if BIAS:
        preference += tl.load(bias + number, mask=inside, other=0.0).to(tl.float32)
    preference = tl.where(inside & (preference == preference), preference, float("-inf"))
    if OPEN < GROUPS:
        value = tl.max(preference, 1)
        if TOP2:
            at = tl.min(tl.where(preference == value[:, None], place[None, :], _NONE), 1)
            rest = tl.where(place[None, :] == at[:, None], float("-inf"), preference)
            value += tl.max(rest, 1)
        is_open = group < 0
        for _ in range(OPEN):
            candidate = (group < GROUPS) & (is_open == 0)
            is_open = is_open | (group == _first_of_best(value, candidate, group))
        preference = tl.where(is_open[:, None], preference, float("-inf"))
    taken = number < 0
    for _ in range(CHOSEN):
        candidate = inside & (taken == 0)
        taken = taken | (inside & (number == _first_of_best(preference, candidate, number)))
    chosen = tl.where(taken, scores, 0.0)
    if NORMALISED:
        chosen = chosen / tl.sum(tl.ravel(chosen), 0)
    flat = tl.ravel(taken).to(tl.int32)
    at = row * CHOSEN + tl.cumsum(flat, 0) - 1
    tl.store(experts + at, tl.ravel(number), mask=flat > 0)
    tl.store(weights + at, tl.ravel(chosen) * scale, mask=flat > 0)


@triton.jit(do_not_specialize=["count", "most"])
def sort(
    experts, places, blocks, count, most,
    EXPERTS: tl.constexpr, BINS: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Grid: [experts]. Lists the places of ``experts`` [count] that name a program's expert, in their order,
    behind those of the experts before; and its blocks of at most BLOCK_M of them: expert, first, how many.
    The last program fills the rest of ``blocks`` [most, 3] with -1 for no expert."""
    expert = tl.program_id(0)
    number, i = tl.arange(0, BINS), tl.arange(0, CHUNK)
    rows = tl.zeros([BINS], tl.int32)
    for first in range(0, count, CHUNK):
        named = tl.load(experts + first + i, mask=first + i < count, other=EXPERTS)
        rows += tl.histogram(named, BINS)
    before = number < expert
    start = tl.sum(tl.where(before, rows, 0), 0)
    mine = tl.sum(tl.where(number == expert, rows, 0), 0)
    block = tl.sum(tl.where(before, (rows + BLOCK_M - 1) // BLOCK_M, 0), 0)
    end = block + tl.cdiv(mine, BLOCK_M)
    for first in range(0, end - block, CHUNK):
        at = blocks + (block + first + i) * 3
        inside = block + first + i < end
        done = (first + i) * BLOCK_M
        tl.store(at, expert + i * 0, mask=inside)
        tl.store(at + 1, start + done, mask=inside)
        tl.store(at + 2, tl.minimum(mine - done, BLOCK_M), mask=inside)
    if expert == EXPERTS - 1:
        for first in range(end, most, CHUNK):
            tl.store(blocks + (first + i) * 3, i * 0 - 1, mask=first + i < most)
    for first in range(0, count, CHUNK):
        named = tl.load(experts + first + i, mask=first + i < count, other=EXPERTS)
        hit = (named == expert).to(tl.int32)
        tl.store(places + start + tl.cumsum(hit, 0) - 1, first + i, mask=hit > 0)
        start += tl.sum(hit, 0)


@triton.jit
def _floats(q, dtype: tl.constexpr):
    """Integers [n, k] as exact floats [k, n]; by way of float32, because the interpreter's own way to
    bfloat16 is wrong."""
    return tl.trans(q.to(tl.float32).to(dtype))


@triton.jit
def _meet(
    acc, low, high, weight, scales, zeros, n, columns, k, first, width, padded_outputs,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sums after the inputs from ``first`` on, and, with 4 bits, those from ``width + first`` on."""
    of_outputs = n < columns
    inside = of_outputs[:, None] & (first + k < width)[None, :]
    stored = tl.load(weight + n.to(tl.int64)[:, None] * width + first + k[None, :], mask=inside, other=0)
    if BITS == 16:  # or 32: the numbers themselves
        acc = dot(low, tl.trans(stored), acc)
    elif BITS == 8:
        acc = dot(low, _floats(stored, low.dtype), acc)
    else:
        group = (first // GROUP) * padded_outputs + n
        later = ((first + width) // GROUP) * padded_outputs + n
        q_low, q_high = (stored & 15).to(tl.int8), (stored >> 4).to(tl.int8)
        if ZEROS:
            q_low -= tl.load(zeros + group, mask=of_outputs, other=0)[:, None]
            q_high -= tl.load(zeros + later, mask=of_outputs, other=0)[:, None]
        else:
            q_low, q_high = q_low - 8, q_high - 8
        nothing = tl.zeros(acc.shape, tl.float32)
        sums = dot(low, _floats(q_low, low.dtype), nothing)
        acc += sums * tl.load(scales + group, mask=of_outputs, other=0.0).to(tl.float32)[None, :]
        sums = dot(high, _floats(q_high, low.dtype), nothing)
        acc += sums * tl.load(scales + later, mask=of_outputs, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit(do_not_specialize=["columns"])
def product(
    x, weight, scales, zeros, experts, places, blocks, out, columns, inputs, width, padded_outputs,
    x_r, w_e, s_e, o_r,
    SHARE: tl.constexpr, SORTED: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    ZEROS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid: [blocks, tiles of columns]. Row ``place // SHARE`` of x meets the expert of its place, and the
    result is row ``place`` of ``out``. With SORTED a block is rows of one expert, else a single place. A
    gated program takes both the gates and what they gate."""
    block = tl.program_id(0)
    i = tl.arange(0, BLOCK_M)
    if SORTED:
        expert = tl.load(blocks + block * 3).to(tl.int64)
        if expert < 0:
            return
        in_rows = i < tl.load(blocks + block * 3 + 2)
        place = tl.load(places + tl.load(blocks + block * 3 + 1) + i, mask=in_rows, other=0)
    else:
        expert = tl.load(experts + block).to(tl.int64)
        in_rows = i < 1
        place = block + i * 0
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    weight += expert * w_e
    scales += expert * s_e
    zeros += expert * s_e
    gated, gated_scales, gated_zeros = weight, scales, zeros
    if GATED:  # rows of the second half
        gated += columns.to(tl.int64) * width
        gated_scales += columns
        gated_zeros += columns
    x_at = x + (place // SHARE).to(tl.int64)[:, None] * x_r + k[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    value = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_K):
        low = tl.load(x_at + first, mask=in_rows[:, None] & (first + k < inputs)[None, :], other=0.0)
        high = low
        if BITS == 4:
            later = width + first
            high = tl.load(x_at + later, mask=in_rows[:, None] & (later + k < inputs)[None, :], other=0.0)
        acc = _meet(
            acc, low, high, weight, scales, zeros, n, columns, k, first, width, padded_outputs,
            BITS, GROUP, ZEROS, BLOCK_K,
        )  # fmt: skip
        if GATED:
            value = _meet(
                value, low, high, gated, gated_scales, gated_zeros, n, columns, k, first, width,
                padded_outputs, BITS, GROUP, ZEROS, BLOCK_K,
            )  # fmt: skip
    if BITS == 8:
        acc *= tl.load(scales + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
    acc = apply(acc, ACTIVATION)
    if GATED:
        if BITS == 8:
            value *= tl.load(gated_scales + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
        acc *= value
    inside = in_rows[:, None] & (n < columns)[None, :]
    at = out + place.to(tl.int64)[:, None] * o_r + n[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["columns"])
def combine(
    outputs, weights, residual, out, columns, s_r, o_r,
    CHOSEN: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: [rows, blocks of columns]: the weighted sum of a row's outputs in the order of its slots."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < columns
    total = tl.zeros([BLOCK], tl.float32)
    for slot in range(CHOSEN):
        place = row * CHOSEN + slot
        output = tl.load(outputs + place * columns + d, mask=inside, other=0.0).to(tl.float32)
        total += output * tl.load(weights + place)
    if RESIDUAL:
        total += tl.load(residual + row * s_r + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * o_r + d, total.to(out.dtype.element_ty), mask=inside)
