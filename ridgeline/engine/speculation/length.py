"""How many tokens to propose: a fixed number, or what measured acceptance and costs say pays best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ridgeline.engine.checks import at_least_one
from ridgeline.engine.plan import NO_DRAFTS, DraftLimit
from ridgeline.engine.speculation.costs import Costs

#: Proposals after which an earlier one counts a third as much for the acceptance.
MEMORY = 100
#: What acceptance is taken to be at first, as so many proposals of which so many were accepted: hopeful.
PRIOR_JUDGED, PRIOR_ACCEPTED = 4.0, 3.0
#: Steps after which another draft length is tried, or speculation that did not pay, and after which the best
#: length is looked up again.
TRY, LOOK = 32, 8
#: What speculation may lose, in plain steps: a share of all steps, and at once at most. It may lose so many
#: at first, and save up so many of those that it gains.
SHARE, AT_FIRST, AT_MOST, AT_ONCE = 0.01, 2.0, 4.0, 3.0


@dataclass(frozen=True)
class Step:
    """What a step did that only decoded: ``batch`` sequences got ``tokens`` in ``rows`` rows.

    ``lengths`` are those of the proposals that were asked for. Of the proposed tokens ``judged`` came after
    accepted ones alone, and ``accepted`` were accepted. Drafting had to ``catch_up`` with tokens that the step
    before did not leave, which it will not next time.
    """

    batch: int
    rows: int
    tokens: int
    lengths: tuple[int, ...]
    judged: int
    accepted: int
    draft_seconds: float
    verify_seconds: float
    catch_up: bool = False

    @property
    def drafted(self) -> int:
        """Tokens of the longest proposal."""
        return max(self.lengths, default=0)


def expected_tokens(acceptance: float, proposed: int) -> float:
    """Tokens that a step gives a sequence: (1 - a^(k+1)) / (1 - a), if each of k proposed tokens is accepted
    with probability a once those before it are (Leviathan et al. 2023, arXiv 2211.17192)."""
    if acceptance == 1:
        return proposed + 1.0
    return (1 - acceptance ** (proposed + 1)) / (1 - acceptance)


class Length(Protocol):
    """Decides how much to draft, from the steps that there were and their ``costs``."""

    def limit(self, batch: int, costs: StepCosts) -> DraftLimit:
        """For the next step, in which ``batch`` sequences decode."""

    def learn(self, step: Step, costs: StepCosts) -> None:
        """Note a step, which the costs know of already."""


class StepCosts:
    """Seconds that steps took: verification by rows, and drafting by the longest draft."""

    def __init__(self) -> None:
        self.verify = Costs()
        self.draft = Costs()

    def learn(self, step: Step) -> None:
        self.verify.add(step.batch, step.rows, step.verify_seconds)
        if step.drafted and not step.catch_up:
            self.draft.add(len(step.lengths), step.drafted, step.draft_seconds)

    def plain(self, batch: int) -> float | None:
        """Seconds of a step without proposals, None if there has been none."""
        return self.verify.measured(batch, batch)

    def speculative(self, batch: int, rows: int, drafting: int, drafted: int) -> float:
        """Seconds of a step of so many rows, of a batch that there has been, drafting included."""
        return self.verify.seconds(batch, rows) + self.drafting(drafting, drafted)

    def drafting(self, drafting: int, drafted: int) -> float:
        """Seconds of drafts of ``drafted`` tokens; 0 if there have been none."""
        known = self.draft.nearest(drafting)
        if known is None or not drafted:
            return 0.0
        return self.draft.seconds(known, drafted)


@dataclass(frozen=True)
class FixedLength:
    """Always ``tokens`` proposals for each sequence. Raises InputError for less than 1."""

    tokens: int

    def __post_init__(self) -> None:
        at_least_one("tokens", self.tokens)

    def limit(self, batch: int, costs: StepCosts) -> DraftLimit:
        return DraftLimit(self.tokens, batch)

    def learn(self, step: Step, costs: StepCosts) -> None:
        """Nothing to learn."""


class AdaptiveLength:
    """The length, of ``most`` tokens at most and 0 included, that gives the most tokens a second.

    That is expected_tokens(a, k) / (seconds of drafting k tokens and of verifying k + 1 rows), with what was
    measured. One step of a batch size never seen is plain, to compare with. Now and then a neighbouring
    length is tried, and a plain step; where nothing pays, one proposal for one sequence.

    Whatever is measured, speculation may lose only so much (SHARE): what it loses is booked step by step
    against what it gained before, and beyond that steps are plain until a share of them has made up for it.

    Raises InputError for a number below 1.
    """

    def __init__(self, most: int = 8) -> None:
        self.most = at_least_one("most", most)
        self._judged, self._accepted = PRIOR_JUDGED, PRIOR_ACCEPTED
        self._allowed = AT_FIRST
        self._best: dict[int, int] = {}
        self._since_look = 0
        self._since_try = 0
        self._tries = 0

    @property
    def acceptance(self) -> float:
        """The chance of a token to be accepted once those before it are, by the latest proposals."""
        return self._accepted / self._judged

    def limit(self, batch: int, costs: StepCosts) -> DraftLimit:
        if not batch or costs.plain(batch) is None or self._allowed < 0:
            return NO_DRAFTS
        if batch not in self._best:
            self._best[batch] = self._find_best(batch, costs)
        best = self._best[batch]
        if self._since_try < TRY:
            return DraftLimit(best, batch)
        self._since_try = 0
        if not best:
            return DraftLimit(1, 1)
        self._tries += 1
        other = (best + 1, best - 1, 0)[self._tries % 3]
        return DraftLimit(min(other, self.most), batch)

    def learn(self, step: Step, costs: StepCosts) -> None:
        self._since_try += 1
        self._since_look += 1
        if self._since_look == LOOK:
            self._since_look = 0
            self._best.clear()
        if step.judged:
            fade = (1 - 1 / MEMORY) ** step.judged
            self._judged = self._judged * fade + step.judged
            self._accepted = self._accepted * fade + step.accepted
        plain = costs.plain(step.batch)
        if plain is not None:
            self._allowed = min(self._allowed + SHARE + self._gained(step, plain, costs), AT_MOST)

    def _gained(self, step: Step, plain: float, costs: StepCosts) -> float:
        """In plain steps; by the costs of such steps rather than by this one's, which may have stalled."""
        if not step.drafted:
            return 0.0
        seconds = costs.speculative(step.batch, step.rows, len(step.lengths), step.drafted)
        return max(step.tokens / step.batch - seconds / max(plain, 1e-9), -AT_ONCE)

    def _find_best(self, batch: int, costs: StepCosts) -> int:
        return max(range(self.most + 1), key=lambda k: self._tokens_per_second(batch, k, costs))

    def _tokens_per_second(self, batch: int, k: int, costs: StepCosts) -> float:
        seconds = costs.speculative(batch, batch * (1 + k), batch if k else 0, k)
        return expected_tokens(self.acceptance, k) / max(seconds, 1e-9)
