"""``ridgeline explain``: where a model's prefill and decode time would go on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from ridgeline.analysis.step import (
    activation_format,
    default_lowering,
    predict_encode,
    predict_step,
    trace_encode,
    trace_step,
)
from ridgeline.errors import InputError
from ridgeline.hardware import Device, load_device
from ridgeline.models import EncoderDecoder, Model, ModelConfig, declare, load_config
from ridgeline.models.model import refuse_diffusion
from ridgeline.models.products import pad_products
from ridgeline.ops.batch import Span
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.formats import get_format, product_format, storage_format
from ridgeline.ops.kernel import Flops, Role
from ridgeline.ops.latent import Mla
from ridgeline.ops.lowering import CPU, CPU_NAIVE, FUSED, NAIVE_ATTENTION
from ridgeline.ops.trace import Trace
from ridgeline.predict import KernelTime, Prediction, predict
from ridgeline.predict.tiers import Tier, tier_of, tiers_of

#: The most prompt or output tokens, or requests at once, that are taken to be meant.
MOST = 1 << 30
#: New tokens of a decoder's request, where it is not said how many.
OUTPUT = 128
#: Each way to run a model, with scores written to memory.
NAIVE = {lowering.name: naive for lowering, naive in ((FUSED, NAIVE_ATTENTION), (CPU, CPU_NAIVE))}
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
    output: int = OUTPUT
    batch: int = 1

    def __post_init__(self) -> None:
        for name, least in (("prompt", 1), ("output", 0), ("batch", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"{name} must be a whole number, not {value!r}")
            if not least <= value <= MOST:
                raise InputError(f"{name} must be {least} to {MOST:,}, not {_short(value)}")


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


def explain(
    model: str | ModelConfig,
    on: str | Device,
    *,
    prompt: int = 512,
    output: int | None = None,
    batch: int = 1,
    weights: str | None = None,
    cache: str | None = None,
    attention: str = Attention.FUSED,
    pairs: str = Pairs.VISIBLE,
    tier: str | None = None,
    mla: str | None = None,
) -> Explanation:
    """Predict prefill, a decode step and a whole request of ``model`` on the device ``on``.

    ``model`` is a built-in name, a folder, or a hub id; ``on`` a device name, a TOML file, or
    ``this``. ``weights`` and ``cache`` are storage formats (``int4-g128``, ``int8``, ...),
    ``attention`` is ``fused`` or ``naive``, ``pairs`` ``visible`` or ``square``. ``tier`` is datasheet,
    generic, calibrated or measured: by default the best founded that the device has. ``mla`` is the form of
    latent attention: ``expanded``, ``absorbed``, or ``auto``, which takes the one of fewer operations. By
    default it is auto, and on a measured machine expanded, as the native kernels run it.

    ``output`` is 128 tokens unless given; an encoder has neither output nor cache.

    Raises InputError for anything unknown, for counts below 1, for a request longer than the
    model's window, and for an encoder's output or cache.
    """
    config = load_config(model) if not isinstance(model, ModelConfig) else model
    refuse_diffusion(config)
    device = load_device(on) if not isinstance(on, Device) else on
    if not config.is_decoder:
        _refuse_decoding(config, output, cache)
    workload = Workload(prompt, _output(config, output), batch)
    _check_window(config, workload)
    chosen = tier_of(device, tier)
    built = declare(config, None if weights is None else storage_format(weights))
    cache_format = built.plain_format if cache is None else storage_format(cache)
    lowering = default_lowering(device)
    activations = multiplied = activation_format(built, lowering)
    if lowering.activations is not None:  # the native kernels: they pack weights and multiply in their kind
        pad_products(built)
        multiplied = product_format(weights or config.stored_format)
    if choice("attention", attention, Attention) is Attention.NAIVE:
        lowering = NAIVE[lowering.name]
    if mla is not None:
        if not (config.is_decoder and built.cache_spec(cache_format).is_latent):
            raise InputError(f"{config.name} has no latent attention, so mla is not for it: leave it out")
        lowering = replace(lowering, mla=choice("mla", mla, Mla))
    shown = choice("pairs", pairs, Pairs)
    options = {"cache_format": cache_format, "lowering": lowering}

    def phase(name: str, span: Span, logits: str = "last") -> Phase:
        prediction = predict_step(built, device, [span], logits=logits, pairs=shown, tier=chosen, **options)
        trace = trace_step(built, [span], logits=logits, **options)
        by_tier = {str(t): predict(trace, device, t).seconds for t in tiers_of(device)}
        rows = span.rows * span.count
        return phase_of(name, rows, span.keys, prediction, trace, by_tier)

    if config.is_encoder_decoder:
        phases, request = _encode_and_decode(built, device, workload, shown, chosen, options)
    elif config.is_decoder:
        phases = [phase("prefill", Span(prompt, 0, batch))]
        if workload.output > 1:
            phases.append(phase("decode", Span(1, prompt, batch)))
        request = _request(built, device, workload, phases[0].seconds, {**options, "tier": chosen})
    else:
        phases = [phase("encode", Span(prompt, 0, batch), "all")]
        request = None
    memory = _memory(built, device, workload, cache_format, max(p.activation_bytes for p in phases))
    return Explanation(
        model=config.name,
        parameters=built.parameter_count(),
        weight_format=weights or config.stored_format,
        activation_format=activations,
        product_format=multiplied,
        cache_format=cache_format,
        attention=str(Attention(attention)),
        pairs=str(shown),
        device=device.name,
        device_title=device.title,
        ridge=device.ridge(multiplied),
        workload=workload,
        phases=tuple(phases),
        request=request,
        memory=memory,
        tier=str(chosen),
        basis={section: source for p in phases for section, source in p.basis.items()},
        assumptions=tuple(_assumptions(built, device, chosen, multiplied, shown, memory, phases)),
        active_parameters=built.active_parameters(),
        mla=mla,
    )


def choice(name: str, value: str, kind: type[StrEnum]) -> StrEnum:
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


def phase_of(
    name: str,
    tokens: int,
    context: int,
    prediction: Prediction,
    trace: Trace,
    by_tier: Mapping[str, float],
) -> Phase:
    """A step of ``tokens`` rows, each of which sees up to ``context`` keys."""
    flops, nbytes = prediction.flops, prediction.bytes
    return Phase(
        name=name,
        tokens=tokens,
        context=context,
        seconds=prediction.seconds,
        tokens_per_second=tokens / prediction.seconds,
        flops=flops,
        bytes=nbytes,
        elements=prediction.elements,
        intensity=flops.total / nbytes,
        activation_bytes=trace.memory().activations,
        kernels=prediction.kernels,
        seconds_by_class=prediction.by_class(),
        seconds_by_bound=prediction.by_bound(),
        seconds_by_tier=by_tier,
        basis={section: str(provenance) for section, provenance in prediction.basis.items()},
        unmeasured=prediction.unmeasured,
        assumptions=trace.assumptions,
    )


def _encode_and_decode(
    model: EncoderDecoder,
    device: Device,
    workload: Workload,
    pairs: Pairs,
    tier: Tier,
    options: dict[str, object],
) -> tuple[list[Phase], Request | None]:
    """An encoder-decoder's phases. Its decoder begins with a token that is no part of the prompt."""

    def phase(name: str, span: Span, prediction: Prediction, trace: Trace) -> Phase:
        by_tier = {str(t): predict(trace, device, t).seconds for t in tiers_of(device)}
        return phase_of(name, span.rows * span.count, span.keys, prediction, trace, by_tier)

    source = Span(workload.prompt, 0, workload.batch)
    encoding = predict_encode(model, device, [source], pairs=pairs, tier=tier, **options)
    phases = [phase("encode", source, encoding, trace_encode(model, [source], **options))]
    decoding = {**options, "encoded": [source]}
    if workload.output > 0:
        span = Span(1, min(1, workload.output - 1), workload.batch)
        step = predict_step(model, device, [span], pairs=pairs, tier=tier, **decoding)
        phases.append(phase("decode", span, step, trace_step(model, [span], **decoding)))
    return phases, _request(model, device, workload, encoding.seconds, {**decoding, "tier": tier})


