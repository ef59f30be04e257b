"""Which proposed tokens are accepted, and what takes the place of the first that is not."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch

from ridgeline import kernels
from ridgeline.engine.checks import is_finite
from ridgeline.engine.plan import Proposal
from ridgeline.engine.sampler import Context, choose_tokens, distributions, penalised
from ridgeline.engine.sampling import SEEDS
from ridgeline.engine.sequence import Lookahead, Sequence, common_prefix
from ridgeline.errors import InputError


@dataclass(frozen=True)
class Drawn:
    """A token for each row, and the float32 probabilities [rows, vocab] that they were drawn with; None where
    the rule does not ask for them."""

    tokens: list[int]
    probabilities: torch.Tensor | None = None


@dataclass(frozen=True)
class Trial:
    """The ``proposal`` for a sequence, which takes one row of logits more than it has tokens."""

    sequence: Sequence
    proposal: Proposal

    @property
    def contexts(self) -> list[Context]:
        """What each of the rows is chosen after."""
        tokens = self.proposal.tokens
        return [self.sequence, *(Lookahead(self.sequence, tokens[:i]) for i in range(1, len(tokens) + 1))]


class Rule(Protocol):
    """Draws proposals from a draft's logits, and judges them by the target's."""

    def draw(self, logits: torch.Tensor, contexts: Items[Context]) -> Drawn:
        """A token to propose after each context, from its row of a draft's ``logits``, [rows, vocab]."""

    def judge(self, logits: torch.Tensor, trials: Items[Trial]) -> list[list[int]]:
        """For each trial the proposed tokens that are accepted and one more, from ``logits`` [rows, vocab],
        those of all trials one after another.

        Raises InputError for a row that holds a NaN.
        """


@dataclass(frozen=True)
class Exact:
    """A proposed token is accepted if it is what the request's own noise picks there.

    That noise is a function of seed, position and token, so the output is what it is without speculation,
    token for token. Drafts are drawn with the same noise, which makes them agree as often as can be.
    """

    def draw(self, logits: torch.Tensor, contexts: Items[Context]) -> Drawn:
        return Drawn(choose_tokens(logits, contexts))

    def judge(self, logits: torch.Tensor, trials: Items[Trial]) -> list[list[int]]:
        chosen = iter(choose_tokens(logits, [context for trial in trials for context in trial.contexts]))
        found = []
        for trial in trials:
            tokens = [next(chosen) for _ in range(len(trial.proposal.tokens) + 1)]
            found.append(tokens[: common_prefix(tokens, trial.proposal.tokens) + 1])
        return found


@dataclass(frozen=True)
class Rejection:
    """Speculative sampling: a token x drawn from q is accepted with probability min(1, p(x) / q(x)), and else
    one is drawn from norm((p - q)+) in its place (Leviathan et al. 2023, arXiv 2211.17192).

    The tokens have the distribution of those without speculation, and are not the same ones. p and q are
    float32 after penalties, temperature and cuts. Draft, acceptance and replacement have noise of their own
    each, by seed and position; what follows accepted proposals has the request's.
    """

    def draw(self, logits: torch.Tensor, contexts: Items[Context]) -> Drawn:
        probabilities = distributions(logits, contexts)
        return Drawn(_draw(probabilities, contexts, _DRAFT), probabilities)

    def judge(self, logits: torch.Tensor, trials: Items[Trial]) -> list[list[int]]:
        lengths = [len(trial.proposal.tokens) for trial in trials]
        firsts = list(accumulate((length + 1 for length in lengths), initial=0))
        contexts = [context for trial in trials for context in trial.contexts]
        rejected = self._reject(logits, trials, firsts, contexts) if any(lengths) else {}
        whole = [i for i in range(len(trials)) if i not in rejected]
        last = [firsts[i + 1] - 1 for i in whole]
        added = choose_tokens(logits[last], [contexts[row] for row in last]) if last else []
        ends = rejected | {i: (lengths[i], token) for i, token in zip(whole, added, strict=True)}
        return [[*trial.proposal.tokens[: ends[i][0]], ends[i][1]] for i, trial in enumerate(trials)]

    def _reject(
        self, logits: torch.Tensor, trials: Items[Trial], firsts: Items[int], contexts: Items[Context]
    ) -> dict[int, tuple[int, int]]:
        """Of each trial with a rejected token the place of the first, and what is drawn instead."""
        places = [(i, place) for i, trial in enumerate(trials) for place in range(len(trial.proposal.tokens))]
        rows = [firsts[i] + place for i, place in places]
        contexts = [contexts[row] for row in rows]
        tokens = torch.tensor([trials[i].proposal.tokens[place] for i, place in places])[:, None]
        target = distributions(logits[rows], contexts)
        draft = torch.cat([_probabilities(trial.proposal, logits.shape[-1]) for trial in trials])
        noise = torch.tensor([_uniform(c.sampling.seed, c.position) for c in contexts], dtype=torch.float64)
        left = (target - draft).clamp(min=0)  # all 0 if the two are the same but for their rounding
        accepted = noise * draft.gather(1, tokens)[:, 0] < target.gather(1, tokens)[:, 0]
        first: dict[int, int] = {}
        for n, kept in enumerate((accepted | (left.sum(-1) == 0)).tolist()):
            if not kept:
                first.setdefault(places[n][0], n)
        drawn = _draw(left[list(first.values())], [contexts[n] for n in first.values()], _REPLACEMENT)
        return {i: (places[n][1], token) for (i, n), token in zip(first.items(), drawn, strict=True)}


