"""Attention's policies inside a kernel: what a row sees, what a product becomes, where keys lie.

Positions, masks and the order of the scores are those of :mod:`ridgeline.kernels.attention`. Exponentials are
to base 2, so scores carry a factor of log2(e) from where they are finished.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.kernels.triton.runtime import LOG2E, tanh


@triton.jit
def visible(
    p, j, keys, left, right, sinks,
    CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Which keys j the positions p see: p is a column and j a row, or the other way round."""
    seen = j < keys
    if CAUSAL:
        seen = seen & (j <= p)
    near = seen
    if LEFT:
        near = near & (j >= p - left)
    if RIGHT:
        near = near & (j <= p + right)
    if SINKS:
        near = near | (seen & (j < sinks))
    return near


@triton.jit
def key_range(
    p_first, p_last, keys, left, right, sinks,
    CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """What positions from p_first to p_last may see: keys from 0 to ``sunk``, and from ``begin`` to ``end``;
    and from ``whole`` to ``partial`` what all of them see."""
    begin, end = keys * 0, keys
    whole, partial = keys * 0, keys
    sunk = keys * 0
    if CAUSAL:
        end = tl.minimum(end, p_last + 1)
        partial = tl.minimum(partial, p_first + 1)
    if RIGHT:
        end = tl.minimum(end, p_last + right + 1)
        partial = tl.minimum(partial, p_first + right + 1)
    if LEFT:
        begin = tl.maximum(begin, p_first - left)
        whole = tl.maximum(whole, p_last - left)
    end = tl.maximum(end, 0)
    if SINKS:
        first = tl.minimum(sinks, keys)
        if CAUSAL:
            first = tl.minimum(first, tl.maximum(p_last + 1, 0))
        sunk = tl.minimum(first, begin)
        end = tl.maximum(end, first)
    begin = tl.minimum(begin, end)
    whole = tl.minimum(tl.maximum(whole, begin), end)
    partial = tl.minimum(tl.maximum(partial, whole), end)
    return sunk, begin, end, whole, partial


@triton.jit
def finish_scores(
    products, p, j, head, slopes, bias, reach, scale, softcap,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DISTANCE: tl.constexpr,
):  # fmt: skip
    """Scores times log2(e) of products of positions p and keys j, one a column and one a row: scale, softcap,
    ALiBi, bias by distance. And the derivative of a score by its product, less the factor ``scale``."""
    steep = 1.0
    if SOFTCAP:
        capped = tanh(products * (scale / softcap))
        scores = capped * (softcap * LOG2E)
        steep = 1 - capped * capped
    else:
        scores = products * (scale * LOG2E)
    if ALIBI:
        scores -= slopes * LOG2E * tl.abs(p - j).to(tl.float32)
    if DISTANCE:
        distance = tl.minimum(tl.maximum(j - p, -reach), reach) + reach
        scores += tl.load(bias + head * (2 * reach + 1) + distance) * LOG2E
    return scores, steep


@triton.jit
def kept(seed, b, head, row, j, dropout):
    """Which weights dropout leaves. The noise is Philox (Salmon et al. 2011) of the seed, with key, query,
    head and sequence as its counter: it depends on no tile's size. ``row`` and ``head`` are a column and j a
    row, or the other way round."""
    shape = (row + j) * 0
    bits, _, _, _ = tl.philox(seed, shape + j, shape + row, shape + head, shape + b.to(tl.int32))
    return (bits >> 8).to(tl.float32) * 5.9604644775390625e-08 >= dropout


@triton.jit
def key_offsets(j, keys, table, page_stride, row_stride, start, PAGED: tl.constexpr, PAGE: tl.constexpr):
    """Where the keys j lie, in elements from the first of the tensor: int64."""
    if PAGED:
        page = tl.load(table + j // PAGE, mask=j < keys, other=0).to(tl.int64)
        return page * page_stride + (j % PAGE).to(tl.int64) * row_stride
    else:
        return start + j.to(tl.int64) * row_stride


@triton.jit
def split_range(
    rows, keys, left, sinks, LEFT: tl.constexpr, SINKS: tl.constexpr, SPLIT: tl.constexpr
):  # fmt: skip
    """Which splits of its keys a sequence's rows may see: those from 0 to ``sunk``, and from ``low`` to
    ``high``."""
    high = tl.cdiv(keys, SPLIT)
    low, sunk = keys * 0, keys * 0
    if LEFT:
        low = tl.minimum(tl.maximum(keys - rows - left, 0) // SPLIT, high)
        if SINKS:
            sunk = tl.minimum(tl.cdiv(tl.minimum(sinks, keys), SPLIT), low)
    return sunk, low, high
