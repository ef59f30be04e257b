"""Beam search: which continuations live on, which have finished, and when to stop.

The rules are those of transformers. At every step the best of all continuations by their summed
log-probability are taken, enough of them that ``width`` go on whatever ends; one that ends counts only
if it is among the first ``width``. Nothing here imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ridgeline.engine.request import FinishReason, Request


@dataclass(frozen=True)
class Hypothesis:
    """A finished output, and its log-probability / length ** length_penalty."""

    ids: tuple[int, ...]
    score: float
    finish_reason: FinishReason


@dataclass(frozen=True)
class Branch:
    """The beam at place ``parent`` goes on with ``token``."""

    parent: int
    token: int


class Beams:
    """The search for the best outputs of ``request``: the log-probabilities of the running beams, and the
    ``finished`` ones, the best first, at most as many as the search is wide."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.options = request.beams
        self.logprobs = [0.0]
        self.finished: list[Hypothesis] = []

    @property
    def candidates(self) -> int:
        """How many continuations of each beam :meth:`advance` has to see."""
        return max(2, 1 + len(self.request.stop_ids)) * self.options.width

    def advance(
        self, outputs: Sequence[Sequence[int]], continuations: Sequence[Sequence[tuple[int, float]]]
    ) -> list[Branch]:
        """What the next beams are, the best first; none if the search is over.

        ``outputs`` are those of the running beams so far, ``continuations`` the likeliest tokens after each
        with their log-probabilities, :attr:`candidates` of them or the whole vocabulary.
        """
        width, length = self.options.width, len(outputs[0]) + 1
        ranked = sorted(
            (
                (self.logprobs[beam] + logprob, Branch(beam, token))
                for beam, tokens in enumerate(continuations)
                for token, logprob in tokens
            ),
            key=lambda found: -found[0],
        )[: self.candidates]
        running: list[tuple[float, Branch]] = []
        for rank, (logprob, branch) in enumerate(ranked):
            reason = self._ends(branch.token, length)
            if reason is None:
                running.append((logprob, branch))
            elif rank < width:
                ids = (*outputs[branch.parent], branch.token)
                self._finish(Hypothesis(ids, self._score(logprob, length), reason))
        running = running[:width]
        self.logprobs = [logprob for logprob, _ in running]
        return [] if self._is_over(length) else [branch for _, branch in running]

    def _ends(self, token: int, length: int) -> FinishReason | None:
        if token in self.request.stop_ids:
            return "stop"
        return "length" if length == self.request.max_tokens else None

    def _finish(self, hypothesis: Hypothesis) -> None:
        best_first = sorted([*self.finished, hypothesis], key=lambda h: -h.score)
        self.finished = best_first[: self.options.width]

    def _score(self, logprob: float, length: int) -> float:
        return logprob / length**self.options.length_penalty

    def _is_over(self, length: int) -> bool:
        """Whether no running beam is left or wanted, ``length`` tokens into the output."""
        if not self.logprobs:
            return True
        if len(self.finished) < self.options.width:
            return False
        if self.options.early_stopping is True:
            return True
        at_any_length = self.options.early_stopping == "never" and self.options.length_penalty > 0
        longest = self.request.max_tokens if at_any_length else length
        return self._score(self.logprobs[0], longest) <= self.finished[-1].score
