"""Simulated serving against the real engine on this machine: the same requests, at half and at most of its
capacity.

Run as ``python -m benchmarks.simulation [--model demo] [--weights random] [--count 60]`` after ``ridgeline
measure``. Capacity is what a simulation serves a second of requests that come all at once; predictions are
made before anything runs. The steps of the real run stand beside their predictions, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ridgeline
from benchmarks.record import write_result
from ridgeline.analysis.step_cost import cost_here
from ridgeline.engine.arrivals import Arrival, Lengths, poisson
from ridgeline.engine.build import build_core
from ridgeline.engine.core import Core
from ridgeline.engine.metrics import Served, Serving, summarise
from ridgeline.engine.plan import Limits
from ridgeline.engine.request import Request
from ridgeline.engine.steps import StepLog, StepReport
from ridgeline.hardware.device import Device
from ridgeline.loading import Loaded, weight_choice

LIMITS = {"batched_tokens": 512, "sequences": 16, "block_size": 32, "kv_tokens": 16384}
PROMPTS, OUTPUTS = Lengths(32, 512), Lengths(16, 256)
LOADS = (0.5, 0.8)


def replay(core: Core, arrivals: Sequence[Arrival], vocab: int) -> Serving:
    """Serve the arrivals in real time, with prompts that have nothing in common."""
    clock = core.scheduler.clock
    requests = [
        Request(
            tuple((7 * i + j * j) % vocab for j in range(arrival.prompt)), arrival.output, context=b"%d" % i
        )
        for i, arrival in enumerate(arrivals)
    ]
    times: list[list[float]] = [[] for _ in requests]
    start, place = clock.now(), 0
    while place < len(requests) or core.has_work:
        while place < len(requests) and start + arrivals[place].seconds <= clock.now():
            core.submit(requests[place], place, start + arrivals[place].seconds)
            place += 1
        if not core.has_work:
            clock.sleep_until(start + arrivals[place].seconds)
            continue
        tokens = core.step()
        for token in tokens:
            times[token.request].append(clock.now())
    return summarise(
        [Served(start + a.seconds, a.prompt, tuple(t)) for a, t in zip(arrivals, times, strict=True)]
    )


@dataclass(frozen=True)
class Contest:
    """A loaded model, what it is simulated as, and the machine that it is simulated on."""

    loaded: Loaded
    model: str
    weights: str | None
    device: Device

    def simulated(self, arrivals: Sequence[Arrival]) -> Serving:
        found = ridgeline.simulate(self.model, self.device, arrivals, weights=self.weights, **LIMITS)
        return found.simulation.serving

    def core(self) -> Core:
        """The real engine, which has run before."""
        size, model, ops = LIMITS["block_size"], self.loaded.model, self.loaded.ops
        limits = Limits(LIMITS["batched_tokens"], LIMITS["sequences"])
        core = build_core(model, ops, None, limits, LIMITS["kv_tokens"] // size, size)
        replay(core, [Arrival(0.0, LIMITS["batched_tokens"], 2)], self.loaded.config.vocab)
        core.steps = StepLog(most=10**6)
        return core


def compare(contest: Contest, load: float, count: int) -> dict[str, Any]:
    """Simulated and real figures at a share ``load`` of the capacity."""
    drawn = poisson(1.0, count, PROMPTS, OUTPUTS)
    capacity = contest.simulated([replace(a, seconds=0.0) for a in drawn]).requests_per_second
    arrivals = [replace(arrival, seconds=arrival.seconds / (load * capacity)) for arrival in drawn]
    expected, core = contest.simulated(arrivals), contest.core()
    real = replay(core, arrivals, contest.loaded.config.vocab)
    cost = cost_here(contest.loaded)
    return {
        "load": load,
        "requests_per_second": load * capacity,
        "figures": _figures(expected, real),
        "steps": _steps([StepReport.of(record, cost) for record in core.steps.records]),
    }


def _steps(steps: Sequence[StepReport]) -> dict[str, Any]:
    """Of each kind of step the number, mean seconds of the model's pass, predicted and real, and mean seconds
    beside it."""
    found = {}
    for kind in ("prefill", "mixed", "decode"):
        of_kind = [step for step in steps if step.kind == kind]
        if of_kind:
            predicted, real, beside = (
                statistics.mean(seconds)
                for seconds in zip(*((s.predicted, s.running, s.seconds - s.running) for s in of_kind))
            )
            found[kind] = {
                "steps": len(of_kind),
                "predicted": predicted,
                "real": real,
                "error": predicted / real - 1,
                "beside_the_pass": beside,
            }
    return found


def _figures(expected: Serving, real: Serving) -> dict[str, Any]:
    pairs = {
        "output_tokens_per_second": (expected.output_tokens_per_second, real.output_tokens_per_second),
        "median_ttft_seconds": (expected.ttft.p50, real.ttft.p50),
        "median_tpot_seconds": (expected.tpot.p50, real.tpot.p50),
        "median_end_to_end_seconds": (expected.end_to_end.p50, real.end_to_end.p50),
    }
    return {
        name: {"simulated": ours, "real": theirs, "error": ours / theirs - 1}
        for name, (ours, theirs) in pairs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--count", type=int, default=60)
    asked = parser.parse_args()
    device = ridgeline.load_device("this")
    loaded = ridgeline.load(asked.model, weights=asked.weights)
    contest = Contest(loaded, asked.model, weight_choice(asked.weights).format, device)
    loads = [compare(contest, load, asked.count) for load in LOADS]
    about = {"model": asked.model, "weights": asked.weights, "count": asked.count}
    result = {**about, "limits": LIMITS, "loads": loads}
    print(json.dumps(result, indent=2))
    print(f"stored in {write_result('simulation', result)}")


if __name__ == "__main__":
    main()
