"""Sampling in PyTorch, one formula after another: the naive twin of the kernel.

The Gumbel-max trick draws from softmax(l) as argmax(l + g), g = -log(-log u) (Gumbel 1954; Maddison
et al. 2014, arXiv 1411.0030). The uniform u is a hash of (seed, position, token id).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ridgeline.engine.sampling import Sampling

# SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), in int64,
# whose products wrap like those of uint64.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)

#: Bits of a uniform number: with half a step added it is exact in float64, never 0 and never 1.
_UNIFORM_BITS = 52


def draw(
    logits: torch.Tensor, sampling: Sampling, seeds: Sequence[int], positions: Sequence[int]
) -> torch.Tensor:
    """A token for each row of float32 ``logits`` [rows, vocab]: int64 [rows].

    ``seeds`` stand in for the sampling's own; a position is the place in its sequence that the token takes.
    """
    scores, tokens = candidates(logits, sampling)
    best = (scores + gumbel_noise(seeds, positions, tokens)).argmax(-1, keepdim=True)
    return tokens.gather(-1, best).squeeze(-1)


def candidates(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """What to draw from: float32 scores and int64 token ids, both [rows, n] with n at most vocab.

    A score is the logit divided by the temperature, the row's largest made 0; -inf where top-p or min-p
    drops the token. Top-p counts the probabilities of what top-k left.
    """
    scores = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    vocab = logits.shape[-1]
    if sampling.top_k or sampling.top_p < 1:
        scores, tokens = scores.topk(min(sampling.top_k or vocab, vocab))
    else:
        tokens = torch.arange(vocab, device=logits.device).expand_as(scores)
    if sampling.top_p < 1:
        probabilities = scores.softmax(-1)
        likelier = probabilities.cumsum(-1) - probabilities
        scores = scores.masked_fill(likelier >= sampling.top_p, -torch.inf)
    if sampling.min_p > 0:
        scores = scores.masked_fill(scores < math.log(sampling.min_p), -torch.inf)
    return scores, tokens


def gumbel_noise(seeds: Sequence[int], positions: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise in float64 for int64 ``tokens`` [rows, n]: same shape.

    An element depends on its row's seed and position and on its token alone: they are hashed to the
    state of a SplitMix64 generator, whose number ``token + 1`` is taken.
    """
    seed = torch.tensor(seeds, dtype=torch.int64, device=tokens.device)
    position = torch.tensor(positions, dtype=torch.int64, device=tokens.device)
    state = mix(mix(seed + _STEP) + position * _STEP)
    bits = _shift(mix((tokens + 1) * _STEP + state[:, None]), 64 - _UNIFORM_BITS)
    uniform = (bits.double() + 0.5) * 2.0**-_UNIFORM_BITS
    return uniform.log_().neg_().log_().neg_()


def mix(z: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function of int64 ``z``: a bijection that scatters its bits."""
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """z >> bits without the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
