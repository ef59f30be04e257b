"""Watching an engine serve: who waits and who runs in every step, and how long the operators of some take.

The engine runs as it always does, step by step. One step of each kind is run once more, its logits thrown
away, with the time of every operator taken. The engine's clock stands still meanwhile, so that requests and
steps have the times that they would have without.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ridgeline.analysis.step_cost import StepCost, cost_here
from ridgeline.analysis.timeline import (
    Load,
    OperatorRun,
    Phase,
    ProfiledStep,
    RequestTimeline,
    State,
    Timeline,
)
from ridgeline.engine.clock import Clock
from ridgeline.engine.plan import Chunk, StepPlan
from ridgeline.engine.request import Request
from ridgeline.engine.result import Failure
from ridgeline.engine.sequence import Group
from ridgeline.engine.steps import StepRecord, StepReport
from ridgeline.hardware.device import Device
from ridgeline.models.model import ModelConfig
from ridgeline.ops.batch import Span
from ridgeline.ops.profile import OpTime
from ridgeline.ops.trace import Trace
from ridgeline.predict import KernelTime, predict

if TYPE_CHECKING:
    import torch

    from ridgeline.engine.core import Core
    from ridgeline.loading import Loaded

#: The workload of :func:`example_requests`: so many requests for half as many seats, so that some wait, some
#: prefill and some decode at a time; lengths in tokens, from least to most.
REQUESTS, SEATS = 8, 4
PROMPTS, OUTPUTS = (16, 128), (8, 32)
#: Rows of a step at most: a long prompt comes in chunks beside what decodes.
STEP_ROWS = 64


def example_requests(config: ModelConfig) -> list[Request]:
    """Requests of mixed lengths with random tokens, as many as REQUESTS, at most as long as the window."""
    draw = random.Random(0)

    def length(bounds: tuple[int, int]) -> int:
        return min(draw.randint(*bounds), config.window // 2)

    def prompt() -> tuple[int, ...]:
        return tuple(draw.randrange(config.vocab) for _ in range(length(PROMPTS)))

    return [Request(prompt(), length(OUTPUTS)) for _ in range(REQUESTS)]


def observe(
    loaded: Loaded,
    requests: Sequence[Request] | None = None,
    *,
    seats: int = SEATS,
    cache_tokens: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Timeline:
    """Serve ``requests`` of one sample each, which all come at once, after some steps that warm up.

    ``seats`` of them run at a time, in a cache of ``cache_tokens`` tokens (by default enough for all).
    ``progress`` is called with what is being done and the share that is done.

    Raises InputError if the model is an encoder, or a request does not fit the cache.
    """
    requests = example_requests(loaded.config) if requests is None else requests
    engine = loaded.generator(token_budget=STEP_ROWS, sequences=seats, cache_tokens=cache_tokens)
    warm_up = engine.start([Request(requests[0].prompt, 2)])
    while warm_up.has_work:
        warm_up.step()
    observer = _Observer(engine.start(requests), cost_here(loaded))
    while observer.core.has_work:
        observer.step()
        if progress is not None:
            done = sum(tracked.end is not None for tracked in observer.requests)
            progress("watching the engine", done / len(requests))
    return observer.timeline(loaded.config)


class _Tracked:
    """A request on its way: the states that it has been in, each with its beginning."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.end: float | None = None
        self._states: list[tuple[State, float]] = [("queued", group.submitted)]

    def enter(self, state: State, moment: float) -> None:
        if state != self._states[-1][0]:
            self._states.append((state, moment))

    def timeline(self) -> RequestTimeline:
        ends = [*(begin for _, begin in self._states[1:]), self.end]
        phases = (Phase(state, begin, end) for (state, begin), end in zip(self._states, ends, strict=True))
        [sequence] = self.group.sequences
        return RequestTimeline(len(sequence.request.prompt), len(sequence.output), tuple(phases))