def _request(
    model: Model, device: Device, workload: Workload, first: float, options: dict[str, object]
) -> Request | None:
    """Prefill, which takes ``first`` seconds, yields the first token; every further one is a step at its own
    context length. Behind an encoder's ``first`` seconds, the first token takes a step as well."""
    if workload.output < 1:
        return None

    def step_seconds(past: int) -> float:
        return predict_step(model, device, [Span(1, past, workload.batch)], **options).seconds

    steps = workload.output - 1
    encoded = model.config.is_encoder_decoder
    ttft = first + step_seconds(0) if encoded else first
    begin = 1 if encoded else workload.prompt
    decoding = _sum_over(step_seconds, begin, begin + steps)
    total = ttft + decoding
    return Request(
        ttft_seconds=ttft,
        tpot_seconds=decoding / steps if steps else None,
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
        per_token = spec.bytes_per_token
    free = max(device.memory_bytes - weights - activations, 0)
    cache = per_token * workload.batch * (workload.prompt + workload.output)
    seen = _last_step_reads(model, workload, cache_format)
    return MemoryUse(
        weights=weights,
        cache=cache,
        activations=activations,
        device=device.memory_bytes,
        cache_bytes_per_token=per_token,
        cache_elements_per_token=elements,
        tokens_that_fit=int(free // per_token) if per_token else 0,
        cache_in_windows=seen if 0 < seen < cache else None,
    )


def _last_step_reads(model: Model, workload: Workload, cache_format: str) -> float:
    """The bytes of the cache that the last step of the request reads, in whole blocks: what a cache must
    still hold that forgets what no layer's window reaches any more."""
    tokens = workload.prompt + workload.output
    if not model.config.is_decoder or model.config.is_encoder_decoder or tokens < 1:
        return 0.0
    trace = trace_step(model, [Span(1, tokens - 1, workload.batch)], cache_format=cache_format)
    return sum(
        access.bytes * op.repeat
        for op in trace.ops
        for part in op.parts
        for access in part.reads
        if access.value.role is Role.CACHE
    )


def _assumptions(
    model: Model,
    device: Device,
    tier: Tier,
    multiplied: str,
    pairs: Pairs,
    memory: MemoryUse,
    phases: Sequence[Phase],
) -> Iterator[str]:
    if pairs is Pairs.VISIBLE:
        yield "attention counts only the query-key pairs that the mask lets through"
    else:
        yield "operations count the full square of query-key pairs, times only the visible ones"
    yield from common_assumptions(model, device, tier, multiplied, memory, phases)


def common_assumptions(
    model: Model, device: Device, tier: Tier, multiplied: str, memory: MemoryUse, phases: Sequence[Phase]
) -> Iterator[str]:
    """What any prediction stands on: how weights are multiplied, and what the device's figures leave out."""
    for p in phases:
        for statement in p.assumptions:
            yield f"{p.name}: {statement}"
    if multiplied == "int8":
        yield "activations are quantised to int8 on chip and multiplied so with the quantised weights"
    elif any(get_format(w.format).is_quantised for w in model.weights()):
        yield f"quantised weights are expanded to {multiplied} on chip and multiplied so"
    if tier in (Tier.GENERIC, Tier.CALIBRATED):
        yield (
            "kernels follow each other without a gap, as in a recorded graph; those that no library would "
            "merge are merged"
        )
    if tier is Tier.GENERIC:
        yield "kernels reach as much of the rates as on other devices, calibrated ones of this class"
    if tier is Tier.DATASHEET:
        yield (
            f"every kernel reaches the device's rates and takes {device.launch_seconds * 1e6:.3g} µs to "
            "launch; caches of unpublished bandwidth are left out: an optimistic estimate, not a forecast"
        )
    unmeasured = dict.fromkeys(name for p in phases for name in p.unmeasured)
    if unmeasured:
        names = ", ".join(unmeasured)
        yield f"no kernel was measured for {names}: these reach the machine's measured rates"
    if memory.cache_in_windows is not None:
        yield (
            "the cache keeps every token of every layer, as the engine does; one that forgot what no window "
            f"reaches any more would take {memory.cache_in_windows / memory.cache:.0%} of it"
        )
    if not memory.fits:
        yield "the device holds the model, which in fact does not fit in its memory"


def _refuse_decoding(config: ModelConfig, output: int | None, cache: str | None) -> None:
    for name, value in (("output", output), ("cache", cache)):
        if value is not None:
            raise InputError(f"{config.name} is an encoder: it has no {name}, so leave it out")


def _output(config: ModelConfig, output: int | None) -> int:
    if output is not None:
        return output
    return OUTPUT if config.is_decoder else 0


def _short(value: int) -> str:
    text = str(value) if value.bit_length() < 1000 else "a number of thousands of digits"
    return text if len(text) <= 40 else f"a number of {len(text)} digits"
