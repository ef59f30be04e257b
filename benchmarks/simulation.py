"""Simulated serving against the real engine on this machine: the same requests, at half and at most of its
capacity.

Run as ``python -m benchmarks.simulation [--model demo] [--count 60]`` after ``ridgeline measure``. Capacity
is what a simulation serves a second of requests that come all at once; predictions are made before anything
runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ridgeline
from benchmarks.record import write_result
from ridgeline.engine.arrivals import Arrival, Lengths, poisson
from ridgeline.engine.build import build_core
from ridgeline.engine.core import Core
from ridgeline.engine.metrics import Served, Serving, summarise
from ridgeline.engine.plan import Limits
from ridgeline.engine.request import Request
from ridgeline.hardware.device import Device
from ridgeline.loading import Loaded

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


def compare(loaded: Loaded, device: Device, load: float, count: int) -> dict[str, Any]:
    """Simulated and real figures at a share ``load`` of the capacity."""

    def simulated(arrivals: Sequence[Arrival]) -> Serving:
        return ridgeline.simulate(loaded.config, device, arrivals, **LIMITS).simulation.serving

    drawn = poisson(1.0, count, PROMPTS, OUTPUTS)
    capacity = simulated([replace(arrival, seconds=0.0) for arrival in drawn]).requests_per_second
    arrivals = [replace(arrival, seconds=arrival.seconds / (load * capacity)) for arrival in drawn]
    expected = simulated(arrivals)
    size = LIMITS["block_size"]
    limits = Limits(LIMITS["batched_tokens"], LIMITS["sequences"])
    core = build_core(loaded.model, loaded.ops, None, limits, LIMITS["kv_tokens"] // size, size)
    return {
        "load": load,
        "requests_per_second": load * capacity,
        "figures": _figures(expected, replay(core, arrivals, loaded.config.vocab)),
    }


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
    parser.add_argument("--count", type=int, default=60)
    asked = parser.parse_args()
    device = ridgeline.load_device("this")
    loaded = ridgeline.load(asked.model, weights="random")
    loads = [compare(loaded, device, load, asked.count) for load in LOADS]
    result = {"model": asked.model, "count": asked.count, "limits": LIMITS, "loads": loads}
    print(json.dumps(result, indent=2))
    print(f"stored in {write_result('simulation', result)}")


if __name__ == "__main__":
    main()
