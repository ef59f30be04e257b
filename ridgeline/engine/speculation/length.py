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
#: What twice the rows add to the time of a step until it is measured: little, so that they are tried.
ROWS_GROWTH = 0.1
#: Steps without proposals to compare with, and the tokens of the drafts from which costs are learned.
PLAIN_STEPS, FIRST_DRAFT = 3, 3
#: Steps after which another draft length is tried, after which speculation that never pays is tried again,
#: and after which the best length is looked up again.
TRY, SELDOM, LOOK = 32, 1024, 16
#: How much faster than plain steps speculation must seem: it makes those between its own seem slow.
MARGIN = 1.1
#: What speculation may lose, in plain steps: a share of all steps. It may lose so many at first, and save up
#: so many of those that it gains; of what it loses beyond, no more has to be made up for.
SHARE, AT_FIRST, AT_MOST, AT_LEAST = 0.01, 2.0, 4.0, -1.0


@dataclass(frozen=True)
class Step:
    """What a step did that only decoded: ``batch`` sequences got ``tokens`` in ``rows`` rows.

    ``lengths`` are those of the proposals that were asked for. Of the proposed tokens ``judged`` came after
    accepted ones alone, and ``accepted`` were accepted. Drafting had to ``catch_up`` with more tokens than
    the step before gave, which it will not next time. The proposals were all ``ready`` if they had been
    drafted beside the step before. ``count`` steps were alike, and the rest is of each, on average.
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
    ready: bool = False
    count: int = 1

    @property
    def drafted(self) -> int:
        """Tokens of the longest proposal that the step waited for."""
        return 0 if self.ready else max(self.lengths, default=0)


def expected_tokens(acceptance: float, proposed: int) -> float:
    """Tokens that a step gives a sequence: (1 - a^(k+1)) / (1 - a), if each of k proposed tokens is accepted
    with probability a once those before it are (Leviathan et al. 2023, arXiv 2211.17192)."""
    if acceptance == 1:
        return proposed + 1.0
    return (1 - acceptance ** (proposed + 1)) / (1 - acceptance)


class Length(Protocol):
    """Decides how much to draft, from the steps that there were and their ``costs``: ``most`` tokens for a
    sequence at most."""

    most: int

    def limit(self, batch: int, costs: StepCosts) -> DraftLimit:
        """For the next step, in which ``batch`` sequences decode."""

    def learn(self, step: Step, costs: StepCosts) -> None:
        """Note a step, which the costs know of already."""


class StepCosts:
    """Seconds that steps took: verification by rows, and drafting by the longest draft. Whether any proposals
    were ready is in ``drafts_ahead``."""

    def __init__(self) -> None:
        self._verify = Costs(growth=ROWS_GROWTH)
        self._draft = Costs(growth=1.0)
        self.drafts_ahead = False

    def learn(self, step: Step) -> None:
        self.drafts_ahead |= step.ready
        self._verify.add(step.batch, step.rows, step.verify_seconds)
        if step.drafted and not step.catch_up:
            self._draft.add(len(step.lengths), step.drafted, step.draft_seconds)

    def knows(self, batch: int) -> bool:
        """Whether there were enough steps without proposals not long ago: the first are slow."""
        return self._verify.samples(batch, batch) >= PLAIN_STEPS

    @property
    def has_drafted(self) -> bool:
        """Whether anything is known of drafting."""
        return self._draft.nearest(1) is not None

    def plain(self, batch: int) -> float | None:
        """Seconds of a step without proposals, None if there has been none. The fastest of late is what
        speculation has to beat: a single one among drafts finds the caches cold, or the machine slow."""
        return self._verify.fastest(batch, batch)

    def measured(self, batch: int, rows: int, drafting: int, drafted: int) -> float:
        """Seconds of a step such as there has been one: so many rows, and of the drafts the longest."""
        if not drafted and rows == batch:
            return self.plain(batch)
        draft = self._draft.measured(drafting, drafted) if drafted else 0.0
        return self._verify.measured(batch, rows) + (draft or 0.0)

    def estimated(self, batch: int, rows: int, drafting: int, drafted: int) -> float:
        """Seconds of such a step of a batch that is known, whether there has been one or not. Drafting is
        free as long as nothing is known of it."""
        return self._verify.seconds(batch, rows) + self.drafting(drafting, drafted)

    def drafting(self, drafting: int, drafted: int) -> float:
        """Seconds of drafts for so many sequences, of which the longest has so many tokens."""
        known = self._draft.nearest(drafting) if drafted else None
        return 0.0 if known is None else self._draft.seconds(known, drafted)


@dataclass(frozen=True)
class FixedLength:
    """Always ``tokens`` proposals for each sequence. Raises InputError for less than 1."""

    tokens: int

    def __post_init__(self) -> None:
        at_least_one("tokens", self.tokens)

    @property
    def most(self) -> int:
        return self.tokens

    def limit(self, batch: int, costs: StepCosts) -> DraftLimit:
        return DraftLimit(self.tokens, batch)

    def learn(self, step: Step, costs: StepCosts) -> None:
        """Nothing to learn."""


class AdaptiveLength:
    """The length, of ``most`` tokens at most and 0 included, that gives the most tokens a second.

    That is expected_tokens(a, k) / (seconds of drafting k tokens and of verifying k + 1 rows), with what was
    measured. The first steps of a batch size are plain, to compare with. Every TRY steps a neighbouring
    length or a plain step is tried again; where nothing pays, one proposal for one sequence, more and more
    seldom until one is accepted: a draft model has to catch up for it.

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
        self._interval = TRY

    @property
    def acceptance(self) -> float:
        """The chance of a token to be accepted once those before it are, by the latest proposals."""
        return self._accepted / self._judged

    def limit(self, batch: int, costs: StepCosts) -> DraftLimit:
        if self._allowed < 0:
            return NO_DRAFTS
        best = self._best.get(batch)
        if best is None:
            if not costs.knows(batch):
                return NO_DRAFTS
            best = self._best[batch] = self._find_best(batch, costs)
        if best:
            self._interval = TRY
        if self._since_try < self._interval:
            return DraftLimit(best, batch)
        self._since_try = 0
        if not best:
            return DraftLimit(1, 1)
        self._tries += 1
        other = (best + 1, best - 1, 0)[self._tries % 3]
        return DraftLimit(min(other, self.most), batch)

    def learn(self, step: Step, costs: StepCosts) -> None:
        self._since_try += step.count
        self._since_look += step.count
        if step.judged and self._best.get(step.batch) == 0:
            self._learn_try(step.accepted > 0)
        if self._since_look >= LOOK:
            self._since_look = 0
            self._best.clear()
        if step.judged:
            fade = (1 - 1 / MEMORY) ** step.judged
            self._judged = self._judged * fade + step.judged
            self._accepted = self._accepted * fade + step.accepted
        allowed = self._allowed + SHARE * step.count + self._gained(step, costs)
        self._allowed = min(max(allowed, AT_LEAST), AT_MOST)

    def _learn_try(self, accepted: bool) -> None:
        """After what was rejected where nothing pays the next try waits longer; else it comes at once."""
        if accepted:
            self._since_try = self._interval
        else:
            self._interval = min(2 * self._interval, SELDOM)

    def _gained(self, step: Step, costs: StepCosts) -> float:
        """In plain steps; by the costs of such steps rather than by this one's, which may have stalled."""
        plain = costs.plain(step.batch)
        if not any(step.lengths) or not plain:
            return 0.0
        seconds = costs.estimated(step.batch, step.rows, len(step.lengths), step.drafted)
        return step.tokens / step.batch - seconds / plain

    def _find_best(self, batch: int, costs: StepCosts) -> int:
        most = self.most if costs.has_drafted else min(FIRST_DRAFT, self.most)
        return max(range(most + 1), key=lambda k: self._tokens_per_second(batch, k, costs))

    def _tokens_per_second(self, batch: int, k: int, costs: StepCosts) -> float:
        """Of each sequence."""
        seconds = costs.estimated(batch, batch * (1 + k), batch, k) if k else costs.plain(batch) / MARGIN
        if costs.drafts_ahead:  # ready if all of the last proposal was accepted, and one guess more was right
            seconds -= self.acceptance ** (k + 1) * costs.drafting(batch, k)
        return expected_tokens(self.acceptance, k) / max(seconds, 1e-9)
