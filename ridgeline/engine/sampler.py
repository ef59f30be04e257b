"""Choosing the next tokens from logits: penalties and biases, then the sampling kernel, or the likeliest.

A token's noise is a hash of its request's seed, its position and itself (``ridgeline.kernels.sample``), so a
draw depends on nothing else: not on the other rows, not on how the prompt was cut, not on what was drawn
before.

Order: repetition, frequency and presence penalties, bias, what a grammar forbids, temperature, top-k, top-p,
min-p, draw; where transformers has the same, its order.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch

from ridgeline import kernels
from ridgeline.engine.result import Logprobs
from ridgeline.engine.sampling import Sampling
from ridgeline.engine.sequence import Lookahead, Sequence
from ridgeline.errors import InputError

#: What a token is chosen after.
Context = Sequence | Lookahead


def choose_tokens(logits: torch.Tensor, sequences: Items[Context]) -> list[int]:
    """The next token of each sequence from its row of ``logits``, [sequences, vocab] of any float dtype.

    All is computed in float32, the noise in float64. Of equal logits greedy takes the lowest id. Raises
    InputError for a row that holds a NaN, and where a grammar allows no token.
    """
    options = [sequence.sampling for sequence in sequences]
    chosen = kernels.sample(
        penalised(logits.float(), sequences),
        [option.temperature for option in options],
        [option.seed for option in options],
        [sequence.position for sequence in sequences],
        top_k=[option.top_k for option in options],
        top_p=[option.top_p for option in options],
        min_p=[option.min_p for option in options],
    )
    return chosen.tolist()


def distributions(logits: torch.Tensor, contexts: Items[Context]) -> torch.Tensor:
    """The probabilities that :func:`choose_tokens` draws each row with: float32 [rows, vocab], on the CPU."""
    logits = penalised(logits.float(), contexts).cpu()
    options = [context.sampling for context in contexts]
    temperatures = _column([option.temperature or 1.0 for option in options])
    scores = (logits - logits.amax(-1, keepdim=True)) / temperatures
    if any(option.top_k or option.top_p < 1 or option.min_p for option in options):
        scores = _cut(scores, options)
    likeliest = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return torch.where(_column([option.greedy for option in options]), likeliest, scores.softmax(-1))


def _cut(scores: torch.Tensor, options: Items[Sampling]) -> torch.Tensor:
    """``scores`` [rows, vocab] with -inf for what top-k, top-p and min-p rule out."""
    vocab = scores.shape[-1]
    ordered, tokens = scores.sort(dim=-1, descending=True, stable=True)
    most = _column([option.top_k or vocab for option in options])
    ordered = ordered.masked_fill(torch.arange(vocab) >= most, -torch.inf)
    probabilities = ordered.double().softmax(-1)
    likelier = probabilities.cumsum(-1) - probabilities
    dropped = likelier >= _column([option.top_p if option.top_p < 1 else torch.inf for option in options])
    dropped |= probabilities < _column([option.min_p for option in options]) * probabilities[:, :1]
    return torch.empty_like(scores).scatter_(-1, tokens, ordered.masked_fill(dropped, -torch.inf))


def _column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def choose_continuations(
    logits: torch.Tensor, sequences: Items[Sequence], count: int
) -> list[list[tuple[int, float]]]:
    """The ``count`` likeliest tokens after each beam with their log-probabilities, the likeliest first."""
    logprobs = penalised(logits.float(), sequences).log_softmax(-1)
    values, tokens = logprobs.topk(min(count, logprobs.shape[-1]))
    if values.isnan().any():
        raise InputError("logits holds a NaN; nothing can be chosen from it")
    return [
        list(zip(ids, row, strict=True)) for ids, row in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def logprobs_of(logits: torch.Tensor, chosen: int, top: int) -> Logprobs:
    """Those of the ``chosen`` token and of the ``top`` likeliest, from one row of logits [vocab]."""
    logprobs = logits.float().log_softmax(-1)
    values, tokens = logprobs.topk(min(top, len(logprobs)))
    best = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return Logprobs(float(logprobs[chosen]), best)


def penalised(logits: torch.Tensor, sequences: Items[Context]) -> torch.Tensor:
    """Float32 ``logits`` [sequences, vocab] after each sequence's penalties, biases and grammar, which change
    a copy.

    The repetition penalty (Keskar et al. 2019, arXiv 1909.05858) is on tokens of the prompt and output; with
    c the times that a token is in the output, frequency and presence penalties take off
    c * frequency + (c > 0) * presence, as OpenAI's API defines them. Raises InputError where a grammar allows
    no token.
    """
    if not any(_changes_logits(sequence) for sequence in sequences):
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
        if sequence.matcher is not None:
            _rule_out(row, sequence)
    return logits


def _rule_out(row: torch.Tensor, sequence: Context) -> None:
    """Sets what the grammar of ``sequence`` forbids to -inf in its ``row`` of logits."""
    mask = sequence.matcher.allowed(sequence.output, sequence.request.stop_ids)
    if mask is None:  # behind a proposal that the grammar forbids: the row is never reached
        return
    allowed = torch.frombuffer(mask, dtype=torch.uint8)[: len(row)].to(row.device)
    row[: len(allowed)].masked_fill_(allowed == 0, -torch.inf)
    row[len(allowed) :] = -torch.inf  # a padded vocabulary: ids without a token


def _changes_logits(sequence: Context) -> bool:
    sampling = sequence.sampling
    return sequence.matcher is not None or bool(
        sampling.repetition_penalty != 1
        or sampling.frequency_penalty
        or sampling.presence_penalty
        or sampling.logit_bias
    )
