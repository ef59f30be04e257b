"""What speculation gains, and what it costs where it gains nothing.

Run as ``python -m benchmarks.speculation [--model tinyllama-1.1b] [--rounds 9] [--draft-threads 1]``.
Plain and speculating runs of the same requests take turns in one process; a gain is the median over the
rounds of the ratio of their times per output token at batch 1. Beside it stands the gain that is predicted
from acceptance and costs.

A draft that works beside verification takes its threads from the target's, so that all runs have as many.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import ridgeline
from benchmarks.record import write_result
from ridgeline import kernels
from ridgeline.demo.heldout import held_out_texts
from ridgeline.engine.generate import Generator, collect, run
from ridgeline.engine.plan import Chunk, Proposal
from ridgeline.engine.request import Request
from ridgeline.engine.sampling import GREEDY, Sampling
from ridgeline.engine.sequence import Sequence as Drafted
from ridgeline.engine.speculation.beside import Beside
from ridgeline.engine.speculation.draft_model import DraftModel
from ridgeline.engine.speculation.ngram import NGrams
from ridgeline.engine.speculation.proposer import Proposer, Target
from ridgeline.engine.speculation.sinks_and_window import SinksAndWindow
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.errors import InputError
from ridgeline.hardware.threads import threads
from ridgeline.loading import Loaded

PROMPT, OUTPUT, REPLAYED, TEXTS = 128, 256, 96, 4
#: What the replaying proposer gets right, as the issue of speculation is judged by.
ACCEPTANCE = 0.8


@dataclass
class Replaying:
    """Proposes what ``outputs`` hold of a request, each token right with a chance of ``acceptance``."""

    outputs: dict[Request, Sequence[int]]
    acceptance: float
    vocab: int
    draw: random.Random

    def propose(self, chunks: Sequence[Chunk], target: Target) -> list[Proposal]:
        return [Proposal(tuple(map(self._some, self._known(chunk)))) for chunk in chunks]

    def forget(self, sequence: Drafted) -> None:
        """Nothing is kept."""

    def _known(self, chunk: Chunk) -> Sequence[int]:
        done = len(chunk.sequence.output)
        return self.outputs[chunk.sequence.request][done : done + chunk.room]

    def _some(self, token: int) -> int:
        return token if self.draw.random() < self.acceptance else (token + 1) % self.vocab


@dataclass
class Wrong:
    """The proposals of ``proposer`` at its costs, each token made another."""

    proposer: Proposer
    vocab: int

    def propose(self, chunks: Sequence[Chunk], target: Target) -> list[Proposal]:
        found = self.proposer.propose(chunks, target)
        return [Proposal(tuple((token + 1) % self.vocab for token in p.tokens)) for p in found]

    def forget(self, sequence: Drafted) -> None:
        self.proposer.forget(sequence)


def compare(
    loaded: Loaded,
    requests: Sequence[Request],
    proposers: dict[str, Proposer],
    rounds: int,
    given_up: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """For each proposer its gain over plain runs, by times per token and by whole requests. The target has
    fewer threads by as many as it has ``given_up`` to a proposer."""
    every = kernels.threads()
    speculators = {name: Speculator(proposer) for name, proposer in proposers.items()}
    runs = {"plain": None, **speculators}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    order, draw = list(runs), random.Random(0)
    for place in range(rounds + 1):  # the first warms up
        for name in order:
            with threads(every - given_up.get(name, 0)):
                times = [_seconds(loaded, request, runs[name]) for request in requests]
            if place:
                seconds[name].append(tuple(map(sum, zip(*times, strict=True))))
        draw.shuffle(order)  # a run finds in the caches what the one before has left
    for speculator in speculators.values():
        speculator.close()
    return {name: _gains(seconds["plain"], seconds[name], speculators[name]) for name in speculators}


def _seconds(loaded: Loaded, request: Request, speculator: Speculator | None) -> tuple[float, float]:
    """Of the tokens after the first, and of the whole request."""
    generator = Generator(
        loaded.model, loaded.ops, loaded.requests(), prefix_cache=False, speculator=speculator
    )
    [result] = collect(run(generator.start([request])))
    decoding = result.timings.tpot * (len(result.ids) - 1)
    return decoding, result.timings.ttft + decoding


def _gains(
    plain: Sequence[tuple[float, float]], seconds: Sequence[tuple[float, float]], speculator: Speculator
) -> dict[str, Any]:
    decoding, whole = (
        statistics.median(a[i] / b[i] for a, b in zip(plain, seconds, strict=True)) for i in range(2)
    )
    report = speculator.report
    predicted = report.predicted_gain
    return {
        "gain": decoding,
        "predicted_gain": predicted,
        "gain_over_predicted": None if predicted is None else decoding / predicted,
        "gain_of_whole_requests": whole,
        "acceptance": report.acceptance,
        "tokens_per_trial": report.tokens_per_trial,
        "report": asdict(report),
    }


def outputs_of(loaded: Loaded, requests: Sequence[Request]) -> dict[Request, Sequence[int]]:
    results = collect(run(loaded.generator().start(requests)))
    return {request: result.ids for request, result in zip(requests, results, strict=True)}


def completions(loaded: Loaded) -> list[tuple[int, ...]]:
    """Prompts of code."""
    texts = list(held_out_texts().values())[:TEXTS]
    return [tuple(loaded.tokenizer.encode(text)[:PROMPT]) for text in texts]


def demo_pair(rounds: int) -> dict[str, Any]:
    """Code completion by the demo model, greedy and sampled, with each proposer and those that are wrong."""
    loaded, draft = ridgeline.load("demo"), ridgeline.load("demo-draft")
    prompts = completions(loaded)
    found = {}
    for name, sampling in (("greedy", GREEDY), ("sampled at 0.8", Sampling(0.8))):
        requests = [Request(prompt, OUTPUT, sampling) for prompt in prompts]
        vocab = loaded.config.vocab
        proposers = {
            "draft model": DraftModel(draft, loaded),
            "n-grams": NGrams(),
            "sinks and window": SinksAndWindow(),
            "draft model, always wrong": Wrong(DraftModel(draft, loaded), vocab),
            "replaying, always wrong": Wrong(
                Replaying(outputs_of(loaded, requests), 1.0, vocab, random.Random(0)), vocab
            ),
        }
        found[name] = compare(loaded, requests, proposers, rounds)
    return found


def beside(rounds: int, draft_threads: int) -> dict[str, Any]:
    """The demo pair in turns on all threads, and side by side, each on its own."""
    loaded, draft = ridgeline.load("demo"), ridgeline.load("demo-draft")
    if draft_threads >= kernels.threads():
        raise InputError(f"--draft-threads {draft_threads} leaves the target none of {kernels.threads()}")
    requests = [Request(prompt, OUTPUT, GREEDY) for prompt in completions(loaded)]
    proposers: dict[str, Proposer] = {
        "in turns": DraftModel(draft, loaded),
        "beside": Beside(DraftModel(draft, loaded), threads=draft_threads),
    }
    return {
        "threads": kernels.threads(),
        "draft_threads": draft_threads,
        **compare(loaded, requests, proposers, rounds, {"beside": draft_threads}),
    }


def replayed(model: str, rounds: int) -> dict[str, Any]:
    """Known text, replayed at some acceptance, on a model's shape with random int4-g32 weights."""
    loaded = ridgeline.load(model, weights="random:int4-g32")
    vocab, draw = loaded.config.vocab, random.Random(0)
    requests = [Request(tuple(draw.randrange(vocab) for _ in range(PROMPT)), REPLAYED)]
    outputs = outputs_of(loaded, requests)
    proposers: dict[str, Proposer] = {
        f"acceptance {a}": Replaying(outputs, a, vocab, random.Random(1)) for a in (ACCEPTANCE, 0.0)
    }
    return compare(loaded, requests, proposers, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tinyllama-1.1b")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--draft-threads", type=int, default=1)
    parser.add_argument(
        "--only", choices=("demo", "beside", "replayed"), help="print one part, and store nothing"
    )
    asked = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "demo": lambda: demo_pair(asked.rounds),
        "beside": lambda: beside(asked.rounds, asked.draft_threads),
        "replayed": lambda: replayed(asked.model, asked.rounds),
    }
    result = {"model": asked.model, "rounds": asked.rounds}
    result |= {name: part() for name, part in parts.items() if asked.only in (None, name)}
    print(json.dumps(result, indent=2))
    if asked.only is None:
        print(f"stored in {write_result('speculation', result)}")


if __name__ == "__main__":
    main()
