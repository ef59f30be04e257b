"""Choosing the next tokens from logits: greedy, or by noise that belongs to the request.

The Gumbel-max trick draws from softmax(l) as argmax(l + g), g = -log(-log u) (Gumbel 1954; Maddison
et al. 2014, arXiv 1411.0030). The uniform u is a hash of (seed, position, token id), so a draw depends
on nothing else: not on the other rows, not on how the prompt was cut, not on what was drawn before.

Order: repetition, frequency and presence penalties, bias, temperature, top-k, top-p, min-p, draw; where
transformers has the same, its order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import replace

import torch

from ridgeline.engine.result import Logprobs
from ridgeline.engine.sampling import Sampling
from ridgeline.engine.sequence import Sequence

# SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), in int64,
# whose products wrap like those of uint64.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)

#: Elements whose noise is computed in one go: few enough that the steps in between stay in a core's cache.
_AT_ONCE = 1 << 15

#: Bits of a uniform number: with half a step added it is exact in float64, never 0 and never 1.
_UNIFORM_BITS = 52


def choose_tokens(logits: torch.Tensor, sequences: Items[Sequence]) -> list[int]:
    """The next token of each sequence from its row of ``logits``, [sequences, vocab] of any float dtype.

    All is computed in float32, the noise in float64. Of equal logits greedy takes the lowest id.
    """
    logits = penalised(logits.float(), sequences)
    chosen = logits.argmax(-1)
    for sampling, rows in _rows_by_sampling(sequences).items():
        seeds = [sequences[row].sampling.seed for row in rows]
        positions = [len(sequences[row].tokens) for row in rows]
        chosen[rows] = draw(logits[rows], sampling, seeds, positions)
    return chosen.tolist()


def choose_continuations(
    logits: torch.Tensor, sequences: Items[Sequence], count: int
) -> list[list[tuple[int, float]]]:
    """The ``count`` likeliest tokens after each beam with their log-probabilities, the likeliest first."""
    logprobs = penalised(logits.float(), sequences).log_softmax(-1)
    values, tokens = logprobs.topk(min(count, logprobs.shape[-1]))
    return [
        list(zip(ids, row, strict=True)) for ids, row in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def logprobs_of(logits: torch.Tensor, chosen: int, top: int) -> Logprobs:
    """Those of the ``chosen`` token and of the ``top`` likeliest, from one row of logits [vocab]."""
    logprobs = logits.float().log_softmax(-1)
    values, tokens = logprobs.topk(min(top, len(logprobs)))
    best = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return Logprobs(float(logprobs[chosen]), best)


def draw(logits: torch.Tensor, sampling: Sampling, seeds: Items[int], positions: Items[int]) -> torch.Tensor:
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
    vocab = logits.shape[-1]
    if sampling.top_k or sampling.top_p < 1:
        logits, tokens = logits.topk(min(sampling.top_k or vocab, vocab))
    else:
        tokens = torch.arange(vocab, device=logits.device).expand_as(logits)
    scores = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_p < 1:
        probabilities = scores.softmax(-1)
        likelier = probabilities.cumsum(-1) - probabilities
        scores = scores.masked_fill(likelier >= sampling.top_p, -torch.inf)
    if sampling.min_p > 0:
        scores = scores.masked_fill(scores < math.log(sampling.min_p), -torch.inf)
    return scores, tokens


def gumbel_noise(seeds: Items[int], positions: Items[int], tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise in float64 for int64 ``tokens`` [rows, n]: same shape.

    An element depends on its row's seed and position and on its token alone: they are hashed to the
    state of a SplitMix64 generator, whose number ``token + 1`` is taken.
    """
    seed = torch.tensor(seeds, dtype=torch.int64, device=tokens.device)
    position = torch.tensor(positions, dtype=torch.int64, device=tokens.device)
    state = mix(mix(seed + _STEP) + position * _STEP)
    noise = torch.empty(tokens.shape, dtype=torch.float64, device=tokens.device)
    rows = max(1, _AT_ONCE // max(1, tokens.shape[-1]))
    for part, own, out in zip(tokens.split(rows), state.split(rows), noise.split(rows), strict=True):
        bits = _shift(mix((part + 1).mul_(_STEP).add_(own[:, None])), 64 - _UNIFORM_BITS)
        out.copy_(bits).add_(0.5).mul_(2.0**-_UNIFORM_BITS).log_().neg_().log_().neg_()
    return noise


def mix(z: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function of int64 ``z``, in place: a bijection that scatters its bits."""
    z.bitwise_xor_(_shift(z, 30)).mul_(_FIRST)
    z.bitwise_xor_(_shift(z, 27)).mul_(_SECOND)
    return z.bitwise_xor_(_shift(z, 31))


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """z >> bits without the sign."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def penalised(logits: torch.Tensor, sequences: Items[Sequence]) -> torch.Tensor:
    """Float32 ``logits`` [sequences, vocab] after each sequence's penalties and biases, which change a copy.

    The repetition penalty (Keskar et al. 2019, arXiv 1909.05858) is on tokens of the prompt and output; with
    c the times that a token is in the output, frequency and presence penalties take off
    c * frequency + (c > 0) * presence, as OpenAI's API defines them.
    """
    if not any(_changes_logits(sequence.sampling) for sequence in sequences):
        return logits
    logits = logits.clone()
    for row, sequence in zip(logits, sequences, strict=True):
        sampling = sequence.sampling
        if sampling.repetition_penalty != 1:
            seen = torch.tensor(sequence.tokens, device=row.device)
            penalty = sampling.repetition_penalty
            row[seen] = torch.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
        if sampling.frequency_penalty or sampling.presence_penalty:
            output = torch.tensor(sequence.output, dtype=torch.int64, device=row.device)
            tokens, times = output.unique(return_counts=True)
            row[tokens] -= times * sampling.frequency_penalty + sampling.presence_penalty
        for token, bias in sampling.logit_bias:
            row[token] += bias
    return logits


def _changes_logits(sampling: Sampling) -> bool:
    return bool(
        sampling.repetition_penalty != 1
        or sampling.frequency_penalty
        or sampling.presence_penalty
        or sampling.logit_bias
    )


def _rows_by_sampling(sequences: Items[Sequence]) -> dict[Sampling, list[int]]:
    """The rows that are sampled, those that differ in their seeds alone together."""
    groups: dict[Sampling, list[int]] = {}
    for row, sequence in enumerate(sequences):
        if not sequence.sampling.greedy:
            groups.setdefault(replace(sequence.sampling, seed=0), []).append(row)
    return groups
