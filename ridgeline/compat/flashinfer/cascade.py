"""Merging attention states: outputs over parts of the keys, with the base-2 LSE of each."""

from __future__ import annotations

import math

import torch

from ridgeline import kernels
from ridgeline.compat.arguments import theirs
from ridgeline.errors import InputError
from ridgeline.kernels.attention_arguments import check_sizes
from ridgeline.kernels.checks import check_tensor, describe


def merge_states(v: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One attention over all keys from several over some: (``[tokens, heads, dim]``, ``[tokens, heads]``).

    - ``v``: float32 or bfloat16 ``[tokens, states, heads, dim]``, the outputs.
    - ``s``: ``[tokens, states, heads]``, their LSE to base 2.

    The result is added in float32 and rounded to v's dtype; the LSE is float32. Raises InputError that names
    the argument for another dtype, shape or device.
    """
    check_tensor("v", v)
    if v.dim() != 4:
        raise InputError(f"v is {describe(v)}; give [tokens, states, heads, dim]")
    check_tensor("s", s)
    check_sizes("s", s, tuple(v.shape[:3]), "v")
    return _merged(v.transpose(0, 1), s.transpose(0, 1))


def merge_state(
    v_a: torch.Tensor, s_a: torch.Tensor, v_b: torch.Tensor, s_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`merge_states` of two: ``v_a`` and ``v_b`` ``[tokens, heads, dim]``, ``s_a`` and ``s_b``
    ``[tokens, heads]``."""
    _check_pair(("v_a", v_a), ("s_a", s_a), ("v_b", v_b), ("s_b", s_b))
    return _merged(torch.stack((v_a, v_b)), torch.stack((s_a, s_b)))


def merge_state_in_place(
    v: torch.Tensor,
    s: torch.Tensor,
    v_other: torch.Tensor,
    s_other: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> None:
    """:func:`merge_state` written over ``v`` and ``s``, for the tokens that bool ``mask [tokens]`` keeps."""
    _check_pair(("v", v), ("s", s), ("v_other", v_other), ("s_other", s_other))
    merged, lse = _merged(torch.stack((v, v_other)), torch.stack((s, s_other)))
    if mask is None:
        mask = torch.ones(len(v), dtype=torch.bool)
    check_sizes("mask", mask, (len(v),), "v")
    v.copy_(torch.where(mask.bool()[:, None, None], merged, v))
    s.copy_(torch.where(mask.bool()[:, None], lse, s))


def base_2(lse: torch.Tensor) -> torch.Tensor:
    """[tokens, heads] to base 2 from the kernels' natural [heads, tokens]."""
    return (lse.transpose(0, 1) * math.log2(math.e)).contiguous()


def _merged(v: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of outputs [states, tokens, heads, dim] and LSE [states, tokens, heads]."""
    with theirs(o="v", lse="s"):
        out, lse = kernels.merge_states(v.float().contiguous(), (s.float() * math.log(2)).contiguous())
    return out.to(v.dtype), lse * math.log2(math.e)


def _check_pair(*named: tuple[str, torch.Tensor]) -> None:
    (_, v), (s_name, s), (other_name, other), (other_s_name, other_s) = named
    for name, tensor in named:
        check_tensor(name, tensor)
    if v.dim() != 3:
        raise InputError(f"{named[0][0]} is {describe(v)}; give [tokens, heads, dim]")
    check_sizes(s_name, s, tuple(v.shape[:2]), named[0][0])
    check_sizes(other_name, other, tuple(v.shape), named[0][0])
    check_sizes(other_s_name, other_s, tuple(v.shape[:2]), named[0][0])
    if other.dtype != v.dtype:
        raise InputError(f"{other_name} is {other.dtype} and {named[0][0]} {v.dtype}; give one dtype")
