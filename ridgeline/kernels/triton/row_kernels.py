"""Kernels of what lies between the matrix products. A program takes one row, or one head of a row."""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.activations import apply


@triton.jit
def norm(
    x, residual, weight, bias, out, x_r, x_h, s_r, s_h, o_r, o_h, eps,
    DIM: tl.constexpr, BLOCK: tl.constexpr, LAYER: tl.constexpr, ADD: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Grid: [rows, heads]. With ADD the residual takes x first, is stored, and is what is normalised."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, BLOCK)
    inside = d < DIM
    value = tl.load(x + row * x_r + head * x_h + d, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        at = residual + row * s_r + head * s_h + d
        # What is normalised is the sum as it is stored: fused and one by one give the same bits.
        rounded = (value + tl.load(at, mask=inside, other=0.0).to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    if LAYER:
        value = tl.where(inside, value - tl.sum(value, 0) / DIM, 0.0)
    variance = tl.sum(value * value, 0) / DIM
    value = (
        value * (1 / tl.sqrt_rn(variance + eps)) * tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    )
    if BIAS:
        value += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * o_r + head * o_h + d, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activate(
    x, out, x_r, o_r, columns, ACTIVATION: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Grid: [rows, blocks of columns]; ``columns`` are the result's."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < columns
    value = apply(tl.load(x + row * x_r + d, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
    if GATED:
        value *= tl.load(x + row * x_r + columns + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * o_r + d, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def turned_halves(x, cos, sin, d, HALF: tl.constexpr):
    """The halves of a head at x, turned: x1 cos - x2 sin and x2 cos + x1 sin."""
    inside = d < HALF
    first = tl.load(x + d, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + HALF + d, mask=inside, other=0.0).to(tl.float32)
    c1, s1 = tl.load(cos + d, mask=inside, other=0.0), tl.load(sin + d, mask=inside, other=0.0)
    c2, s2 = tl.load(cos + HALF + d, mask=inside, other=0.0), tl.load(sin + HALF + d, mask=inside, other=0.0)
    return first * c1 - second * s1, second * c2 + first * s2


@triton.jit
def rotate(
    x, cos, sin, positions, out, x_r, x_h, a_r, o_r, o_h,
    HALF: tl.constexpr, BLOCK: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Grid: [rows, heads]."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    angle = tl.load(positions + row).to(tl.int64) if POSITIONS else row
    d = tl.arange(0, BLOCK)
    first, second = turned_halves(x + row * x_r + head * x_h, cos + angle * a_r, sin + angle * a_r, d, HALF)
    at = out + row * o_r + head * o_h + d
    tl.store(at, first.to(out.dtype.element_ty), mask=d < HALF)
    tl.store(at + HALF, second.to(out.dtype.element_ty), mask=d < HALF)
