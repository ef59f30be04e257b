"""The engine without threads: requests in, one step at a time, tokens out."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from ridgeline.engine.beams import Beams, Hypothesis
from ridgeline.engine.output import Output, timings
from ridgeline.engine.plan import NOTHING, Ready, StepPlan
from ridgeline.engine.request import Request
from ridgeline.engine.result import Failure, Result, Token
from ridgeline.engine.runner import Runner
from ridgeline.engine.sampler import choose_continuations, logprobs_of
from ridgeline.engine.scheduler import Scheduler
from ridgeline.engine.sequence import Group, Sequence
from ridgeline.engine.speculation.report import Outcome
from ridgeline.engine.speculation.rules import Exact, Rule, Trial
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.engine.steps import StepLog, StepRecord, StepShape
from ridgeline.errors import OutOfMemory
from ridgeline.weights.tokenizer import Tokenizer

Event = Token | Failure


@dataclass
class _Answer:
    """What a request is waiting for: its place in the call, and how many of its outputs are to come."""

    place: int
    missing: int


class Core:
    """Steps of ``scheduler``, computed by ``runner``; text is that of ``tokenizer``, empty without one.
    Steps verify what a ``speculator`` proposes, too. ``steps`` are the last ones."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        tokenizer: Tokenizer | None,
        speculator: Speculator | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.tokenizer = tokenizer
        self.steps = StepLog()
        self.speculator = speculator
        self._rule = Exact() if speculator is None else speculator.rule
        self._answers: dict[Request, _Answer] = {}
        self._outputs: dict[Group, Output] = {}
        self._beams: dict[Group, Beams] = {}

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def submit(self, request: Request, place: int, submitted: float | None = None) -> None:
        """Queue a request, whose tokens will carry ``place``; it came at ``submitted``, by default now.

        Raises InputError if it would not fit even if it were alone.
        """
        group = self.scheduler.submit(request, submitted)
        self._answers[request] = _Answer(place, request.samples)
        if request.beams is not None:
            self._beams[group] = Beams(request)

    def abort(self, request: Request) -> None:
        """Forget a request: nothing more comes of it, and its blocks are free. One that is not there is no
        error: it may just have finished."""
        for group in self.scheduler.abort(request):
            self._forget(group)
        self._answers.pop(request, None)

    def abort_all(self) -> None:
        """Forget all requests that are not answered."""
        for request in list(self._answers):
            self.abort(request)

    def close(self) -> None:
        """Forget all requests and let go of the cache: the last that is asked of a core."""
        try:
            self.abort_all()
        finally:
            self.runner.close()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute one packed batch, and return the tokens that it gave; none if there is nothing to do.

        If it cannot be computed, the requests in it fail, and those that wait are served as before. If memory
        ran short, only those fail whose prompts were to be computed, where there are any: the others go on.
        """
        clock = self.scheduler.clock
        started = clock.now()
        speculator = self.speculator
        rests = speculator is None or speculator.rests()
        if rests:
            plan = self.scheduler.schedule()
        else:
            plan = self.scheduler.schedule(speculator.limit(self.scheduler.decoding))
        if not plan.chunks:
            return []
        scheduled = clock.now()
        try:
            self.runner.copy(plan)
            if not rests:
                plan = speculator.propose(plan, self.runner)
                scheduled = clock.now()  # drafting is no part of the model's pass
            logits = self.runner.run(plan)
        except Exception as error:
            return [self._fail(request, error) for request in _to_blame(plan, error)]
        now = clock.now()
        ready = self.scheduler.commit(plan)
        sampled = [found for found in ready if found.group not in self._beams]
        searched = [found for found in ready if found.group in self._beams]
        outcomes: dict[Sequence, Outcome] = {}
        events = self._sample(sampled, logits, now, outcomes)
        for found in searched:
            events += self._guarded(found.group.request, self._search, found, logits, now)
        ended = clock.now()
        self.steps.add(StepRecord(started, scheduled, now, ended, StepShape.of(plan)))
        if speculator is not None:
            learn = speculator.learn_rested if rests else speculator.learn
            learn(plan, outcomes, ended - started, len(sampled) == len(plan.chunks))
        return events

    def _guarded(
        self, request: Request, answer: Callable[..., list[Event]], *arguments: object
    ) -> list[Event]:
        """What ``answer`` gives of the request; if it raises the request fails, and the others go on."""
        if request not in self._answers:  # another of its samples has just failed
            return []
        try:
            return answer(*arguments)
        except Exception as error:
            return [self._fail(request, error)]

    # -- sampling ------------------------------------------------------------------------------------

    def _sample(
        self, ready: Items[Ready], logits: torch.Tensor, now: float, outcomes: dict[Sequence, Outcome]
    ) -> list[Event]:
        """The next tokens of each group's one sequence, and what became of proposals."""
        rows = [row for found in ready for row in found.rows]
        if rows != list(range(len(logits))):
            logits = logits[rows]
        events: list[Event] = []
        first = 0
        for found, tokens in zip(ready, self._judge(ready, logits), strict=True):
            last = first + len(found.rows)
            request, arguments = found.group.request, (found, tokens, logits[first:last], now, outcomes)
            events += self._guarded(request, self._accept, *arguments)
            first = last
        return events

    def _judge(self, ready: Items[Ready], logits: torch.Tensor) -> list[list[int] | Exception]:
        """The tokens that each sequence gets, all at once; if a row cannot be sampled, one sequence after the
        other, with its error."""
        trials = [Trial(found.group.sequences[0], found.chunk.proposal) for found in ready]
        try:
            return self._rule.judge(logits, trials)
        except Exception:
            rows = logits.split([len(found.rows) for found in ready])
            return [_judge_alone(self._rule, *alone) for alone in zip(rows, trials, strict=True)]

    def _accept(
        self,
        found: Ready,
        tokens: list[int] | Exception,
        logits: torch.Tensor,
        now: float,
        outcomes: dict[Sequence, Outcome],
    ) -> list[Event]:
        """The events of tokens sampled from the first rows of logits; a sequence that is finished leaves, and
        with it the tokens behind its last. Raises what kept them from being sampled."""
        if isinstance(tokens, Exception):
            raise tokens
        group = found.group
        [sequence] = group.sequences
        top = group.request.logprobs
        events: list[Event] = []
        for row, token in zip(logits, tokens, strict=False):
            sequence.accept(token)
            logprobs = None if top is None else logprobs_of(row, token, top)
            events.append(self._output(group).add(sequence, logprobs, now))
            if sequence.finish_reason is not None:
                break
        if found.chunk.room:
            outcomes[sequence] = Outcome(len(found.chunk.proposal.tokens), len(tokens) - 1, len(events))
        if sequence.finish_reason is not None:
            self._finish(group, 1)
        elif found.chunk.room:
            self.scheduler.settle(sequence)
        return events

    def _output(self, group: Group) -> Output:
        if group not in self._outputs:
            place = self._answers[group.request].place
            self._outputs[group] = Output(place, group, self.tokenizer)
        return self._outputs[group]

    # -- beam search ---------------------------------------------------------------------------------

    def _search(self, ready: Ready, logits: torch.Tensor, now: float) -> list[Event]:
        """Go on with the best beams; the results, and nothing before, once the search is over."""
        group, beams = ready.group, self._beams[ready.group]
        continuations = choose_continuations(logits[list(ready.rows)], group.sequences, beams.candidates)
        branches = beams.advance([sequence.output for sequence in group.sequences], continuations)
        if branches:
            self.scheduler.branch(group, [branch.parent for branch in branches])
            for sequence, branch in zip(group.sequences, branches, strict=True):
                sequence.tokens.append(branch.token)
            return []
        place = self._answers[group.request].place
        best = beams.finished[: group.request.samples]
        results = [self._beam_result(group, sample, found, now) for sample, found in enumerate(best)]
        self._finish(group, group.request.samples)
        return [Token(place, result.ids[-1], result.text, result, result.sample) for result in results]

    def _beam_result(self, group: Group, sample: int, found: Hypothesis, now: float) -> Result:
        shown = found.ids[:-1] if found.finish_reason == "stop" else found.ids
        return Result(
            "" if self.tokenizer is None else self.tokenizer.decode(shown),
            found.ids,
            found.finish_reason,
            len(group.request.prompt),
            timings(group, now, now, 1),
            sample,
            group.sequences[0].reused,
            score=found.score,
        )

    def _fail(self, request: Request, error: Exception) -> Failure:
        failure = Failure(self._answers[request].place, error)
        self.abort(request)
        return failure

    def _forget(self, group: Group) -> None:
        self._outputs.pop(group, None)
        self._beams.pop(group, None)
        if self.speculator is not None:
            for sequence in group.sequences:
                self.speculator.forget(sequence)

    def _finish(self, group: Group, outputs: int) -> None:
        self.scheduler.finish(group)
        self._forget(group)
        answer = self._answers[group.request]
        answer.missing -= outputs
        if not answer.missing:
            del self._answers[group.request]


def _to_blame(plan: StepPlan, error: Exception) -> list[Request]:
    """The requests that fail with a step: all of them, or of one that took too much memory those that are
    catching up with a prompt."""
    chunks = plan.chunks
    if isinstance(error, OutOfMemory):
        chunks = [chunk for chunk in chunks if chunk.known > 1] or chunks
    return list(dict.fromkeys(chunk.sequence.request for chunk in chunks))


def _judge_alone(rule: Rule, logits: torch.Tensor, trial: Trial) -> list[int] | Exception:
    """The tokens that a sequence gets, or what kept it from any. If a row cannot be sampled the sequence goes
    on without its proposal: the row may be one that is never reached."""
    try:
        return rule.judge(logits, [trial])[0]
    except Exception:
        pass
    try:
        return rule.judge(logits[:1], [Trial(trial.sequence, NOTHING)])[0]
    except Exception as error:
        return error
