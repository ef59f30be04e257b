"""The phases of a workload, one step each, and the whole request that they make."""

from __future__ import annotations

from ridgeline.analysis.explanation import Phase, Request, Workload
from ridgeline.analysis.generation import mean_of_steps
from ridgeline.analysis.setting import Setting
from ridgeline.analysis.step import predict_encode, predict_step, trace_encode, trace_step
from ridgeline.hardware import Device
from ridgeline.ops.batch import Span
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.trace import Trace
from ridgeline.predict import Prediction, predict
from ridgeline.predict.tiers import tiers_of


def phase_of(
    name: str,
    tokens: int,
    context: int,
    prediction: Prediction,
    trace: Trace,
    device: Device,
) -> Phase:
    """A step of ``tokens`` rows, each of which sees up to ``context`` keys, as predicted on ``device``."""
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
        seconds_by_tier={str(t): predict(trace, device, t).seconds for t in tiers_of(device)},
        basis={section: str(provenance) for section, provenance in prediction.basis.items()},
        unmeasured=prediction.unmeasured,
        assumptions=trace.assumptions,
    )


def encode_and_decode(setting: Setting, workload: Workload, pairs: Pairs) -> list[Phase]:
    """An encoder-decoder's phases. Its decoder begins with a token that is no part of the prompt."""
    model, device = setting.model, setting.device
    timed = {"cache_format": setting.cache, "lowering": setting.lowering, "pairs": pairs}
    counted = {"cache_format": setting.cache, "lowering": setting.lowering}

    def phase(name: str, span: Span, prediction: Prediction, trace: Trace) -> Phase:
        return phase_of(name, span.rows * span.count, span.keys, prediction, trace, device)

    source = Span(workload.prompt, 0, workload.batch)
    encoding = predict_encode(model, device, [source], tier=setting.tier, **timed)
    phases = [phase("encode", source, encoding, trace_encode(model, [source], **counted))]
    if workload.output > 0:
        span = Span(1, min(1, workload.output - 1), workload.batch)
        step = predict_step(model, device, [span], tier=setting.tier, encoded=[source], **timed)
        trace = trace_step(model, [span], encoded=[source], **counted)
        phases.append(phase("decode", span, step, trace))
    return phases


def request_of(setting: Setting, workload: Workload, first: float) -> Request | None:
    """Prefill, which takes ``first`` seconds, yields the first token; every further one is a step at its own
    context length. Behind an encoder's ``first`` seconds, the first token takes a step as well."""
    if workload.output < 1:
        return None
    prompt, batch = workload.prompt, workload.batch

    def step_seconds(given: int) -> float:
        return setting.next(prompt, given, batch).seconds

    steps = workload.output - 1
    ttft = first + step_seconds(0) if setting.config.is_encoder_decoder else first
    tpot = mean_of_steps(step_seconds, 1, steps) if steps else None
    total = ttft + steps * (tpot or 0.0)
    return Request(
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        total_seconds=total,
        output_tokens_per_second=workload.batch * workload.output / total,
    )
