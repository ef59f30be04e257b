"""What the engine gains: continuous against static batching, prefix reuse, samples of one prompt, overhead.

Run as ``python -m benchmarks.serving [--model tinyllama-1.1b] [--weights FORMAT] [--requests 64]``. All of it
runs on the same engine in one process, so the ratios say what scheduling alone gives: a static batch is one
whose requests are all admitted before the next batch is. Padded, all its prompts and outputs are as long as
its longest.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import ridgeline
from benchmarks.record import write_result
from ridgeline.engine.build import build_core
from ridgeline.engine.core import Core
from ridgeline.engine.plan import Limits, StepPlan
from ridgeline.engine.request import Request
from ridgeline.engine.sampling import Sampling
from ridgeline.loading import Loaded
from ridgeline.ops.batch import BLOCK_TOKENS

SLOTS = 16
STEPS = 32
PROMPTS, OUTPUTS = (32, 512), (16, 256)
PREFIX, SUFFIX, SHARING = 512, 32, 16
SAMPLES, SAMPLED_PROMPT = 8, 512


@dataclass(frozen=True)
class Mix:
    """Requests of mixed lengths with random tokens."""

    vocab: int
    draw: random.Random

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self.draw.randrange(self.vocab) for _ in range(count))

    def requests(self, count: int) -> list[Request]:
        draw = self.draw
        return [Request(self.tokens(draw.randint(*PROMPTS)), draw.randint(*OUTPUTS)) for _ in range(count)]


def core_for(loaded: Loaded, requests: Sequence[Request], **limits: Any) -> Core:
    """A core whose cache holds all of the requests at once, and those."""
    blocks = sum(request.blocks_at_most(BLOCK_TOKENS) * request.samples for request in requests)
    core = build_core(loaded.model, loaded.ops, None, Limits(**limits), blocks, BLOCK_TOKENS)
    for place, request in enumerate(requests):
        core.submit(request, place)
    return core


def batching(loaded: Loaded, requests: Sequence[Request]) -> dict[str, Any]:
    """Output tokens that were asked for a second, of continuous batching and of static batches."""
    batches = [requests[i : i + SLOTS] for i in range(0, len(requests), SLOTS)]
    seconds = {
        "continuous": _seconds(loaded, [requests]),
        "static, finished rows dropped": _seconds(loaded, batches),
        "static, padded": _seconds(loaded, [_padded(batch) for batch in batches]),
    }
    output = sum(request.max_tokens for request in requests)
    rates = {name: output / taken for name, taken in seconds.items()}
    gains = {name: rates["continuous"] / rate for name, rate in rates.items() if name != "continuous"}
    return {"output_tokens": output, "output_tokens_per_second": rates, "gain_over": gains}


def _seconds(loaded: Loaded, batches: Sequence[Sequence[Request]]) -> float:
    start = time.perf_counter()
    for batch in batches:
        core = core_for(loaded, batch, sequences=SLOTS, prefix_cache=False)
        while core.has_work:
            core.step()
    return time.perf_counter() - start


def _padded(batch: Sequence[Request]) -> list[Request]:
    prompt = max(len(request.prompt) for request in batch)
    output = max(request.max_tokens for request in batch)
    return [replace(r, prompt=r.prompt + (1,) * (prompt - len(r.prompt)), max_tokens=output) for r in batch]


def prefix_reuse(loaded: Loaded, mix: Mix) -> dict[str, Any]:
    """Time to first token of requests that share a cached prefix, with reuse and without, one at a time."""
    shared = mix.tokens(PREFIX)
    prompts = [shared + mix.tokens(mix.draw.randint(1, SUFFIX)) for _ in range(SHARING)]
    found = {}
    for name, reuse in (("reused", True), ("computed", False)):
        core = core_for(loaded, [Request(prompt, 1) for prompt in prompts], prefix_cache=reuse)
        while core.has_work:
            core.step()
        found[name] = statistics.median(_ttft(core, Request(prompt, 1)) for prompt in prompts)
    return {"ttft_seconds": found, "gain": found["computed"] / found["reused"]}


def _ttft(core: Core, request: Request) -> float:
    start = time.perf_counter()
    core.submit(request, 0)
    while core.has_work:
        core.step()
    return time.perf_counter() - start


def shared_blocks(loaded: Loaded, mix: Mix) -> dict[str, Any]:
    """Cache blocks that hold a prompt of which several samples are generated, against those of one."""
    core = core_for(loaded, [Request(mix.tokens(SAMPLED_PROMPT), 8, Sampling(), samples=SAMPLES)])
    pool = core.scheduler.pool
    while len(core.scheduler.running) < SAMPLES:
        core.step()
    core.step()
    one = pool.blocks_for(SAMPLED_PROMPT)
    sequences = [sequence for group in core.scheduler.running for sequence in group.sequences]
    held = {block for sequence in sequences for block in pool.table(sequence)[:one]}
    return {"ratio": len(held) / one}


def overhead(loaded: Loaded, mix: Mix) -> dict[str, Any]:
    """The share of decode steps that is not the model's pass, of SLOTS sequences."""
    core = core_for(loaded, [Request(mix.tokens(64), 64) for _ in range(SLOTS)], token_budget=64 * SLOTS)
    core.step()
    inside = 0.0
    compute = core.runner.run

    def timed(plan: StepPlan) -> torch.Tensor:
        nonlocal inside
        start = time.perf_counter()
        logits = compute(plan)
        inside += time.perf_counter() - start
        return logits

    core.runner.run = timed
    start = time.perf_counter()
    for _ in range(STEPS):
        core.step()
    return {"share": 1 - inside / (time.perf_counter() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tinyllama-1.1b")
    parser.add_argument("--weights", default="random:int4-g32")
    parser.add_argument("--requests", type=int, default=64)
    asked = parser.parse_args()
    loaded = ridgeline.load(asked.model, weights=asked.weights)
    mix = Mix(loaded.config.vocab, random.Random(0))
    result = {
        "model": asked.model,
        "weights": asked.weights,
        "slots": SLOTS,
        "requests": asked.requests,
        "overhead": overhead(loaded, mix),
        "shared_blocks": shared_blocks(loaded, mix),
        "prefix_reuse": prefix_reuse(loaded, mix),
        "batching": batching(loaded, mix.requests(asked.requests)),
    }
    print(json.dumps(result, indent=2))
    print(f"stored in {write_result('serving', result)}")


if __name__ == "__main__":
    main()
