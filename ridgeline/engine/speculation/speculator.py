"""Speculation in an engine's steps: how much to draft, which proposals go into them, what came of those."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ridgeline.engine.clock import Clock, RealClock
from ridgeline.engine.plan import NO_DRAFTS, Chunk, DraftLimit, Proposal, StepPlan
from ridgeline.engine.runner import Runner
from ridgeline.engine.sequence import Sequence
from ridgeline.engine.speculation.length import AdaptiveLength, Length, Step, StepCosts
from ridgeline.engine.speculation.proposer import Closing, Proposer, Target
from ridgeline.engine.speculation.report import Outcome, SpeculationReport, Tally
from ridgeline.engine.speculation.rules import Exact, Rule

#: After two plain steps so many more are not even looked at: a look takes time, too.
REST = 31


class Speculator:
    """Asks ``proposer`` for as many tokens as ``length`` says, by default what pays best, and judges them by
    ``rule``, by default the one that leaves the output as it is.

    It learns from the steps of one engine, and must not be shared by several. The report may be read from
    any thread.
    """

    def __init__(
        self,
        proposer: Proposer,
        *,
        rule: Rule | None = None,
        length: Length | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.proposer = proposer
        self.rule = rule or Exact()
        self._length = length or AdaptiveLength()
        self._clock = clock or RealClock()
        self._costs = StepCosts()
        self._tally = Tally()
        self._learning = threading.Lock()
        self._limit = NO_DRAFTS
        self._rest = 0
        self._rested: dict[int, tuple[int, float]] = {}  # by batch: steps and their seconds
        self._was_plain = False
        self._draft_seconds = 0.0
        self._catch_up = False
        self._asked: dict[Sequence, int] = {}  # how many tokens each had when it was last asked for

    @property
    def report(self) -> SpeculationReport:
        """What came of all steps so far."""
        with self._learning:
            return self._tally.report(self._costs)

    @property
    def most(self) -> int:
        """Tokens of a proposal at most."""
        return self._length.most

    def rests(self) -> bool:
        """Whether the next step is plain, with nothing to limit or to propose."""
        if not self._rest:
            return False
        self._rest -= 1
        return True

    def limit(self, batch: int) -> DraftLimit:
        """How much to draft in a step in which ``batch`` sequences decode."""
        self._limit = self._length.limit(batch, self._costs)
        return self._limit

    def propose(self, plan: StepPlan, runner: Runner) -> StepPlan:
        """The plan with proposals for the chunks that have room for them.

        Raises ValueError if the proposer gave more tokens than were asked for, or none of the vocabulary.
        """
        self._draft_seconds, self._catch_up = 0.0, False
        asking = [chunk for chunk in plan.chunks if chunk.room] if self._limit.tokens else []
        if not asking:
            return plan
        start = self._clock.now()
        proposals = iter(self.proposer.propose(asking, Target(runner, self.rule)))
        chunks = [_with(c, next(proposals), runner.vocab) if c.room else c for c in plan.chunks]
        self._note_asked(asking)
        self._draft_seconds = self._clock.now() - start
        return StepPlan(tuple(chunks), plan.copies)

    def learn(
        self, plan: StepPlan, outcomes: Mapping[Sequence, Outcome], seconds: float, all_sampled: bool
    ) -> None:
        """Note what came of those that were asked for in a step that took ``seconds``, drafting included, and
        whether it sampled tokens for all its sequences."""
        batch = len(plan.chunks)
        if not self._limit.tokens:
            if all_sampled and plan.rows == batch:
                self._learn_plain(batch, seconds)
            return
        self._was_plain = False
        with self._learning:
            self._tally.add_trials(outcomes.values(), self._draft_seconds)
        if not all_sampled or any(chunk.known > 1 for chunk in plan.chunks):
            return  # prefill or beams, whose time says nothing of decoding
        step = Step(
            batch=batch,
            rows=plan.rows,
            tokens=batch + sum(outcome.tokens - 1 for outcome in outcomes.values()),
            lengths=tuple(len(chunk.proposal.tokens) for chunk in plan.chunks if chunk.room),
            judged=sum(outcome.judged for outcome in outcomes.values()),
            accepted=sum(outcome.accepted for outcome in outcomes.values()),
            draft_seconds=self._draft_seconds,
            verify_seconds=seconds - self._draft_seconds,
            catch_up=self._catch_up,
            ready=_all_ready(plan),
        )
        self._learn(step)

    def learn_rested(
        self, plan: StepPlan, outcomes: Mapping[Sequence, Outcome], seconds: float, all_sampled: bool
    ) -> None:
        """Note a step without looking at it."""
        batch = len(plan.chunks)
        if all_sampled and plan.rows == batch:
            steps, before = self._rested.get(batch, (0, 0.0))
            self._rested[batch] = steps + 1, before + seconds

    def close(self) -> None:
        """End what the proposer does beside the engine's steps, and let go of its cache, if it has any."""
        if isinstance(self.proposer, Closing):
            self.proposer.close()

    def forget(self, sequence: Sequence) -> None:
        """Let go of a sequence that is finished or was aborted."""
        self._asked.pop(sequence, None)
        self.proposer.forget(sequence)

    def _learn_plain(self, batch: int, seconds: float) -> None:
        """Note a step without proposals, and those before that were not looked at."""
        for rested, (steps, sum_of_seconds) in self._rested.items():
            alike = Step(rested, rested, rested, (), 0, 0, 0.0, sum_of_seconds / steps, count=steps)
            with self._learning:
                self._tally.add(alike)
                self._length.learn(alike, self._costs)
        self._rested.clear()
        knew = self._costs.knows(batch)  # else it was plain to be compared with, whatever pays
        self._learn(Step(batch, batch, batch, (), 0, 0, 0.0, seconds))
        self._rest = REST if self._was_plain and knew else 0
        self._was_plain = knew

    def _learn(self, step: Step) -> None:
        with self._learning:
            self._costs.learn(step)
            self._length.learn(step, self._costs)
            self._tally.add(step)

    def _note_asked(self, asking: list[Chunk]) -> None:
        for chunk in asking:
            tokens = len(chunk.sequence.tokens)
            before = self._asked.get(chunk.sequence)
            self._catch_up |= before is None or tokens - before > chunk.room + 1
            self._asked[chunk.sequence] = tokens


def _all_ready(plan: StepPlan) -> bool:
    proposals = [chunk.proposal for chunk in plan.chunks if chunk.proposal.tokens]
    return bool(proposals) and all(proposal.ready for proposal in proposals)


def _with(chunk: Chunk, proposal: Proposal, vocab: int) -> Chunk:
    if len(proposal.tokens) > chunk.room:
        raise ValueError(f"the proposer gave {len(proposal.tokens)} tokens where {chunk.room} were asked for")
    for token in proposal.tokens:
        if not 0 <= token < vocab:
            raise ValueError(f"the proposer gave the token id {token}, expected 0 to {vocab - 1}")
    return chunk.propose(proposal)
