"""Filters of probabilities and of logits, float32 or bfloat16 ``[rows, vocab]``, and a softmax.

``top_k`` and ``top_p`` are a number for all rows or ``[rows]`` of them, above 0; a p is at most 1. All raise
InputError that names the argument for a wrong dtype, shape, device or range.
"""

from __future__ import annotations

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.checks import check_matrix, describe

Numbers = float | torch.Tensor


def softmax(
    logits: torch.Tensor, temperature: Numbers | None = None, enable_pdl: bool | None = None
) -> torch.Tensor:
    """softmax(logits / temperature), float32 ``[rows, vocab]``.

    ``temperature``: above 0, a number or ``[rows]`` of them; None is 1. ``enable_pdl``: accepted, and changes
    nothing.
    """
    check_matrix("logits", logits)
    by = column("temperature", 1.0 if temperature is None else temperature, len(logits))
    if not bool((by > 0).all()):
        raise InputError(f"temperature is {temperature}; give numbers above 0")
    return torch.softmax(logits.float() / by.float(), -1)


def top_k_renorm_probs(probs: torch.Tensor, top_k: Numbers) -> torch.Tensor:
    """``probs`` with the ``top_k`` likeliest tokens alone, adding up to 1; probs' shape and dtype.

    ``probs``: float32 or bfloat16 ``[rows, vocab]``.
    """
    check_matrix("probs", probs)
    check_top_k(top_k)
    return _renormalised(probs, ranks(probs) < column("top_k", top_k, len(probs)))


def top_p_renorm_probs(probs: torch.Tensor, top_p: Numbers) -> torch.Tensor:
    """``probs`` with the likeliest tokens alone that together reach ``top_p``, adding up to 1."""
    check_matrix("probs", probs)
    return _renormalised(probs, kept_by_top_p(probs, column("top_p", top_p, len(probs))))


def top_k_mask_logits(logits: torch.Tensor, top_k: Numbers) -> torch.Tensor:
    """``logits`` with -inf at all but the ``top_k`` largest; logits' shape and dtype, float32 or bfloat16."""
    check_matrix("logits", logits)
    check_top_k(top_k)
    return logits.masked_fill(ranks(logits) >= column("top_k", top_k, len(logits)), -torch.inf)


def check_top_k(top_k: Numbers) -> None:
    k = _numbers("top_k", top_k)
    if not bool(((k > 0) & (k == k.floor())).all()):
        raise InputError(f"top_k is {top_k}; give whole numbers above 0")


def _numbers(name: str, value: Numbers) -> torch.Tensor:
    try:
        return torch.as_tensor(value, dtype=torch.float64)
    except (RuntimeError, TypeError, ValueError):
        raise InputError(f"{name} is {value!r}; give a number, or one for each row") from None


def column(name: str, value: Numbers, rows: int) -> torch.Tensor:
    """A number, or ``[rows]`` of them, as float64 [.., 1]."""
    given = _numbers(name, value)
    if given.shape not in ((), (rows,)):
        raise InputError(f"{name} is {describe(given)}; give a number or [{rows}] of them")
    return given[..., None]


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """How many of its row come before each element, by size and then by place."""
    return torch.argsort(scores, dim=-1, descending=True, stable=True).argsort(-1)


def kept_by_top_p(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Whether the likelier tokens' probabilities do not reach ``top_p`` yet."""
    if not bool(((top_p > 0) & (top_p <= 1)).all()):
        raise InputError("top_p is out of range; give numbers above 0 and at most 1")
    ordered, order = torch.sort(probs.double(), stable=True, dim=-1, descending=True)
    likelier = ordered.cumsum(-1) - ordered
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, likelier < top_p)


def _renormalised(probs: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    left = probs.double() * kept
    total = left.sum(-1, keepdim=True)
    if not bool((total > 0).all()):
        raise InputError("probs has a row that does not add up to more than 0; give probabilities")
    return (left / total).to(probs.dtype)
