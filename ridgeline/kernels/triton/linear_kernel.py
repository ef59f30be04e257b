"""The product x W^T with bias, activation and residual, for plain, 4- and 8-bit weights.

A stored weight becomes floats in registers, exactly, and a group's scale multiplies its sum: a weight is read
once, as it is stored, and nothing is rounded that the format does not round. A byte of a 4-bit row holds
input i in its low half and input i + in / 2 in its high half, so that either half is a tile of neighbouring
inputs.

With SPLIT, inputs are summed in splits of one absolute size, each from zero, and splits are added in their
order. Programs may take a split each (``partial``, whose sums ``finish`` adds) or all of them (``linear``):
the order is the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.activations import apply
from ridgeline.kernels.triton.runtime import INTERPRETED, dot

#: Tiles of rows that are taken together, so that a weight's tile is still in L2 for the next one.
_BAND = tl.constexpr(8)


@triton.jit
def from_e4m3(q, dtype: tl.constexpr):
    """FP8 (e4m3, OCP 2023) bits as exact floats, without its instructions: exponent and mantissa are moved to
    where float32 has them, whose bias is 120 larger. The bits of a NaN are not told apart."""
    bits = q.to(tl.int32)
    wide = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
    return (wide.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(dtype)


@triton.jit
def _floats(stored, dtype: tl.constexpr, FORMAT: tl.constexpr):
    """A weight's tile [n, k] as exact floats [k, n]. Integers go by way of float32, because the interpreter's
    own way to bfloat16 is wrong; FP8 by its instructions where the tensor has its type."""
    if FORMAT == "float":
        return tl.trans(stored)
    elif FORMAT == "fp8":
        if stored.dtype == tl.uint8:
            return tl.trans(from_e4m3(stored, dtype))
        else:
            return tl.trans(stored.to(dtype))
    else:
        return tl.trans(stored.to(tl.float32).to(dtype))


@triton.jit
def _dot_fp8(x, stored, acc, BLOCK_K: tl.constexpr):
    """acc + x w^T of two tiles of FP8. Hopper's FP8 units sum with fewer bits than float32 has, so they hand
    their sums on after each tile."""
    if INTERPRETED:
        return dot(from_e4m3(x, tl.float32), tl.trans(from_e4m3(stored, tl.float32)), acc)
    else:
        return tl.dot(x, tl.trans(stored), acc, max_num_imprecise_acc=BLOCK_K)


@triton.jit
def _product(
    x, weight, scales, zeros, m, n, at, begin, end, rows, columns, inputs, width, scale_s, x_r,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, SCALE_ROWS: tl.constexpr, ZEROS: tl.constexpr,
    BOTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums, float32, of rows m with columns n, which are rows ``at`` of the weight, over its stored columns
    from ``begin`` to ``end``. ``width`` is a stored row's length."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    k = tl.arange(0, BLOCK_K)
    x_at = x + m.to(tl.int64)[:, None] * x_r + k[None, :]
    w_at = weight + at.to(tl.int64)[:, None] * width + k[None, :]
    in_rows, inside = (m < rows)[:, None], n < columns
    group_at = at // SCALE_ROWS
    for first in range(begin, end, BLOCK_K):
        stored = tl.load(w_at + first, mask=inside[:, None] & (first + k < end)[None, :], other=0.0)
        low = tl.load(x_at + first, mask=in_rows & (first + k < inputs)[None, :], other=0.0)
        if FORMAT == "int4":
            second = first + width
            high = tl.load(x_at + second, mask=in_rows & (second + k < inputs)[None, :], other=0.0)
            group = (first // GROUP) * scale_s + at
            later = (second // GROUP) * scale_s + at
            q_low, q_high = (stored & 15).to(tl.int8), (stored >> 4).to(tl.int8)
            if ZEROS:
                q_low -= tl.load(zeros + group, mask=inside, other=0)[:, None]
                q_high -= tl.load(zeros + later, mask=inside, other=0)[:, None]
            else:
                q_low, q_high = q_low - 8, q_high - 8
            nothing = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            sums = dot(low, _floats(q_low, low.dtype, FORMAT), nothing)
            acc += sums * tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)[None, :]
            sums = dot(high, _floats(q_high, low.dtype, FORMAT), nothing)
            acc += sums * tl.load(scales + later, mask=inside, other=0.0).to(tl.float32)[None, :]
        elif GROUP:
            nothing = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if BOTH:
                sums = _dot_fp8(low, stored, nothing, BLOCK_K)
            else:
                sums = dot(low, _floats(stored, low.dtype, FORMAT), nothing)
            group = (first // GROUP) * scale_s + group_at
            acc += sums * tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)[None, :]
        elif BOTH:
            acc = _dot_fp8(low, stored, acc, BLOCK_K)
        else:
            acc = dot(low, _floats(stored, low.dtype, FORMAT), acc)
    return acc


@triton.jit
def _whole(
    x, weight, scales, zeros, m, n, at, rows, columns, inputs, width, scale_s, x_r,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, SCALE_ROWS: tl.constexpr, ZEROS: tl.constexpr,
    BOTH: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As ``_product``, over all stored columns: split after split, where there are some."""
    if SPLIT:
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for begin in range(0, width, SPLIT):
            total += _product(
                x, weight, scales, zeros, m, n, at, begin, tl.minimum(begin + SPLIT, width), rows, columns,
                inputs, width, scale_s, x_r,
                FORMAT, GROUP, SCALE_ROWS, ZEROS, BOTH, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        return total
    else:
        return _product(
            x, weight, scales, zeros, m, n, at, 0, width, rows, columns, inputs, width, scale_s, x_r,
            FORMAT, GROUP, SCALE_ROWS, ZEROS, BOTH, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit
def _place(program, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The rows and columns of a program: down a band of tiles of rows, then on to the next columns."""
    down, along = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    first = program // (_BAND * along) * _BAND
    height = tl.minimum(down - first, _BAND)
    place = program % (_BAND * along)
    m = (first + place % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    return m, place // height * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit(do_not_specialize=["rows", "columns"])
def linear(
    x, weight, scales, zeros, x_scales, bias, residual, out, rows, columns, inputs, width, scale_s,
    x_r, s_r, o_r,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, SCALE_ROWS: tl.constexpr, ZEROS: tl.constexpr,
    BOTH: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    RESIDUAL: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid: [tiles]. A gated program takes both the gates and what they gate. BOTH: x is FP8 as well, with a
    scale a row."""
    m, n = _place(tl.program_id(0), rows, columns, BLOCK_M, BLOCK_N)
    in_rows, in_columns = m < rows, n < columns
    by_output: tl.constexpr = GROUP == 0 and FORMAT != "float"
    acc = _whole(
        x, weight, scales, zeros, m, n, n, rows, columns, inputs, width, scale_s, x_r,
        FORMAT, GROUP, SCALE_ROWS, ZEROS, BOTH, SPLIT, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if by_output:
        acc *= tl.load(scales + n, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    if BOTH:
        row_scales = tl.load(x_scales + m, mask=in_rows, other=0.0)[:, None]
        acc *= row_scales
    if BIAS:
        acc += tl.load(bias + n, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    acc = apply(acc, ACTIVATION)
    if GATED:
        value = _whole(
            x, weight, scales, zeros, m, n, n + columns, rows, columns, inputs, width, scale_s, x_r,
            FORMAT, GROUP, SCALE_ROWS, ZEROS, BOTH, SPLIT, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        if by_output:
            value *= tl.load(scales + columns + n, mask=in_columns, other=0.0).to(tl.float32)[None, :]
        if BOTH:
            value *= row_scales
        if BIAS:
            value += tl.load(bias + columns + n, mask=in_columns, other=0.0).to(tl.float32)[None, :]
        acc *= value
    inside = in_rows[:, None] & in_columns[None, :]
    if RESIDUAL:
        at = residual + m.to(tl.int64)[:, None] * s_r + n[None, :]
        acc += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + m.to(tl.int64)[:, None] * o_r + n[None, :], acc.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "outputs"])
def partial(
    x, weight, scales, zeros, sums, rows, outputs, inputs, width, scale_s, x_r, p_s,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, SCALE_ROWS: tl.constexpr, ZEROS: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid: [tiles, splits]. ``sums`` is [splits, rows, outputs], float32, of a gated weight's outputs
    too."""
    m, n = _place(tl.program_id(0), rows, outputs, BLOCK_M, BLOCK_N)
    split = tl.program_id(1)
    begin = split * SPLIT
    acc = _product(
        x, weight, scales, zeros, m, n, n, begin, tl.minimum(begin + SPLIT, width), rows, outputs, inputs,
        width, scale_s, x_r,
        FORMAT, GROUP, SCALE_ROWS, ZEROS, False, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    at = sums + split.to(tl.int64) * p_s + m.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(at, acc, mask=(m < rows)[:, None] & (n < outputs)[None, :])


@triton.jit
def _added(sums, at, splits, p_s, inside, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    where = sums + at
    for _ in range(0, splits):
        total += tl.load(where, mask=inside, other=0.0)
        where += p_s
    return total


@triton.jit(do_not_specialize=["columns", "splits"])
def finish(
    sums, scales, bias, residual, out, columns, splits, outputs, p_s, s_r, o_r,
    SCALED: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: [rows, blocks of columns]. What ``linear`` does behind its products, to those of ``partial``."""
    row, d = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < columns
    acc = _added(sums, row * outputs + d, splits, p_s, inside, BLOCK)
    if SCALED:
        acc *= tl.load(scales + d, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        acc += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    acc = apply(acc, ACTIVATION)
    if GATED:
        value = _added(sums, row * outputs + columns + d, splits, p_s, inside, BLOCK)
        if SCALED:
            value *= tl.load(scales + columns + d, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            value += tl.load(bias + columns + d, mask=inside, other=0.0).to(tl.float32)
        acc *= value
    if RESIDUAL:
        acc += tl.load(residual + row * s_r + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * o_r + d, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def quantise(x, out, scales, x_r, o_r, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Grid: [rows]. A row in FP8, to nearest, ties to even, against a scale of its largest element over 448;
    1 for a row of zeros. A row that is not finite has a NaN for its scale. Columns behind DIM are not
    written."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    most = tl.zeros([BLOCK], tl.float32)
    wrong = tl.zeros([BLOCK], tl.int32)
    for first in range(0, DIM, BLOCK):
        size = tl.abs(tl.load(x + row * x_r + first + k, mask=first + k < DIM, other=0.0).to(tl.float32))
        wrong |= tl.where(size < float("inf"), 0, 1)
        most = tl.maximum(most, size)
    largest = tl.max(most, 0)
    scale = tl.where(largest > 0, tl.div_rn(largest, 448.0), 1.0)
    # A scale that is no normal number is too coarse, and its inverse may be infinite.
    scale = tl.maximum(scale, 1.1754943508222875e-38)
    for first in range(0, DIM, BLOCK):
        value = tl.load(x + row * x_r + first + k, mask=first + k < DIM, other=0.0).to(tl.float32)
        value = tl.div_rn(value, scale)
        size = tl.minimum(tl.abs(value), 448.0)
        bits = size.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        # Below 2^-6 numbers are 2^-9 apart: adding 2^14, whose last bit that is, rounds to them.
        small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.where(size < 0.015625, small, normal)
        code = tl.where(value < 0, code | 0x80, code)
        tl.store(out + row * o_r + first + k, code.to(tl.uint8), mask=first + k < DIM)
    tl.store(scales + row, tl.where(tl.max(wrong, 0) > 0, float("nan"), scale))
