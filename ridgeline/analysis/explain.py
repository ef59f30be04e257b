"""``ridgeline explain``: where a model's prefill and decode time would go on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ridgeline.analysis.step import activation_format, default_lowering, predict_step, trace_step
from ridgeline.errors import InputError
from ridgeline.hardware import Device, load_device
from ridgeline.models import Model, ModelConfig, declare, load_config
from ridgeline.ops.count import Pairs
from ridgeline.ops.formats import get_format
from ridgeline.ops.numbers import Number
from ridgeline.ops.protocol import Span
from ridgeline.ops.trace import NAIVE_ATTENTION, Flops
from ridgeline.predict import KernelTime, Prediction, predict

#: Context lengths at which a long generation's steps are predicted.
SAMPLES = 17


class Attention(StrEnum):
    """How attention runs: scores kept on chip, or written to memory."""

    FUSED = "fused"
    NAIVE = "naive"


@dataclass(frozen=True)
class Workload:
    """What is asked of the model: ``batch`` requests of ``prompt`` tokens, ``output`` new each."""

    prompt: int = 512
    output: int = 128
    batch: int = 1

    def __post_init__(self) -> None:
        for name, least in (("prompt", 1), ("output", 0), ("batch", 1)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")


@dataclass(frozen=True)
class Phase:
    """One step: all prompts at once (prefill), or one token of each request (decode)."""

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
    basis: Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """A whole request: time to its first token, time per further token, and until its last."""

    ttft_seconds: float
    tpot_seconds: float
    total_seconds: float
    output_tokens_per_second: float


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on the device for this workload; ``tokens_that_fit`` beside weights and activations."""

    weights: float
    cache: float
    activations: float
    device: float
    cache_bytes_per_token: float
    cache_elements_per_token: int
    tokens_that_fit: int

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.activations

    @property
    def fits(self) -> bool:
        return self.total <= self.device


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found. ``basis`` names what each part of the device's figures stands
    on; ``assumptions`` is what a count cannot know or chose."""

    model: str
    parameters: int
    weight_format: str
    activation_format: str
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
    basis: Mapping[str, str]
    assumptions: tuple[str, ...]


def explain(
    model: str | ModelConfig,
    on: str | Device,
    *,
    prompt: int = 512,
    output: int = 128,
    batch: int = 1,
    weights: str | None = None,
    cache: str | None = None,
    attention: str = Attention.FUSED,
    pairs: str = Pairs.VISIBLE,
) -> Explanation:
    """Predict prefill, a decode step and a whole request of ``model`` on the device ``on``.

    ``model`` is a built-in name, a folder, or a hub id; ``on`` a device name, a TOML file, or
    ``this``. ``weights`` and ``cache`` are storage formats (``int4-g128``, ``int8``, ...),
    ``attention`` is ``fused`` or ``naive``, ``pairs`` ``visible`` or ``square``.

    Raises InputError for anything unknown, for counts below 1, and for a request longer than the
    model's window.
    """
    config = load_config(model) if not isinstance(model, ModelConfig) else model
    device = load_device(on) if not isinstance(on, Device) else on
    workload = Workload(prompt, output if config.is_decoder else 0, batch)
    _check_window(config, workload)
    built = declare(config, None if weights is None else get_format(weights).name)
    cache_format = get_format(cache or activation_format(built)).name
    lowering = default_lowering(device)
    if _choice("attention", attention, Attention) is Attention.NAIVE:
        lowering = NAIVE_ATTENTION
    options = {"cache_format": cache_format, "lowering": lowering, "pairs": _choice("pairs", pairs, Pairs)}

    def phase(name: str, span: Span, logits: str = "last") -> Phase:
        trace = trace_step(built, [span], logits=logits, **options)
        return _phase(name, span, predict(trace, device), trace.memory().activations)

    if config.is_decoder:
        phases = [phase("prefill", Span(prompt, 0, batch))]
        if workload.output > 1:
            phases.append(phase("decode", Span(1, prompt, batch)))
        request = _request(built, device, workload, phases[0].seconds, options)
    else:
        phases = [phase("encode", Span(prompt, 0, batch), "all")]
        request = None
    memory = _memory(built, device, workload, cache_format, max(p.activation_bytes for p in phases))
    return Explanation(
        model=config.name,
        parameters=built.parameter_count(),
        weight_format=weights or config.format,
        activation_format=activation_format(built),
        cache_format=cache_format,
        attention=str(attention),
        pairs=str(pairs),
        device=device.name,
        device_title=device.title,
        ridge=device.ridge(activation_format(built)),
        workload=workload,
        phases=tuple(phases),
        request=request,
        memory=memory,
        basis=phases[0].basis,
        assumptions=_assumptions(device, options["pairs"]),
    )


def _choice(name: str, value: str, kind: type[StrEnum]) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"{name} must be {' or '.join(kind)}, not '{value}'") from None


def _check_window(config: ModelConfig, workload: Workload) -> None:
    length = workload.prompt + workload.output
    if length > config.window:
        raise InputError(
            f"{config.name} takes {config.window} tokens at most; prompt {workload.prompt} + output "
            f"{workload.output} = {length} is longer"
        )


def _phase(name: str, span: Span, prediction: Prediction, activations: Number) -> Phase:
    tokens = span.rows * span.count
    flops, nbytes = prediction.flops, prediction.bytes
    return Phase(
        name=name,
        tokens=tokens,
        context=span.keys,
        seconds=prediction.seconds,
        tokens_per_second=tokens / prediction.seconds,
        flops=flops,
        bytes=nbytes,
        elements=prediction.elements,
        intensity=flops.total / nbytes,
        activation_bytes=activations,
        kernels=prediction.kernels,
        seconds_by_class=prediction.by_class(),
        seconds_by_bound=prediction.by_bound(),
        basis={section: str(provenance) for section, provenance in prediction.basis.items()},
    )


def _request(
    model: Model, device: Device, workload: Workload, ttft: float, options: dict[str, object]
) -> Request | None:
    """Prefill yields the first token; every further one is a step at its own context length."""
    steps = workload.output - 1
    if steps < 0:
        return None

    def step_seconds(past: int) -> float:
        return predict_step(model, device, [Span(1, past, workload.batch)], **options).seconds

    decoding = _sum_over(step_seconds, workload.prompt, workload.prompt + steps)
    total = ttft + decoding
    return Request(
        ttft_seconds=ttft,
        tpot_seconds=decoding / steps if steps else 0.0,
        total_seconds=total,
        output_tokens_per_second=workload.batch * workload.output / total,
    )


def _sum_over(function: Callable[[int], float], start: int, stop: int) -> float:
    """The sum of function(n) over start <= n < stop, straight between at most SAMPLES points:
    a step's time is piecewise linear in its context, so little is lost."""
    if stop - start <= SAMPLES:
        return sum(function(n) for n in range(start, stop))
    points = sorted({start + round(i * (stop - 1 - start) / (SAMPLES - 1)) for i in range(SAMPLES)})
    values = [function(n) for n in points]
    total = values[-1]
    for n, m, a, b in zip(points, points[1:], values, values[1:], strict=False):
        total += (m - n) * (a + b) / 2 + (a - b) / 2  # n..m-1 on the line from a to b
    return total


def _memory(
    model: Model, device: Device, workload: Workload, cache_format: str, activations: float
) -> MemoryUse:
    weights = model.weight_bytes()
    elements, per_token = 0, 0.0
    if model.config.is_decoder:
        spec = model.cache_spec(cache_format)
        elements = spec.elements_per_token
        per_token = get_format(cache_format).nbytes((2 * spec.layers * spec.kv_heads, spec.head_dim))
    free = max(device.memory_bytes - weights - activations, 0)
    return MemoryUse(
        weights=weights,
        cache=per_token * workload.batch * (workload.prompt + workload.output),
        activations=activations,
        device=device.memory_bytes,
        cache_bytes_per_token=per_token,
        cache_elements_per_token=elements,
        tokens_that_fit=int(free // per_token) if per_token else 0,
    )


def _assumptions(device: Device, pairs: Pairs) -> tuple[str, ...]:
    said = []
    if pairs is Pairs.VISIBLE:
        said.append("attention counts only the query-key pairs that the mask lets through")
    else:
        said.append("attention counts the full square of query-key pairs")
    if not device.kernels:
        said.append("every kernel reaches the device's rates: a lower bound on time, not a forecast")
        said.append("one device, even where the model does not fit in its memory")
    return tuple(said)
