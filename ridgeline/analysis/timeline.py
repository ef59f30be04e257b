"""What an engine did from moment to moment: every request, every step, and the operators of some steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ridgeline.engine.steps import StepReport

State = Literal["queued", "prefill", "decode", "preempted"]


@dataclass(frozen=True)
class Phase:
    """``state`` from ``begin`` to ``end``, in seconds on the engine's clock."""

    state: State
    begin: float
    end: float


@dataclass(frozen=True)
class RequestTimeline:
    """The phases of a request, each beginning where the one before ends."""

    prompt_tokens: int
    output_tokens: int
    phases: tuple[Phase, ...]


@dataclass(frozen=True)
class OperatorRun:
    """One call of an operator: of layer ``layer`` of its loop, None outside of one. ``begin`` and ``seconds``
    were measured. ``predicted`` and ``bound`` are None unless the machine was measured."""

    name: str
    kind: str
    layer: int | None
    begin: float
    seconds: float
    flops: float
    bytes: float
    predicted: float | None
    bound: str | None


@dataclass(frozen=True)
class ProfiledStep:
    """Step number ``step`` once more, operator by operator, beginning when its pass through the model did."""

    step: int
    begin: float
    end: float
    operators: tuple[OperatorRun, ...]


@dataclass(frozen=True)
class Load:
    """What the engine holds from ``moment`` on: cache blocks in use, and rows in the step."""

    moment: float
    blocks: int
    prefill_rows: int
    decode_rows: int


@dataclass(frozen=True)
class Timeline:
    """What :func:`~ridgeline.analysis.observe.observe` saw; ``blocks`` are all that the cache has."""

    model: str
    weight_format: str
    blocks: int
    requests: tuple[RequestTimeline, ...]
    steps: tuple[StepReport, ...]
    profiled: tuple[ProfiledStep, ...]
    loads: tuple[Load, ...]
