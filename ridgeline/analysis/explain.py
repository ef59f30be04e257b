"""``ridgeline explain``: where a model's prefill and decode time would go on a device."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from ridgeline.analysis.arguments import choice, config_of, device_of
from ridgeline.analysis.assumptions import explain_assumptions
from ridgeline.analysis.explanation import OUTPUT, Explanation, MemoryUse, Phase, Workload
from ridgeline.analysis.phases import encode_and_decode, phase_of, request_of
from ridgeline.analysis.setting import settle
from ridgeline.analysis.step import activation_format, default_lowering, predict_step, trace_step
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models import Model, ModelConfig
from ridgeline.models.model import refuse_diffusion
from ridgeline.ops.batch import Span
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.formats import product_format
from ridgeline.ops.kernel import Role
from ridgeline.ops.latent import Mla
from ridgeline.ops.lowering import CPU, CPU_NAIVE, FUSED, NAIVE_ATTENTION
from ridgeline.predict.tiers import tier_of

#: Each way to run a model, with scores written to memory.
NAIVE = {lowering.name: naive for lowering, naive in ((FUSED, NAIVE_ATTENTION), (CPU, CPU_NAIVE))}


class Attention(StrEnum):
    """How attention runs: scores kept on chip, or written to memory."""

    FUSED = "fused"
    NAIVE = "naive"


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
    config = config_of(model)
    refuse_diffusion(config)
    device = device_of(on)
    if not config.is_decoder:
        _refuse_decoding(config, output, cache)
    workload = Workload(prompt, _output(config, output), batch)
    _check_window(config, workload)
    chosen = tier_of(device, tier)
    setting = settle(config, device, weights, cache)
    built, cache_format = setting.model, setting.cache
    lowering = default_lowering(device)
    activations = multiplied = activation_format(built, lowering)
    if lowering.activations is not None:  # the native kernels multiply in the kind that they pack weights in
        multiplied = product_format(setting.weights)
    if choice("attention", attention, Attention) is Attention.NAIVE:
        lowering = NAIVE[lowering.name]
    if mla is not None:
        if not (config.is_decoder and built.cache_spec(cache_format).is_latent):
            raise InputError(f"{config.name} has no latent attention, so mla is not for it: leave it out")
        lowering = replace(lowering, mla=choice("mla", mla, Mla))
    shown = choice("pairs", pairs, Pairs)
    setting = replace(setting, lowering=lowering, tier=chosen)
    options = {"cache_format": cache_format, "lowering": lowering}

    def phase(name: str, span: Span, logits: str = "last") -> Phase:
        prediction = predict_step(built, device, [span], logits=logits, pairs=shown, tier=chosen, **options)
        trace = trace_step(built, [span], logits=logits, **options)
        return phase_of(name, span.rows * span.count, span.keys, prediction, trace, device)

    if config.is_encoder_decoder:
        phases = encode_and_decode(setting, workload, shown)
    elif config.is_decoder:
        phases = [phase("prefill", Span(prompt, 0, batch))]
        if workload.output > 1:
            phases.append(phase("decode", Span(1, prompt, batch)))
    else:
        phases = [phase("encode", Span(prompt, 0, batch), "all")]
    request = request_of(setting, workload, phases[0].seconds) if config.is_decoder else None
    memory = _memory(built, device, workload, cache_format, max(p.activation_bytes for p in phases))
    return Explanation(
        model=config.name,
        parameters=built.parameter_count(),
        weight_format=setting.weights,
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
        assumptions=tuple(explain_assumptions(built, device, chosen, multiplied, shown, memory, phases)),
        active_parameters=built.active_parameters(),
        mla=mla,
    )


def _check_window(config: ModelConfig, workload: Workload) -> None:
    length = workload.prompt + workload.output
    if length > config.window:
        raise InputError(
            f"{config.name} takes {config.window} tokens at most; prompt {workload.prompt} + output "
            f"{workload.output} = {length} is longer"
        )


def _memory(
    model: Model, device: Device, workload: Workload, cache_format: str, activations: float
) -> MemoryUse:
    weights = model.weight_bytes()
    spec = model.cache_spec(cache_format) if model.config.is_decoder else None
    elements, per_token = (0, 0.0) if spec is None else (spec.elements_per_token, spec.bytes_per_token)
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


def _refuse_decoding(config: ModelConfig, output: int | None, cache: str | None) -> None:
    for name, value in (("output", output), ("cache", cache)):
        if value is not None:
            raise InputError(f"{config.name} is an encoder: it has no {name}, so leave it out")


def _output(config: ModelConfig, output: int | None) -> int:
    if output is not None:
        return output
    return OUTPUT if config.is_decoder else 0
