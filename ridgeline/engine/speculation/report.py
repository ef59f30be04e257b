"""What speculation did, and what it gained."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from ridgeline.engine.speculation.length import Step, StepCosts, expected_tokens


@dataclass(frozen=True)
class Outcome:
    """What became of a proposal of ``proposed`` tokens: those before the first that was not accepted, and
    how many tokens the sequence got, which may have ended before."""

    proposed: int
    accepted: int
    tokens: int

    @property
    def judged(self) -> int:
        return min(self.accepted + 1, self.proposed)


@dataclass(frozen=True)
class SpeculationReport:
    """Since the engine began. A *trial* is one sequence's proposal in one step.

    - ``judged`` of the ``proposed`` tokens came after accepted ones alone, ``accepted`` were accepted.
    - ``measured_gain``: what the tokens of all decoding steps would have taken without speculation, by the
      time of plain steps at their best, over what they took. None until both have been measured.
    - ``predicted_gain``: the same ratio from the acceptance and the costs of steps alone, by
      (1 - a^(k+1)) / (1 - a) tokens for k proposed.
    - ``draft_seconds``: for which steps waited for proposals, in total.
    """

    trials: int
    proposed: int
    judged: int
    accepted: int
    draft_seconds: float
    measured_gain: float | None
    predicted_gain: float | None

    @property
    def acceptance(self) -> float | None:
        """The share of the judged tokens that were accepted; None if there were none."""
        return self.accepted / self.judged if self.judged else None

    @property
    def tokens_per_trial(self) -> float | None:
        """The mean accepted length, the token that the target adds included; None without any trial."""
        return self.accepted / self.trials + 1 if self.trials else None


class Tally:
    """Sums over the steps so far."""

    def __init__(self) -> None:
        self._trials = self._proposed = self._judged = self._accepted = 0
        self._draft_seconds = 0.0
        self._batches: dict[int, _Batch] = defaultdict(_Batch)

    def add_trials(self, trials: Iterable[Outcome], draft_seconds: float) -> None:
        """Count what became of a step's proposals."""
        self._draft_seconds += draft_seconds
        for trial in trials:
            self._trials += bool(trial.proposed)
            self._proposed += trial.proposed
            self._judged += trial.judged
            self._accepted += trial.accepted

    def add(self, step: Step) -> None:
        """Count a step that only decoded towards the gains."""
        batch = self._batches[step.batch]
        batch.lengths.update(step.lengths)
        batch.lengths[0] += step.count * (step.batch - len(step.lengths))
        batch.steps[step.rows, len(step.lengths), step.drafted] += step.count
        batch.tokens += step.count * step.tokens
        batch.seconds += step.count * (step.draft_seconds + step.verify_seconds)

    def report(self, costs: StepCosts) -> SpeculationReport:
        """Gains are those of the batch sizes of which there were plain steps, too."""
        compared = {n: found for n, found in self._batches.items() if costs.plain(n) is not None}
        measured = predicted = None
        if compared and self._judged:
            a = self._accepted / self._judged
            plain = {n: costs.plain(n) / n for n in compared}
            taken = sum(found.seconds for found in compared.values())
            would = sum(found.tokens * plain[n] for n, found in compared.items())
            expected = sum(found.expected_tokens(a) * plain[n] for n, found in compared.items())
            predicted_seconds = sum(found.predicted_seconds(n, costs) for n, found in compared.items())
            measured = would / taken if taken else None
            predicted = expected / predicted_seconds if predicted_seconds else None
        return SpeculationReport(
            self._trials,
            self._proposed,
            self._judged,
            self._accepted,
            self._draft_seconds,
            measured,
            predicted,
        )


@dataclass
class _Batch:
    """Steps of one batch size: how many drafts there were of each length, 0 included, and how many steps of
    each number of rows, of drafts and of the longest one's tokens; the tokens and seconds of all."""

    lengths: Counter[int] = field(default_factory=Counter)
    steps: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    tokens: int = 0
    seconds: float = 0.0

    def expected_tokens(self, acceptance: float) -> float:
        return sum(count * expected_tokens(acceptance, length) for length, count in self.lengths.items())

    def predicted_seconds(self, batch: int, costs: StepCosts) -> float:
        return sum(count * costs.measured(batch, *kind) for kind, count in self.steps.items())
