"""Padding taken out of a batch and put back, so that nothing is computed for it.

Where each kept token goes is the exclusive prefix sum of the mask over the flattened batch: any mask will do,
not only a prefix, and a sequence may have no tokens at all. Gradients pass through both functions.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from ridgeline.errors import InputError
from ridgeline.kernels.checks import describe


def unpad_input(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor, unused_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor]:
    """The tokens that a mask keeps, packed: (hidden_states, indices, cu_seqlens, max_seqlen, seqused).

    - ``hidden_states``: ``[batch, seqlen, ...]`` of any dtype.
    - ``attention_mask``: bool or integers ``[batch, seqlen]``; what is not 0 is kept.
    - ``unused_mask``: the same, of tokens that are kept besides but count as unused.

    Returns ``[total, ...]`` kept states in order; int64 ``indices [total]``, each one's place in the
    flattened batch; int32 ``cu_seqlens [batch + 1]``, where each sequence begins, and the last one ends; the
    longest sequence; int32 ``seqused [batch]``, the tokens of each sequence that ``attention_mask`` keeps.

    Raises InputError for a mask of another shape.
    """
    kept = used = _mask("attention_mask", attention_mask, hidden_states)
    if unused_mask is not None:
        kept = used | _mask("unused_mask", unused_mask, hidden_states)
    lengths = kept.sum(1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    return (
        hidden_states.flatten(0, 1)[indices],
        indices,
        pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
        max(lengths.tolist(), default=0),
        used.sum(1, dtype=torch.int32),
    )


def pad_input(hidden_states: torch.Tensor, indices: torch.Tensor, batch: int, seqlen: int) -> torch.Tensor:
    """The inverse of :func:`unpad_input`: ``[batch, seqlen, ...]``, 0 where no token goes.

    - ``hidden_states``: ``[total, ...]``.
    - ``indices``: int64 ``[total]``, from 0 to batch x seqlen - 1, as :func:`unpad_input` returns them.

    Raises InputError for indices of another number, dtype or range.
    """
    if indices.dtype != torch.int64 or indices.shape != hidden_states.shape[:1]:
        raise InputError(f"indices is {describe(indices)}; give int64 {list(hidden_states.shape[:1])}")
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < batch * seqlen:
        raise InputError(f"indices reach outside of the batch; give numbers from 0 to {batch * seqlen - 1}")
    padded = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    return padded.index_put((indices,), hidden_states).unflatten(0, (batch, seqlen))


def _mask(name: str, mask: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
    if mask.dim() != 2 or mask.shape != hidden_states.shape[:2]:
        raise InputError(
            f"{name} is {describe(mask)} and hidden_states {describe(hidden_states)}; give a mask [batch, "
            "seqlen] of its first two dimensions"
        )
    return mask != 0
