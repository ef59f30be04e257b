"""How far 100,000 drawn tokens are from a distribution."""

from __future__ import annotations

import torch

DRAWS = 100_000
#: What a true hypothesis exceeds once in ten thousand times, by degrees of freedom.
LIMITS = {3: 21.11, 4: 23.51, 7: 29.88, 19: 50.80}


def chi_square(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Pearson's statistic over the tokens that can be drawn; infinite if another one was."""
    counts = torch.bincount(tokens.long(), minlength=len(probabilities)).double()
    possible = probabilities > 0
    if bool(counts[~possible].any()):
        return float("inf")
    expected = probabilities[possible].double() * len(tokens)
    return float(((counts[possible] - expected) ** 2 / expected).sum())


def follows(tokens: torch.Tensor, probabilities: torch.Tensor) -> bool:
    """Whether tokens may have been drawn from probabilities."""
    return chi_square(tokens, probabilities) < LIMITS[int((probabilities > 0).sum()) - 1]
