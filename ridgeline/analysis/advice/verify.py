"""Tries on this machine what was advised: the gain that was predicted beside the one that was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ridgeline.analysis.advice.advise import Advice, Goal, Suggestion
from ridgeline.analysis.bench import BenchTest, repetitions
from ridgeline.errors import InputError

if TYPE_CHECKING:
    from ridgeline.loading import Loaded

#: Rounds in which the plain run and the one with the technique take turns.
ROUNDS = 3


@dataclass(frozen=True)
class Trial:
    """A technique's ``predicted`` gain and the ``measured`` one, unless ``skipped`` says why there is none.
    ``observed`` is what became of the assumption."""

    technique: str
    predicted: float
    measured: float | None
    skipped: str | None = None
    observed: str | None = None


def verify(
    advice: Advice,
    model: str,
    weights: str,
    text: str | None = None,
    rounds: int = ROUNDS,
    progress: Callable[[str, float], None] | None = None,
    device: str = "cpu",
) -> tuple[Trial, ...]:
    """Every suggestion of ``advice`` that this machine can run, run on its ``device``, cpu or cuda.

    ``model`` and ``weights`` are what :func:`ridgeline.load` takes. ``text`` is what speculation continues,
    if the weights are real ones. Plain runs and those of a technique take turns; a gain is the ratio of their
    medians.

    Raises InputError for advice on memory, which is counted and not timed.
    """
    from ridgeline.loading import load

    if advice.goal == Goal.MEMORY:
        raise InputError("memory is counted, not timed: verify advice for latency or throughput")
    plain = load(model, weights=weights, device=device)
    trials = []
    for i, suggestion in enumerate(advice.suggestions):
        if progress is not None:
            progress(suggestion.technique, i / len(advice.suggestions))
        try:
            trials.append(_try(advice, suggestion, plain, model, weights, text, rounds, device))
        except InputError as error:
            trials.append(Trial(suggestion.technique, suggestion.gain, None, str(error)))
    return tuple(trials)


def _try(
    advice: Advice,
    suggestion: Suggestion,
    plain: Loaded,
    model: str,
    weights: str,
    text: str | None,
    rounds: int,
    device: str,
) -> Trial:
    trial = suggestion.trial
    if trial is None:
        return Trial(suggestion.technique, suggestion.gain, None, "there is nothing to run for it here")
    if trial == "prefix":
        return _reused(advice, suggestion, plain, rounds)
    if trial in ("ngram", "self") or trial.startswith("draft:"):
        if weights.startswith("random") or text is None:
            reason = "random weights continue no text, so nothing can be guessed of it"
            return Trial(suggestion.technique, suggestion.gain, None, reason)
        return _speculated(advice, suggestion, plain, text, rounds)
    other = plain
    if trial != "batch":
        from ridgeline.loading import load

        other = load(
            model, weights=f"random:{trial}" if weights.startswith("random") else trial, device=device
        )
        now = _request(advice, plain, advice.batch)
        better = _request(advice, other, suggestion.plan.batch)
        seconds = [(next(now), next(better)) for _ in range(rounds)]
        a, b = (statistics.median(column) for column in zip(*seconds, strict=True))
        ratio = a / b
        if advice.goal == Goal.THROUGHPUT:
            ratio *= suggestion.plan.batch / advice.batch
    return Trial(suggestion.technique, suggestion.gain, ratio)


def _request(advice: Advice, loaded: Loaded, batch: int) -> Iterator[float]:
    """Seconds of the whole workload, time after time: the prompts, then the tokens after the first."""
    parts = [repetitions(loaded, BenchTest("prompt", advice.prompt, 0, batch))]
    if advice.output > 1:
        parts.append(repetitions(loaded, BenchTest("generate", advice.output - 1, advice.prompt, batch)))
    while True:
        yield sum(next(part) for part in parts)


def _reused(advice: Advice, suggestion: Suggestion, plain: Loaded, rounds: int) -> Trial:
    """The gain for one request whose prompt begins as one that was read just before, in whole blocks."""
    from ridgeline.engine.generate import collect
    from ridgeline.engine.sampling import GREEDY

    generator = plain.generator(prefix_cache=True)
    known = int(suggestion.plan.reused * advice.prompt)
    vocab = plain.config.vocab

    def seconds(run: int, shares: bool) -> float:
        """``run`` tells prompts apart, so that none finds more than it should."""
        tokens = [(7919 * run + 31 * i) % vocab for i in range(advice.prompt)]
        if shares:
            list(collect(generator.stream(tokens[:known], max_tokens=1, sampling=GREEDY, stop_ids=())))
        [result] = collect(
            generator.stream(tokens, max_tokens=max(advice.output, 1), sampling=GREEDY, stop_ids=())
        )
        rest = result.timings.tpot * (len(result.ids) - 1) if len(result.ids) > 1 else 0.0
        return result.timings.ttft + rest

    seconds(0, True)  # records its passes
    pairs = [(seconds(2 * n + 1, False), seconds(2 * n + 2, True)) for n in range(rounds)]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Trial(suggestion.technique, suggestion.gain, a / b)


def _speculated(advice: Advice, suggestion: Suggestion, plain: Loaded, text: str, rounds: int) -> Trial:
    """The gain for one request, which continues the first ``prompt`` tokens of ``text``."""
    from ridgeline.engine.generate import collect
    from ridgeline.engine.sampling import GREEDY
    from ridgeline.engine.speculation.choice import choose

    ids = plain.tokenizer.encode(text)[: advice.prompt]
    if len(ids) < advice.prompt:
        raise InputError(f"the text to continue has {len(ids)} tokens, and the prompt {advice.prompt}")
    speculator = choose(suggestion.trial, plain)

    def seconds(with_speculation: bool) -> float:
        used = speculator if with_speculation else None
        generator = plain.generator(prefix_cache=False, speculator=used)
        [result] = collect(generator.stream(ids, max_tokens=advice.output, sampling=GREEDY, stop_ids=()))
        return result.timings.ttft + result.timings.tpot * (len(result.ids) - 1)

    seconds(True)  # records its passes, and learns what steps cost
    pairs = [(seconds(False), seconds(True)) for _ in range(rounds)]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    accepted = speculator.report.acceptance
    observed = None if accepted is None else f"{accepted:.0%} accepted"
    return Trial(suggestion.technique, suggestion.gain, a / b, observed=observed)
