"""Rotation fused with the append to the cache, and the rounding of a head's elements to one byte each."""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.row_kernels import turned_halves

#: The largest int8 and FP8 (e4m3) elements, and the least scale, a normal float32.
INT8, FP8 = tl.constexpr(1), tl.constexpr(2)
_LEAST_SCALE = tl.constexpr(2.0**-126)


@triton.jit
def to_e4m3(y):
    """The bits of y, at most 448 in size, as FP8: 4 bits of exponent, 3 of mantissa; to nearest, ties to
    even. Done in whole numbers, since not every GPU converts."""
    bits = y.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = (size + 0x7FFFF + ((size >> 20) & 1) >> 20) - ((127 - 7) << 3)
    # Below 2^-6 the step is 2^-9: adding 2^14, whose last place that is, rounds to it.
    shifted = size.to(tl.float32, bitcast=True) + 16384.0
    small = shifted.to(tl.int32, bitcast=True) & 0xFF
    code = tl.where(size < (127 - 6 << 23), small, normal)
    return (code | (bits >> 24) & 0x80).to(tl.uint8)


@triton.jit
def scale_of(largest, finite, KIND: tl.constexpr):
    """The scale of a vector whose largest element is of that size: NaN if one is not finite."""
    most: tl.constexpr = 127.0 if KIND == INT8 else 448.0
    return tl.where(finite, tl.maximum(tl.div_rn(largest, most), _LEAST_SCALE), float("nan"))


@triton.jit
def as_byte(x, scale, KIND: tl.constexpr):
    """x / scale rounded to an element of one byte; to nearest, ties to even."""
    y = tl.where(scale == scale, tl.div_rn(x, scale), 0.0)
    if KIND == INT8:
        return ((y + 12582912.0) - 12582912.0).to(tl.int8)  # 3 * 2^22, whose last place is 1
    else:
        return to_e4m3(y)


@triton.jit
def _store_two(first, second, at, scale_at, half, d, size, KIND: tl.constexpr):
    """Two pieces of a head, the second ``half`` elements after the first, with one scale."""
    inside = d < size
    if KIND == 0:
        tl.store(at + d, first.to(at.dtype.element_ty), mask=inside)
        tl.store(at + half + d, second.to(at.dtype.element_ty), mask=inside)
    else:
        largest = tl.maximum(tl.max(tl.abs(first), 0), tl.max(tl.abs(second), 0))
        rest = tl.maximum(tl.max(_unfinite(first), 0), tl.max(_unfinite(second), 0))
        scale = scale_of(largest, rest == 0, KIND)
        tl.store(scale_at, scale)
        tl.store(at + d, as_byte(first, scale, KIND), mask=inside)
        tl.store(at + half + d, as_byte(second, scale, KIND), mask=inside)


@triton.jit
def _store_one(x, at, scale_at, d, size, KIND: tl.constexpr):
    if KIND == 0:
        tl.store(at + d, x.to(at.dtype.element_ty), mask=d < size)
    else:
        x = x.to(tl.float32)
        scale = scale_of(tl.max(tl.abs(x), 0), tl.max(_unfinite(x), 0) == 0, KIND)
        tl.store(scale_at, scale)
        tl.store(at + d, as_byte(x, scale, KIND), mask=d < size)


@triton.jit
def _unfinite(x):
    """1 where x is NaN or infinite, else 0."""
    return ((x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >= 0x7F800000).to(tl.int32)


@triton.jit
def rotate_append(
    q, k, v, cos, sin, positions, slots, turned, keys, values, key_scales, value_scales,
    q_r, q_h, k_r, k_h, v_r, v_h, a_r, t_r, t_h, c_s, c_h, e_s, e_h, n_b, n_h, heads,
    DIM: tl.constexpr, BLOCK: tl.constexpr, ROTATED: tl.constexpr, POSITIONS: tl.constexpr,
    KIND: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Grid: [rows, query heads + key heads]: a program turns a query head into ``turned``, or a key head into
    the cache, and stores its value. c_ and e_ are the strides of a slot and a head of keys and of values; n_
    those of a page and a head of scales, which elements of one byte (KIND) have. A row of slot -1 is padding,
    and is not stored."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    angle = tl.load(positions + row).to(tl.int64) if POSITIONS else row
    d = tl.arange(0, BLOCK)
    half: tl.constexpr = DIM // 2
    if head < heads:
        if ROTATED:
            first, second = turned_halves(
                q + row * q_r + head * q_h, cos + angle * a_r, sin + angle * a_r, d, half
            )
            _store_two(first, second, turned + row * t_r + head * t_h, turned, half, d, half, 0)
    else:
        slot = tl.load(slots + row).to(tl.int64)
        if slot >= 0:
            head -= heads
            source, at = k + row * k_r + head * k_h, keys + slot * c_s + head * c_h
            scale_at = slot // PAGE * n_b + head * n_h + slot % PAGE
            if ROTATED:
                first, second = turned_halves(source, cos + angle * a_r, sin + angle * a_r, d, half)
                _store_two(first, second, at, key_scales + scale_at, half, d, half, KIND)
            else:
                key = tl.load(source + d, mask=d < DIM, other=0.0)
                _store_one(key, at, key_scales + scale_at, d, DIM, KIND)
            value = tl.load(v + row * v_r + head * v_h + d, mask=d < DIM, other=0.0)
            _store_one(value, values + slot * e_s + head * e_h, value_scales + scale_at, d, DIM, KIND)


@triton.jit
def quantise(
    x, codes, scales, x_b, x_r, x_h, c_b, c_r, c_h, s_b, s_h, rows, heads,
    DIM: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Grid: [sequences * rows * heads]: each head of a row in bytes, with a scale."""
    place = tl.program_id(0).to(tl.int64)
    b, row, head = place // heads // rows, place // heads % rows, place % heads
    d = tl.arange(0, BLOCK)
    one = tl.load(x + b * x_b + row * x_r + head * x_h + d, mask=d < DIM, other=0.0)
    _store_one(
        one, codes + b * c_b + row * c_r + head * c_h, scales + b * s_b + head * s_h + row, d, DIM, KIND
    )
