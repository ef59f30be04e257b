"""The product with quantised weights, x W^T with bias, activation and residual.

Integers become floats in registers, exactly, and a group's scale multiplies its sum: a weight is read once,
at 4 or 8 bits, and nothing is rounded that the format does not round. A byte of a 4-bit row holds input i in
its low half and input i + in / 2 in its high half, so that either half is a tile of neighbouring inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.activations import apply
from ridgeline.kernels.triton.runtime import dot


@triton.jit
def _float(q, dtype: tl.constexpr):
    """Integers [n, k] as exact floats [k, n]; by way of float32, because the interpreter's own way to
    bfloat16 is wrong."""
    return tl.trans(q.to(tl.float32).to(dtype))


@triton.jit
def _product(
    x, weight, scales, zeros, m, n, rows, outputs, inputs, width, padded_outputs, x_r,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums of rows m with outputs n, float32. ``width`` is the bytes of a weight's row."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    k = tl.arange(0, BLOCK_K)
    x_at = x + m.to(tl.int64)[:, None] * x_r + k[None, :]
    w_at = weight + n.to(tl.int64)[:, None] * width + k[None, :]
    in_rows, in_outputs = (m < rows)[:, None], (n < outputs)[:, None]
    for first in range(0, width, BLOCK_K):
        stored = tl.load(w_at + first, mask=in_outputs & (first + k < width)[None, :], other=0)
        low = tl.load(x_at + first, mask=in_rows & (first + k < inputs)[None, :], other=0.0)
        if BITS == 8:
            acc = dot(low, _float(stored, low.dtype), acc)
        else:
            second = first + width
            high = tl.load(x_at + second, mask=in_rows & (second + k < inputs)[None, :], other=0.0)
            group = (first // GROUP) * padded_outputs + n
            later = (second // GROUP) * padded_outputs + n
            q_low, q_high = (stored & 15).to(tl.int8), (stored >> 4).to(tl.int8)
            if ZEROS:
                q_low -= tl.load(zeros + group, mask=n < outputs, other=0)[:, None]
                q_high -= tl.load(zeros + later, mask=n < outputs, other=0)[:, None]
            else:
                q_low, q_high = q_low - 8, q_high - 8
            nothing = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            sums = dot(low, _float(q_low, low.dtype), nothing)
            acc += sums * tl.load(scales + group, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
            sums = dot(high, _float(q_high, low.dtype), nothing)
            acc += sums * tl.load(scales + later, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    if BITS == 8:
        acc *= tl.load(scales + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit(do_not_specialize=["rows", "columns"])
def linear(
    x, weight, scales, zeros, bias, residual, out, rows, columns, inputs, width, padded_outputs,
    x_r, s_r, o_r,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid: [tiles of columns, tiles of rows]. A gated program takes both the gates and what they gate."""
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = _product(
        x, weight, scales, zeros, m, n, rows, columns, inputs, width, padded_outputs, x_r,
        BITS, GROUP, ZEROS, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if BIAS:
        acc += tl.load(bias + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
    acc = apply(acc, ACTIVATION)
    if GATED:
        # Rows of the second half, whose masks count from there.
        weight += columns.to(tl.int64) * width
        value = _product(
            x, weight, scales + columns, zeros + columns, m, n, rows, columns, inputs, width, padded_outputs,
            x_r, BITS, GROUP, ZEROS, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        if BIAS:
            value += tl.load(bias + columns + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
        acc *= value
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    if RESIDUAL:
        at = residual + m.to(tl.int64)[:, None] * s_r + n[None, :]
        acc += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + m.to(tl.int64)[:, None] * o_r + n[None, :], acc.to(out.dtype.element_ty), mask=inside)
