"""Speculative sampling along a chain of drafted tokens (Leviathan et al. 2023; Chen et al. 2023)."""

from __future__ import annotations

import torch

from ridgeline import kernels
from ridgeline.compat.flashinfer.noise import Seed, counters
from ridgeline.errors import InputError
from ridgeline.kernels.attention_arguments import check_sizes, integers
from ridgeline.kernels.checks import check_tensor, describe


def chain_speculative_sampling(
    draft_probs: torch.Tensor,
    draft_token_ids: torch.Tensor,
    target_probs: torch.Tensor,
    maybe_output_accepted_token_num: torch.Tensor | None = None,
    maybe_output_emitted_draft_token_num: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    seed: Seed | None = None,
    offset: Seed | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens with the target's distribution from drafted ones: (tokens, accepted, emitted).

    - ``draft_probs``: float32 ``[batch, n, vocab]``, what the drafted tokens were drawn from.
    - ``draft_token_ids``: int32 ``[batch, n]``.
    - ``target_probs``: float32 ``[batch, n + 1, vocab]``.
    - ``maybe_output_accepted_token_num``, ``maybe_output_emitted_draft_token_num``: int32 ``[batch]``, to
      which the counts are added in place; new zeros if None.
    - ``seed``, ``offset``, ``generator``, ``deterministic``: see :mod:`ridgeline.compat.flashinfer.sampling`.

    A drafted token t is accepted with probability min(1, target(t) / draft(t)). At the first that is not, a
    token is drawn from max(target - draft, 0) and the sequence ends; if none is rejected one more is drawn
    from the target. ``tokens``: int32 ``[batch, n + 1]``, -1 after the end. ``emitted``: drafted tokens
    before the end. ``accepted``: drafted tokens that pass, the end not considered.

    Raises InputError that names the argument for a wrong dtype, shape, device or range.
    """
    _check(draft_probs, draft_token_ids, target_probs)
    batch, n = draft_token_ids.shape
    seeds, positions = counters(batch, generator, seed, offset, draws=n + 1)

    def choose(probs: torch.Tensor, at: slice) -> torch.Tensor:
        """A choice by each row of ``probs`` [.., choices], as many as ``at`` selects of every sequence's
        draws."""
        numbers = (numbers[:, at].flatten() for numbers in (seeds, positions))
        return kernels.sample(probs.flatten(0, -2).log(), 1.0, *numbers).view(batch, -1)

    share = _passing_share(draft_probs, draft_token_ids, target_probs)
    passed = choose(torch.stack((1 - share, share), -1), slice(n)) == 1
    emitted = passed.int().cumprod(1).sum(1, dtype=torch.int32)
    last = choose(_after(draft_probs, target_probs, emitted), slice(n, None))

    column = torch.arange(n + 1)
    drafted = torch.cat((draft_token_ids.int(), torch.full((batch, 1), -1, dtype=torch.int32)), 1)
    tokens = torch.where(column < emitted[:, None], drafted, -1).scatter(
        1, emitted[:, None].long(), last.int()
    )
    accepted = passed.sum(1, dtype=torch.int32)
    return (
        tokens,
        _added(accepted, maybe_output_accepted_token_num),
        _added(emitted, maybe_output_emitted_draft_token_num),
    )


def _passing_share(draft: torch.Tensor, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """min(1, target / draft) of each drafted token [batch, n]; what the draft gave nothing passes if the
    target gives it anything."""
    at = ids.long()[..., None]
    p, q = (probs[:, : ids.shape[1]].gather(2, at)[..., 0] for probs in (target, draft))
    return torch.where(q > 0, p / q, (p > 0).float()).clamp(max=1)


def _after(draft: torch.Tensor, target: torch.Tensor, emitted: torch.Tensor) -> torch.Tensor:
    """What each sequence's last token is drawn from, [batch, 1, vocab]."""
    rows = torch.arange(len(emitted))
    wanted = target[rows, emitted]
    padded = torch.nn.functional.pad(draft, (0, 0, 0, 1))  # behind the last drafted token all is the target's
    left = (wanted - padded[rows, emitted]).clamp(min=0)
    # Rounding can leave nothing where the two are equal.
    return torch.where(left.sum(1, keepdim=True) > 0, left, wanted)[:, None]


def _added(counts: torch.Tensor, to: torch.Tensor | None) -> torch.Tensor:
    return counts if to is None else to.add_(counts)


def _check(draft: torch.Tensor, ids: torch.Tensor, target: torch.Tensor) -> None:
    for name, probs in (("draft_probs", draft), ("target_probs", target)):
        check_tensor(name, probs)
        if probs.dim() != 3 or probs.dtype != torch.float32 or probs.shape[2] == 0:
            raise InputError(f"{name} is {describe(probs)}; give float32 [batch, tokens, vocab]")
        if not bool((probs >= 0).all()):
            raise InputError(f"{name} has negative numbers or NaN; give probabilities")
    batch, n, vocab = draft.shape
    check_sizes("target_probs", target, (batch, n + 1, vocab), "draft_probs")
    found = integers("draft_token_ids", ids, 2, torch.int64)
    check_sizes("draft_token_ids", found, (batch, n), "draft_probs")
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < vocab:
        raise InputError(f"draft_token_ids holds ids beyond the vocabulary; give ids from 0 to {vocab - 1}")
