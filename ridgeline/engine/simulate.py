"""Serving in simulated time: the scheduler and the block pool that serve real requests, and a cost model
that answers with a step's predicted time instead of computing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ridgeline.engine.arrivals import Arrival
from ridgeline.engine.blocks import BlockPool
from ridgeline.engine.clock import SimulatedClock
from ridgeline.engine.metrics import Served, Serving, summarise
from ridgeline.engine.plan import Limits, StepPlan
from ridgeline.engine.request import Request
from ridgeline.engine.scheduler import Scheduler


class CostModel(Protocol):
    """Knows how long a step takes."""

    def seconds(self, plan: StepPlan) -> float: ...


@dataclass(frozen=True)
class Simulation:
    """What was served how fast, and what it took: ``occupancy`` is the share of the cache's blocks in use on
    average over the time in which anything was computed, ``batch`` the sequences of an average step,
    ``recomputed`` the tokens that preempted requests had computed before."""

    serving: Serving
    steps: int
    busy_seconds: float
    batch: float
    occupancy: float
    peak_occupancy: float
    preemptions: int
    recomputed: int


def simulate(arrivals: Sequence[Arrival], pool: BlockPool, limits: Limits, cost: CostModel) -> Simulation:
    """Serve at least one arrival in simulated time; every output has exactly the tokens that it says.

    Prompts share nothing. Raises InputError for a request that would not fit the cache if it were alone.
    """
    clock = SimulatedClock()
    scheduler = Scheduler(pool, limits, clock)
    coming = sorted(arrivals, key=lambda arrival: arrival.seconds)
    times: dict[Request, list[float]] = {}
    came: dict[Request, float] = {}
    tally = _Tally()
    place = 0
    while place < len(coming) or scheduler.has_work:
        while place < len(coming) and coming[place].seconds <= clock.now():
            arrival = coming[place]
            request = Request((0,) * arrival.prompt, arrival.output, context=b"%d" % place)
            scheduler.submit(request, arrival.seconds)
            came[request], times[request] = arrival.seconds, []
            place += 1
        plan = scheduler.schedule()
        if not plan.chunks:
            clock.sleep_until(coming[place].seconds)
            continue
        seconds = cost.seconds(plan)
        tally.add(plan, seconds, pool)
        clock.sleep_until(clock.now() + seconds)
        for ready in scheduler.commit(plan):
            [sequence] = ready.group.sequences
            sequence.accept(0)
            times[sequence.request].append(clock.now())
            if sequence.finish_reason is not None:
                scheduler.finish(ready.group)
    served = [Served(came[r], len(r.prompt), tuple(moments)) for r, moments in times.items()]
    needed = sum(request.cached_at_most for request in times)
    return Simulation(
        serving=summarise(served),
        steps=tally.steps,
        busy_seconds=tally.seconds,
        batch=tally.sequences / tally.steps,
        occupancy=tally.block_seconds / (tally.seconds * pool.blocks) if tally.seconds else 0.0,
        peak_occupancy=tally.peak_blocks / pool.blocks,
        preemptions=scheduler.preemptions,
        recomputed=tally.rows - needed,
    )


@dataclass
class _Tally:
    """Sums over the steps so far."""

    steps: int = 0
    rows: int = 0
    sequences: int = 0
    seconds: float = 0.0
    block_seconds: float = 0.0
    peak_blocks: int = 0

    def add(self, plan: StepPlan, seconds: float, pool: BlockPool) -> None:
        used = pool.blocks - pool.available
        self.steps += 1
        self.rows += plan.rows
        self.sequences += len(plan.chunks)
        self.seconds += seconds
        self.block_seconds += used * seconds
        self.peak_blocks = max(self.peak_blocks, used)
