"""The techniques that a workload can be run with: each changes the plan, and has assumptions and a price."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum

from ridgeline.analysis.advice.plan import Outcome, Plan, Speculation, Workbench
from ridgeline.analysis.explain import NAIVE
from ridgeline.analysis.step import default_lowering
from ridgeline.engine.speculation.sinks_and_window import SinksAndWindow
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
    """``plan`` runs the workload with the technique; ``command`` tries it. ``trial`` is what a verification
    on this machine runs for it, None where there is nothing to run."""

    name: str
    plan: Plan
    quality: Quality
    assumption: str
    command: str
    trial: str | None = None


@dataclass(frozen=True)
class Situation:
    """A workload, how it is run now, and what is assumed. ``score`` is higher for a better outcome; ``on`` is
    what a command calls the device."""

    bench: Workbench
    plan: Plan
    assumptions: Assumptions
    draft: ModelConfig | None
    score: Callable[[Outcome], float]
    on: str

    @property
    def model(self) -> str:
        return self.bench.config.name

    @property
    def has_files(self) -> bool:
        """Whether there are weights to run, and not only a config."""
        return self.model not in builtin_names()

    def analysis(self, command: str, *options: object, batch: bool = True) -> str:
        """The command line of an analysis of this workload."""
        bench = self.bench
        words = ["ridgeline", command, self.model, "--on", self.on, "--prompt", bench.prompt]
        words += ["--output", bench.output] if bench.config.is_decoder else []
        words += ["--batch", self.plan.batch] if batch else []
        return shlex.join(map(str, (*words, *options)))


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
    config = s.bench.config
    yield from _weights(s)
    if config.is_decoder:
        yield from _cache(s)
    if config.is_decoder and not config.is_encoder_decoder:
        yield from _speculation(s)
        yield from _reuse(s)
        yield from _window(s)
    if config.is_decoder and s.bench.output:
        yield from _tensor(s)
    yield from _batch(s)


def not_for(config: ModelConfig) -> Iterator[str]:
    """The techniques that are not for such a model, each with the reason."""
    if config.is_encoder_decoder:
        yield "speculation: the engine verifies no proposals of an encoder-decoder"
        yield "reuse of shared prefixes: every token of an encoder's prompt depends on those behind it"
        yield "first and last tokens only: the decoder reads all of the prompt"
    elif not config.is_decoder:
        yield f"a KV cache, speculation and all else of decoding: {config.name} is an encoder"


def _weights(s: Situation) -> Iterator[Technique]:
    stored = s.plan.weights or s.bench.config.format
    for name in ("int8", "int4-g128", "int4-g32"):
        if get_format(name).bits >= get_format(stored).bits:
            continue
        runs = not s.bench.config.is_encoder_decoder
        random = "" if s.has_files else "random:"
        yield Technique(
            name=f"weights in {name}",
            plan=replace(s.plan, weights=name),
            quality=Quality.ROUNDED,
            assumption="expanded on chip as fast as read",
            command=f"ridgeline bench {shlex.quote(s.model)} --weights {random}{name}"
            if runs
            else s.analysis("explain", "--weights", name),
            trial=name if runs else None,
        )


def _cache(s: Situation) -> Iterator[Technique]:
    if get_format(s.plan.cache or s.bench.config.format).bits > 8:
        yield Technique(
            name="KV cache in int8",
            plan=replace(s.plan, cache="int8"),
            quality=Quality.ROUNDED,
            assumption="a scale for each token and head",
            command=s.analysis("explain", "--cache", "int8"),
        )


def _speculation(s: Situation) -> Iterator[Technique]:
    """By look-up in the text, by a draft, and by the target itself behind long contexts."""
    if s.bench.output < 2:
        return
    seen = SinksAndWindow().sinks + SinksAndWindow().window
    proposers: list[tuple[str, str, float, dict[str, object]]] = [
        ("n-gram look-up", "ngram", s.assumptions.repeated, {})
    ]
    if s.draft is not None:
        name = f"a draft model ({s.draft.name})"
        proposers.append((name, f"draft:{s.draft.name}", s.assumptions.acceptance, {"draft": s.draft}))
    if s.bench.prompt > 2 * seen:
        name = f"the model itself through {seen:,} tokens"
        proposers.append((name, "self", s.assumptions.acceptance, {"view": seen}))
    for name, option, a, by in proposers:
        plans = [replace(s.plan, speculation=Speculation(a, k, **by)) for k in DRAFTED]
        best = max(plans, key=lambda plan: s.score(s.bench.outcome(plan)))
        generate = f'ridgeline generate {shlex.quote(s.model)} "..." --speculate {shlex.quote(option)}'
        yield Technique(
            name=f"speculation with {name}",
            plan=best,
            quality=Quality.SAME,
            assumption=f"{best.speculation.tokens} proposed a pass, {a:.0%} accepted",
            # random weights continue no text: the gain by acceptance is all that there is to see
            command=generate if s.has_files else s.analysis("decoding", batch=False),
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
            command=f"ridgeline serve {shlex.quote(s.model)}" + ("" if s.has_files else " --weights random"),
            trial="prefix",
        )


def _window(s: Situation) -> Iterator[Technique]:
    window = 1024
    if s.bench.prompt + s.bench.output > 2 * window and s.bench.output > 1:
        yield Technique(
            name=f"first 4 and last {window:,} tokens only (StreamingLLM)",
            plan=replace(s.plan, window=window, sinks=4),
            quality=Quality.OTHER,
            assumption="what is needed stands near the end",
            command=s.analysis("decoding", batch=False),
        )


def _tensor(s: Situation) -> Iterator[Technique]:
    """The devices of a node that share every layer: as many as serve the goal best."""
    device = s.bench.device
    if device.node_devices is None and device.link_bandwidth is None:
        return
    found = []
    for devices in (2, 4, 8):
        plan = replace(s.plan, tensor=devices)
        with suppress(InputError):  # heads that so many cannot share, or more than a node holds
            found.append((s.score(s.bench.outcome(plan)), plan))
    if found:
        _, plan = max(found, key=lambda pair: pair[0])
        yield Technique(
            name=f"tensor parallelism over {plan.tensor} devices",
            plan=plan,
            quality=Quality.SAME,
            assumption=f"{plan.tensor} of them in a node; memory is that of each",
            command=s.analysis("parallel", "--tensor", plan.tensor),
        )


def _batch(s: Situation) -> Iterator[Technique]:
    plans = [replace(s.plan, batch=n) for n in BATCHES if n > s.plan.batch]
    outcomes = [(plan, s.bench.outcome(plan)) for plan in plans]
    fitting = [(plan, outcome) for plan, outcome in outcomes if outcome.fits and not outcome.streamed_bytes]
    if not fitting:
        return
    plan, _ = max(fitting, key=lambda pair: s.score(pair[1]))
    random = "" if s.has_files else " --weights random"
    batches = f"{s.plan.batch},{plan.batch}"
    runs = not s.bench.config.is_encoder_decoder
    compare = f"ridgeline compare {shlex.quote(s.model)} --on {shlex.quote(s.on)} --batch {batches} --all"
    yield Technique(
        name=f"batches of {plan.batch:,}",
        plan=plan,
        quality=Quality.SAME,
        assumption="so many requests at once; each takes longer",
        command=f"ridgeline bench {shlex.quote(s.model)}{random} --batch {batches}" if runs else compare,
        trial="batch" if runs else None,
    )
