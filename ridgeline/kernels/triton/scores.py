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
    """Which keys j [n] the positions p [m] see: [m, n]."""
    p, j = p[:, None], j[None, :]
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
    products, p, j, slopes, scale, softcap, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr
):  # fmt: skip
    """Scores times log2(e) of products [m, n]: scale, softcap, ALiBi."""
    if SOFTCAP:
        scores = tanh(products * (scale / softcap)) * (softcap * LOG2E)
    else:
        scores = products * (scale * LOG2E)
    if ALIBI:
        distance = tl.abs(p[:, None] - j[None, :]).to(tl.float32)
        scores -= slopes[:, None] * LOG2E * distance
    return scores


@triton.jit
def key_offsets(j, keys, table, page_stride, row_stride, start, PAGED: tl.constexpr, PAGE: tl.constexpr):
    """Where the keys j lie, in elements from the first of the tensor: int64."""
    if PAGED:
        page = tl.load(table + j // PAGE, mask=j < keys, other=0).to(tl.int64)
        return page * page_stride + (j % PAGE).to(tl.int64) * row_stride
    else:
        return start + j.to(tl.int64) * row_stride
