"""FlashInfer's sampling: tokens from probabilities or logits, and filters of both.

What all the functions that draw share:

- ``probs`` or ``logits``: float32 ``[rows, vocab]``. Probabilities need not add up to 1. 0 and -inf rule a
  token out; a row that rules all out is refused.
- ``indices``: int32 or int64 ``[batch]``, the row that each token is drawn from, and the dtype of the result;
  None takes each row once, and gives int32.
- ``top_k``, ``top_p``, ``min_p``: a number for all, or ``[batch]`` of them; ranges (0, vocab], (0, 1], [0,
  1].
- ``seed``, ``offset``: ints, or int64 ``[1]`` or ``[batch]``. Token i of a call is a function of its row,
  seed, offset and i alone, so raise ``offset`` from call to call (from 0, by 1 will do). Without a seed it
  comes from ``generator``, a torch.Generator of the CPU, or else from PyTorch's own.
  :func:`ridgeline.kernels.sample` draws with noise that does not depend on i.
- ``deterministic``: accepted; every result is. ``check_nan``: accepted; a NaN is always refused.

The distribution is FlashInfer's, the noise is not. Of equally likely tokens the lowest ids stay, so that
top-k keeps exactly k; FlashInfer may keep all that are as likely as the last.

All raise InputError that names the argument for a wrong dtype, shape, device or range.
"""

from __future__ import annotations

import torch

from ridgeline.compat.arguments import theirs
from ridgeline.compat.flashinfer.filters import (
    Numbers,
    check_top_k,
    column,
    kept_by_top_p,
    ranks,
    softmax,
    top_k_mask_logits,
    top_k_renorm_probs,
    top_p_renorm_probs,
)
from ridgeline.compat.flashinfer.noise import Seed, draw
from ridgeline.compat.flashinfer.speculative import chain_speculative_sampling
from ridgeline.errors import InputError
from ridgeline.kernels.attention_arguments import integers
from ridgeline.kernels.checks import check_matrix

__all__ = [
    "chain_speculative_sampling",
    "min_p_sampling_from_probs",
    "sampling_from_logits",
    "sampling_from_probs",
    "softmax",
    "top_k_mask_logits",
    "top_k_renorm_probs",
    "top_k_sampling_from_probs",
    "top_k_top_p_sampling_from_logits",
    "top_k_top_p_sampling_from_probs",
    "top_p_renorm_probs",
    "top_p_sampling_from_probs",
]


def sampling_from_logits(
    logits: torch.Tensor,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: Seed | None = None,
    offset: Seed | None = None,
) -> torch.Tensor:
    """Tokens drawn from softmax(logits): ``[batch]``. The module's text says what the arguments are."""
    return _sample(logits, indices, generator, seed, offset)


def sampling_from_probs(
    probs: torch.Tensor,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: Seed | None = None,
    offset: Seed | None = None,
) -> torch.Tensor:
    """Tokens drawn from ``probs``: ``[batch]``. The module's text says what the arguments are."""
    with theirs(logits="probs"):
        return _sample(_log(probs), indices, generator, seed, offset)


def top_k_sampling_from_probs(
    probs: torch.Tensor,
    top_k: Numbers,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: Seed | None = None,
    offset: Seed | None = None,
) -> torch.Tensor:
    """As :func:`sampling_from_probs`, of the ``top_k`` likeliest tokens."""
    with theirs(logits="probs"):
        check_top_k(top_k)
        return _sample(_log(probs), indices, generator, seed, offset, top_k=top_k)


def top_p_sampling_from_probs(
    probs: torch.Tensor,
    top_p: Numbers,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: Seed | None = None,
    offset: Seed | None = None,
) -> torch.Tensor:
    """As :func:`sampling_from_probs`, of the likeliest tokens that together reach ``top_p``; at least one."""
    with theirs(logits="probs"):
        return _sample(_log(probs), indices, generator, seed, offset, top_p=top_p)


def min_p_sampling_from_probs(
    probs: torch.Tensor,
    min_p: Numbers,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: Seed | None = None,
    offset: Seed | None = None,
) -> torch.Tensor:
    """As :func:`sampling_from_probs`, of tokens at least ``min_p`` times as likely as the likeliest."""
    with theirs(logits="probs"):
        return _sample(_log(probs), indices, generator, seed, offset, min_p=min_p)


def top_k_top_p_sampling_from_probs(
    probs: torch.Tensor,
    top_k: Numbers,
    top_p: Numbers,
    indices: torch.Tensor | None = None,
    filter_apply_order: str = "top_k_first",
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: Seed | None = None,
    offset: Seed | None = None,
) -> torch.Tensor:
    """As :func:`sampling_from_probs`, of tokens that top-k and top-p both keep.

    ``filter_apply_order``: ``top_k_first`` counts top-p's shares among what top-k keeps, ``joint`` among all.
    """
    with theirs(logits="probs"):
        return _top_k_top_p(_log(probs), top_k, top_p, filter_apply_order, indices, generator, seed, offset)


def top_k_top_p_sampling_from_logits(
    logits: torch.Tensor,
    top_k: Numbers,
    top_p: Numbers,
    indices: torch.Tensor | None = None,
    filter_apply_order: str = "top_k_first",
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: Seed | None = None,
    offset: Seed | None = None,
) -> torch.Tensor:
    """As :func:`top_k_top_p_sampling_from_probs`, of softmax(logits)."""
    return _top_k_top_p(logits, top_k, top_p, filter_apply_order, indices, generator, seed, offset)


def _top_k_top_p(
    logits: torch.Tensor,
    top_k: Numbers,
    top_p: Numbers,
    order: str,
    indices: torch.Tensor | None,
    *noise: object,
) -> torch.Tensor:
    check_top_k(top_k)
    if order == "top_k_first":
        return _sample(logits, indices, *noise, top_k=top_k, top_p=top_p)
    if order != "joint":
        raise InputError(f"filter_apply_order is {order!r}; choose one of: top_k_first, joint")
    check_matrix("logits", logits)
    chosen = logits if indices is None else logits[_rows(indices, len(logits))]
    kept = kept_by_top_p(chosen.softmax(-1), column("top_p", top_p, len(chosen)))
    kept &= ranks(chosen) < column("top_k", top_k, len(chosen))
    tokens = _sample(chosen.masked_fill(~kept, -torch.inf), None, *noise)
    return tokens if indices is None else tokens.to(indices.dtype)


def _sample(
    logits: torch.Tensor,
    indices: torch.Tensor | None,
    generator: torch.Generator | None,
    seed: Seed | None,
    offset: Seed | None,
    **filters: object,
) -> torch.Tensor:
    check_matrix("logits", logits)
    if indices is None:
        return draw(logits, generator, seed, offset, **filters).int()
    chosen = logits[_rows(indices, len(logits))]
    return draw(chosen, generator, seed, offset, **filters).to(indices.dtype)


def _rows(indices: torch.Tensor, rows: int) -> torch.Tensor:
    found = integers("indices", indices, 1, torch.int64)
    if len(found) and not 0 <= int(found.min()) <= int(found.max()) < rows:
        raise InputError(f"indices name rows that are not there; give 0 to {rows - 1}")
    return found


def _log(probs: torch.Tensor) -> torch.Tensor:
    """Logits of float32 ``probs`` [rows, vocab]."""
    check_matrix("probs", probs)
    if probs.dtype != torch.float32:
        raise InputError(f"probs is {probs.dtype}; give torch.float32")
    if bool((probs < 0).any()):
        raise InputError("probs has negative numbers; give probabilities")
    return probs.log()