class _PausableClock:
    """``clock``, less the time for which it was paused."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._paused = 0.0

    def now(self) -> float:
        return self._clock.now() - self._paused

    def sleep_until(self, moment: float) -> None:
        self._clock.sleep_until(moment + self._paused)

    @contextmanager
    def paused(self) -> Iterator[None]:
        begun = self._clock.now()
        yield
        self._paused += self._clock.now() - begun


class _Observer:
    """Steps ``core`` and notes what it sees."""

    def __init__(self, core: Core, cost: StepCost) -> None:
        self.core = core
        self._clock = core.scheduler.clock = _PausableClock(core.scheduler.clock)
        self.requests = [_Tracked(group) for group in core.scheduler.waiting]
        self._cost = cost
        self._run, core.runner.run = core.runner.run, self._note_plan
        self._plan, self._blocks = StepPlan((), ()), 0
        self._steps: list[StepRecord] = []
        self._loads: list[Load] = []
        self._profiled: dict[str, ProfiledStep] = {}

    def _note_plan(self, plan: StepPlan) -> torch.Tensor:
        """Runs it; the cache blocks of whoever finishes with it are still in use now."""
        pool = self.core.scheduler.pool
        self._plan, self._blocks = plan, pool.blocks - pool.available
        return self._run(plan)

    def step(self) -> None:
        for event in self.core.step():
            if isinstance(event, Failure):
                raise event.error
        step, plan = self.core.steps.last, self._plan
        self._steps.append(step)
        shape = step.shape
        self._loads.append(Load(step.started, self._blocks, shape.prefill_rows, shape.decodes))
        self._note_states(plan, step)
        if shape.kind not in self._profiled:
            with self._clock.paused():
                self._profiled[shape.kind] = self._profile(plan, step)

    def _note_states(self, plan: StepPlan, step: StepRecord) -> None:
        chunks = {chunk.sequence: chunk for chunk in plan.chunks}
        for tracked in self.requests:
            group = tracked.group
            [sequence] = group.sequences
            if sequence in chunks:
                tracked.enter(_state(chunks[sequence]), step.started)
            elif group in self.core.scheduler.waiting and group.admitted is not None:
                tracked.enter("preempted", step.started)
            if sequence.finish_reason is not None and tracked.end is None:
                tracked.end = step.finished

    def _profile(self, plan: StepPlan, step: StepRecord) -> ProfiledStep:
        """The step's second run, as if it had begun when the first did."""
        begun = time.perf_counter()
        times = self.core.runner.profile(plan)
        seconds = time.perf_counter() - begun
        trace = self._cost.trace([Span(chunk.rows, chunk.past) for chunk in plan.chunks])
        operators = tuple(_operators(trace, self._cost.device, times, step.scheduled))
        return ProfiledStep(len(self._steps) - 1, step.scheduled, step.scheduled + seconds, operators)

    def timeline(self, config: ModelConfig) -> Timeline:
        end = Load(self._steps[-1].finished, 0, 0, 0)
        return Timeline(
            model=config.name,
            weight_format=config.format,
            blocks=self.core.scheduler.pool.blocks,
            requests=tuple(tracked.timeline() for tracked in self.requests),
            steps=tuple(StepReport.of(step, self._cost) for step in self._steps),
            profiled=tuple(self._profiled.values()),
            loads=(*self._loads, end),
        )


def _state(chunk: Chunk) -> State:
    return "decode" if chunk.known == 1 and chunk.past >= len(chunk.sequence.request.prompt) else "prefill"


def _operators(
    trace: Trace, device: Device | None, times: Sequence[OpTime], begin: float
) -> Iterator[OperatorRun]:
    """The operators of a profiled pass that began at ``begin``, one after another as they ran, each beside
    what is counted and predicted of it."""
    predicted: dict[int, list[KernelTime]] = {i: [] for i in range(len(trace.ops))}
    if device is not None:
        for kernel in predict(trace, device).kernels:
            predicted[kernel.op_index].append(kernel)
    for number, layer in _in_order(trace):
        op, seconds = trace.ops[number], times[number].seconds[layer or 0]
        if op.name != times[number].name:
            raise RuntimeError(f"the profile ran {times[number].name} where the trace has {op.name}")
        kernels = op.kernels(trace.lowering)
        longest = max(predicted[number], key=lambda kernel: kernel.seconds, default=None)
        yield OperatorRun(
            name=op.name,
            kind=op.kind,
            layer=layer,
            begin=begin,
            seconds=seconds,
            flops=float(op.flops.total),
            bytes=float(sum(kernel.bytes for kernel in kernels)),
            predicted=None if longest is None else float(sum(k.seconds for k in predicted[number])),
            bound=None if longest is None else str(longest.bound),
        )
        begin += seconds


def _in_order(trace: Trace) -> Iterator[tuple[int, int | None]]:
    """The numbers of the operators in the order in which they run, each with its turn if it is in a loop."""
    place = 0
    for loop in trace.loops:
        yield from ((number, None) for number in range(place, loop.start))
        for turn in range(loop.count):
            yield from ((number, turn) for number in range(loop.start, loop.stop))
        place = loop.stop
    yield from ((number, None) for number in range(place, len(trace.ops)))
