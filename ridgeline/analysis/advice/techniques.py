"""The techniques that a workload can be run with: each changes the plan, and has assumptions and a price."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from ridgeline.analysis.advice.plan import Outcome, Plan, Speculation, Workbench
from ridgeline.analysis.explain import NAIVE
from ridgeline.analysis.step import default_lowering
from ridgeline.errors import InputError
from ridgeline.models import ModelConfig, builtin_names
from ridgeline.ops.formats import get_format
from ridgeline.ops.lowering import FUSED, UNFUSED

#: Batch sizes that are tried.
BATCHES = tuple(2**n for n in range(13))
#: Draft lengths that are tried.
DRAFTED = range(1, 9)


class Quality(StrEnum):
    """What a technique does to the answers."""

    SAME = "same"
    ROUNDED = "rounded"
    OTHER = "another function"


@dataclass(frozen=True)
class Assumptions:
    """What a count cannot know: how often a draft's token and one that was looked up are accepted, and which
    share of the prompts was seen before. Raises InputError for what is not from 0 to 1."""

    acceptance: float = 0.6
    repeated: float = 0.3
    shared: float = 0.5

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise InputError(f"{name} must be from 0 to 1, not {share!r}")


@dataclass(frozen=True)
class Technique:
    """``plan`` runs the workload with the technique; ``command`` tries it, with MODEL's name in it."""

    name: str
    plan: Plan
    quality: Quality
    assumption: str
    command: str
    trial: str | None = None


@dataclass(frozen=True)
class Situation:
    """A workload, how it is run now, and what is assumed. ``score`` is higher for a better outcome."""

    bench: Workbench
    plan: Plan
    assumptions: Assumptions
    draft: ModelConfig | None
    score: Callable[[Outcome], float]

    @property
    def model(self) -> str:
        return self.bench.config.name

    @property
    def has_files(self) -> bool:
        """Whether there are weights to run, and not only a config."""
        return self.model not in builtin_names()


def in_use(s: Situation) -> Iterator[tuple[str, Plan]]:
    """What already serves the plan, each with the plan without it."""
    lowering = default_lowering(s.bench.device)
    if s.bench.config.is_decoder and s.bench.output > 1:
        yield "KV cache", replace(s.plan, keeps_cache=False)
    if lowering.name in NAIVE:
        yield "scores kept on chip (FlashAttention)", replace(s.plan, lowering=NAIVE[lowering.name])
    if lowering is FUSED:
        yield "fused operators", replace(s.plan, lowering=UNFUSED)


def techniques(s: Situation) -> Iterator[Technique]:
    """Every technique that applies to the situation."""
    yield from _weights(s)
    if s.bench.config.is_decoder:
        yield from _cache(s)
        yield from _speculation(s)
        yield from _reuse(s)
        yield from _window(s)
    yield from _batch(s)


def _weights(s: Situation) -> Iterator[Technique]:
    stored = s.plan.weights or s.bench.config.format
    for name in ("int8", "int4-g128", "int4-g32"):
        if get_format(name).bits < get_format(stored).bits:
            yield Technique(
                name=f"weights in {name}",
                plan=replace(s.plan, weights=name),
                quality=Quality.ROUNDED,
                assumption="expanded on chip as fast as read",
                command=f"ridgeline bench {s.model} --weights {'' if s.has_files else 'random:'}{name}",
                trial=name,
            )


def _cache(s: Situation) -> Iterator[Technique]:
    if get_format(s.plan.cache or s.bench.config.format).bits > 8:
        yield Technique(
            name="KV cache in int8",
            plan=replace(s.plan, cache="int8"),
            quality=Quality.ROUNDED,
            assumption="a scale for each token and head",
            command=f"ridgeline explain {s.model} --on {s.bench.device.name} --cache int8",
        )


def _speculation(s: Situation) -> Iterator[Technique]:
    if s.bench.output < 2:
        return
    for draft, name, option in ((None, "n-gram look-up", "ngram"), (s.draft, "a draft model", "draft")):
        if option == "draft" and draft is None:
            continue
        a = s.assumptions.repeated if draft is None else s.assumptions.acceptance
        plans = [replace(s.plan, speculation=Speculation(a, k, draft)) for k in DRAFTED]
        best = max(plans, key=lambda plan: s.score(s.bench.outcome(plan)))
        yield Technique(
            name=f"speculation with {name}" + (f" ({draft.name})" if draft else ""),
            plan=best,
            quality=Quality.SAME,
            assumption=f"{best.speculation.tokens} proposed a pass, {a:.0%} accepted",
            command=f'ridgeline generate {s.model} "..." --speculate {option}'
            + (f":{draft.name}" if draft else ""),
            trial=option,
        )


def _reuse(s: Situation) -> Iterator[Technique]:
    share = s.assumptions.shared
    if share > 0:
        yield Technique(
            name="reuse of shared prefixes",
            plan=replace(s.plan, reused=share),
            quality=Quality.SAME,
            assumption=f"{share:.0%} of every prompt was seen before",
            command=f"ridgeline serve {s.model}",
        )


def _window(s: Situation) -> Iterator[Technique]:
    window = 1024
    if s.bench.prompt + s.bench.output > 2 * window:
        yield Technique(
            name=f"first 4 and last {window:,} tokens only (StreamingLLM)",
            plan=replace(s.plan, window=window, sinks=4),
            quality=Quality.OTHER,
            assumption="what is needed stands near the end",
            command=f"ridgeline compare {s.model} --on {s.bench.device.name} --prompt {window}",
        )


def _batch(s: Situation) -> Iterator[Technique]:
    plans = [replace(s.plan, batch=n) for n in BATCHES if n > s.plan.batch]
    outcomes = [(plan, s.bench.outcome(plan)) for plan in plans]
    fitting = [(plan, outcome) for plan, outcome in outcomes if outcome.fits and not outcome.streamed_bytes]
    if fitting:
        plan, _ = max(fitting, key=lambda pair: s.score(pair[1]))
        yield Technique(
            name=f"batches of {plan.batch:,}",
            plan=plan,
            quality=Quality.SAME,
            assumption="so many requests at once; each takes longer",
            command=f"ridgeline bench {s.model}{'' if s.has_files else ' --weights random'} "
            f"--batch {s.plan.batch},{plan.batch}",
            trial="batch",
        )
