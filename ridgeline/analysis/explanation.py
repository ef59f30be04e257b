"""What ``explain`` finds: the records of phases, requests and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ridgeline.analysis.arguments import whole_number
from ridgeline.ops.kernel import Flops
from ridgeline.predict import KernelTime

#: New tokens of a decoder's request, where it is not said how many.
OUTPUT = 128


@dataclass(frozen=True)
class Workload:
    """What is asked of the model: ``batch`` requests of ``prompt`` tokens, ``output`` new each."""

    prompt: int = 512
    output: int = OUTPUT
    batch: int = 1

    def __post_init__(self) -> None:
        for name, least in (("prompt", 1), ("output", 0), ("batch", 1)):
            whole_number(name, getattr(self, name), least)


@dataclass(frozen=True)
class Phase:
    """One step: all prompts at once (prefill), or one token of each request (decode). ``seconds_by_tier`` has
    its time at every tier of the device; ``seconds`` is that of the explanation's."""

    name: str
    tokens: int
    context: int
    seconds: float
    tokens_per_second: float
    flops: Flops
    bytes: float
    elements: float
    intensity: float
    activation_bytes: float
    kernels: tuple[KernelTime, ...]
    seconds_by_class: Mapping[str, float]
    seconds_by_bound: Mapping[str, float]
    seconds_by_tier: Mapping[str, float]
    basis: Mapping[str, str]
    unmeasured: tuple[str, ...]
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A whole request: time to its first token, time per further token (None if there is none), and
    until its last."""

    ttft_seconds: float
    tpot_seconds: float | None
    total_seconds: float
    output_tokens_per_second: float


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on the device for this workload; ``tokens_that_fit`` beside weights and activations.

    ``cache`` is what the engine keeps: every token of every layer. ``cache_in_windows`` is what would do
    where layers see a window only, None where that is no less.
    """

    weights: float
    cache: float
    activations: float
    device: float
    cache_bytes_per_token: float
    cache_elements_per_token: int
    tokens_that_fit: int
    cache_in_windows: float | None = None

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.activations

    @property
    def fits(self) -> bool:
        return self.total <= self.device


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found. ``product_format`` is what weights are multiplied in, and ``ridge`` that of
    such products; ``active_parameters`` are those that one token uses; ``mla`` is the form of latent
    attention, if it was chosen; ``tier`` is what the times stand on, and ``basis`` names where each part of
    the device's figures comes from; ``assumptions`` is what a count cannot know or chose."""

    model: str
    parameters: int
    weight_format: str
    activation_format: str
    product_format: str
    cache_format: str
    attention: str
    pairs: str
    device: str
    device_title: str
    ridge: float
    workload: Workload
    phases: tuple[Phase, ...]
    request: Request | None
    memory: MemoryUse
    tier: str
    basis: Mapping[str, str]
    assumptions: tuple[str, ...]
    active_parameters: int
    mla: str | None