@dataclass(frozen=True)
class Lossy:
    """A proposed token is accepted unless its probability under the target, penalties included, is below
    ``threshold``; in the place of one that is not comes what the request's noise picks.

    It changes the output: tokens are accepted that would not have been generated.

    Raises InputError unless the threshold is above 0 and at most 1.
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not (is_finite(self.threshold) and 0 < self.threshold <= 1):
            raise InputError(f"threshold is {self.threshold!r}, expected a number above 0 and at most 1")

    def draw(self, logits: torch.Tensor, contexts: Items[Context]) -> Drawn:
        return Drawn(choose_tokens(logits, contexts))

    def judge(self, logits: torch.Tensor, trials: Items[Trial]) -> list[list[int]]:
        contexts = [context for trial in trials for context in trial.contexts]
        chosen = choose_tokens(logits, contexts)
        probabilities = penalised(logits.float(), contexts).softmax(-1).cpu()
        found, first = [], 0
        for trial in trials:
            proposed = trial.proposal.tokens
            likely = [float(probabilities[first + i, token]) for i, token in enumerate(proposed)]
            accepted = next((i for i, p in enumerate(likely) if p < self.threshold), len(proposed))
            found.append([*proposed[:accepted], chosen[first + accepted]])
            first += len(proposed) + 1
        return found


def _probabilities(proposal: Proposal, vocab: int) -> torch.Tensor:
    """What the proposed tokens were drawn with, float32 [tokens, vocab]."""
    if proposal.probabilities is not None:
        return proposal.probabilities
    tokens = torch.tensor(proposal.tokens, dtype=torch.int64)
    return torch.nn.functional.one_hot(tokens, vocab).float()


# -- noise that is independent of the request's own -------------------------------------------------

_DRAFT, _ACCEPTANCE, _REPLACEMENT = 1, 2, 3
_GOLDEN_STEP = 0x9E3779B97F4A7C15
_BITS = 2**64 - 1


def _mix(z: int) -> int:
    """SplitMix64's output function (Steele, Lea and Flood 2014), as in csrc/sample/noise.h."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _BITS
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _BITS
    return z ^ (z >> 31)


def _stream(seed: int, number: int) -> int:
    """The seed of one of the streams of noise that belong to a request's seed."""
    return _mix(_mix(seed) + number * _GOLDEN_STEP & _BITS) % SEEDS


def _uniform(seed: int, position: int) -> float:
    """In [0, 1), by which a proposal for the position is accepted."""
    return (_mix(_stream(seed, _ACCEPTANCE) + position * _GOLDEN_STEP & _BITS) >> 11) * 2.0**-53


def _draw(weights: torch.Tensor, contexts: Items[Context], stream: int) -> list[int]:
    """A token of each row of ``weights`` [rows, vocab], which need not sum to 1, by a stream of noise."""
    seeds = [_stream(context.sampling.seed, stream) for context in contexts]
    positions = [context.position for context in contexts]
    return kernels.sample(weights.log(), 1.0, seeds, positions).tolist()
