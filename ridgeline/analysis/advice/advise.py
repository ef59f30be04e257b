"""``ridgeline advise``: what bounds a workload, and every technique by the gain that is predicted for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ridgeline.analysis.advice.plan import Outcome, Plan, Workbench
from ridgeline.analysis.advice.techniques import Assumptions, Situation, in_use, not_for, techniques
from ridgeline.analysis.arguments import config_of, device_of, whole_number
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models import ModelConfig, load_config
from ridgeline.models.model import refuse_diffusion
from ridgeline.models.registry import DEMOS


class Goal(StrEnum):
    """What is to be better: the time of a request, tokens a second, or bytes in memory."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"

    def score(self, outcome: Outcome) -> float:
        """Higher is better; what cannot run is worse than all that can."""
        if self is Goal.MEMORY:
            return 1 / outcome.memory_bytes
        value = 1 / outcome.total_seconds if self is Goal.LATENCY else outcome.tokens_per_second
        return value if outcome.fits else value * 1e-12


@dataclass(frozen=True)
class Suggestion:
    """A technique and what is predicted of it.

    ``gain`` is by how much the goal gets better; where the workload does not fit now, over what it would be
    if it did. ``memory_bytes`` is what it takes more. ``trial`` is how this machine can try it, if it can.
    """

    technique: str
    gain: float
    outcome: Outcome
    memory_bytes: float
    quality: str
    assumption: str
    command: str
    trial: str | None
    plan: Plan


@dataclass(frozen=True)
class InUse:
    """What serves the workload already, and by how much the goal would be worse without it."""

    technique: str
    gain: float


@dataclass(frozen=True)
class Advice:
    """What :func:`advise` found."""

    model: str
    device: str
    device_title: str
    goal: str
    prompt: int
    output: int
    batch: int
    now: Outcome
    in_use: tuple[InUse, ...]
    suggestions: tuple[Suggestion, ...]
    refused: tuple[str, ...]


def advise(
    model: str | ModelConfig,
    on: str | Device,
    *,
    goal: str = "latency",
    prompt: int = 512,
    output: int | None = None,
    batch: int = 1,
    weights: str | None = None,
    draft: str | ModelConfig | None = None,
    assumptions: Assumptions | None = None,
) -> Advice:
    """What bounds ``batch`` requests of ``prompt`` and ``output`` tokens, and what each technique would gain.

    ``draft`` is a model to propose tokens, by default the one that ships with the model, if any.

    Raises InputError for anything unknown, numbers below 1, and more tokens than the model takes.
    """
    config = config_of(model)
    refuse_diffusion(config)
    device = device_of(on)
    aim = _goal(goal)
    output = (128 if config.is_decoder else 0) if output is None else output
    _check(config, prompt, output, batch)
    bench = Workbench(config, device, prompt, output)
    known = "this" if device.kernels else on if isinstance(on, str) else device.name
    situation = Situation(
        bench, Plan(batch, weights), assumptions or Assumptions(), _draft(config, draft), aim.score, known
    )
    now = bench.outcome(situation.plan)
    refused = list(not_for(config))
    suggestions = []
    for technique in techniques(situation):
        try:
            outcome = bench.outcome(technique.plan)
        except InputError as error:
            refused.append(f"{technique.name}: {error}")
            continue
        suggestions.append(
            Suggestion(
                technique=technique.name,
                gain=_gain(aim, outcome, now),
                outcome=outcome,
                memory_bytes=outcome.memory_bytes - now.memory_bytes,
                quality=str(technique.quality),
                assumption=technique.assumption,
                command=technique.command,
                trial=technique.trial,
                plan=technique.plan,
            )
        )
    suggestions.sort(key=lambda s: aim.score(s.outcome), reverse=True)
    serving = tuple(InUse(name, _gain(aim, now, bench.outcome(plan))) for name, plan in in_use(situation))
    return Advice(
        model=config.name,
        device=device.name,
        device_title=device.title,
        goal=str(aim),
        prompt=prompt,
        output=output,
        batch=batch,
        now=now,
        in_use=serving,
        suggestions=tuple(suggestions),
        refused=tuple(refused),
    )


def _gain(aim: Goal, better: Outcome, now: Outcome) -> float:
    if aim is Goal.MEMORY:
        return now.memory_bytes / better.memory_bytes
    if aim is Goal.LATENCY:
        return now.total_seconds / better.total_seconds
    return better.tokens_per_second / now.tokens_per_second


def _goal(name: str) -> Goal:
    try:
        return Goal(name)
    except ValueError:
        raise InputError(f"goal must be {', '.join(Goal)}, not '{name}'") from None


def _check(config: ModelConfig, prompt: int, output: int, batch: int) -> None:
    for name, value, least in (("prompt", prompt, 1), ("output", output, 0), ("batch", batch, 1)):
        whole_number(name, value, least)
    if output and not config.is_decoder:
        raise InputError(f"{config.name} is an encoder: it has no output, so leave it out")
    if prompt + output > config.window:
        raise InputError(
            f"{config.name} takes {config.window} tokens at most; prompt {prompt} + output {output} is more"
        )


def _draft(config: ModelConfig, given: str | ModelConfig | None) -> ModelConfig | None:
    if isinstance(given, ModelConfig):
        return given
    if given is None:
        own = f"{config.name}-draft"
        return load_config(own) if own in DEMOS else None
    draft = load_config(given)
    if draft.vocab != config.vocab or not draft.is_decoder:
        raise InputError(
            f"{draft.name} cannot draft for {config.name}, which has {config.vocab:,} tokens of its own: "
            "name a model of the same vocabulary"
        )
    return draft
