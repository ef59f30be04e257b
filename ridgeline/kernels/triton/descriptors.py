"""Tensor descriptors of keys and values, by which Hopper and later GPUs copy whole tiles (TMA)."""

from __future__ import annotations

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from ridgeline.kernels.triton.runtime import padded

#: What a descriptor asks of addresses and strides, in bytes, and the longest side of a box (CUDA driver API,
#: cuTensorMapEncodeTiled).
_ALIGNMENT, _MOST_SIDE = 16, 256
#: Bytes of a head in a box at least: products of FP8 take 32 inner elements.
_LEAST_HEAD = 32


def boxes(
    k: torch.Tensor, v: torch.Tensor, n: int, page: int
) -> tuple[TensorDescriptor, TensorDescriptor] | None:
    """Descriptors of k and v, ``[batch or pages, tokens, heads, dim]`` or packed ``[tokens, heads, dim]``,
    whose boxes are ``n`` tokens of a head; None where they cannot be described, or where a ``page`` of so
    many tokens (0 for no pages) holds no whole number of boxes."""
    if (page and page % n) or n > _MOST_SIDE:
        return None
    found = [x if x.dim() == 4 else x[None] for x in (k, v)]
    if not all(map(_is_describable, found)):
        return None
    sides = [[1, n, 1, padded(x.shape[-1])] for x in found]
    return tuple(
        TensorDescriptor(x, list(x.shape), list(_plain_strides(x)), side)
        for x, side in zip(found, sides, strict=True)
    )


def _plain_strides(x: torch.Tensor) -> tuple[int, ...]:
    """Those of x, except where a dimension of size 1 may have any: there a whole number of lines."""
    step = _ALIGNMENT // x.element_size()
    sized = zip(x.shape[:-1], x.stride()[:-1], strict=True)
    return *(max(step, s) // step * step if n == 1 else s for n, s in sized), 1


def _is_describable(x: torch.Tensor) -> bool:
    aligned = x.data_ptr() % _ALIGNMENT == 0 and padded(x.shape[-1]) * x.element_size() >= _LEAST_HEAD
    steps = [s * x.element_size() for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n > 1]
    return bool(x.numel()) and aligned and all(s > 0 and s % _ALIGNMENT == 0 for s in steps)
