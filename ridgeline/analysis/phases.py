"""The phases of a workload, one step each, and the whole request that they make."""

from __future__ import annotations

from collections.abc import Callable

from ridgeline.analysis.explanation import Phase, Request, Workload
from ridgeline.analysis.step import predict_encode, predict_step, trace_encode, trace_step
from ridgeline.hardware import Device
from ridgeline.models import EncoderDecoder, Model
from ridgeline.ops.batch import Span
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.trace import Trace
from ridgeline.predict import Prediction, predict
from ridgeline.predict.tiers import Tier, tiers_of

#: Context lengths at which a long generation's steps are predicted.
SAMPLES = 17


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


def encode_and_decode(
    model: EncoderDecoder,
    device: Device,
    workload: Workload,
    pairs: Pairs,
    tier: Tier,
    options: dict[str, object],
) -> tuple[list[Phase], Request | None]:
    """An encoder-decoder's phases. Its decoder begins with a token that is no part of the prompt."""

    def phase(name: str, span: Span, prediction: Prediction, trace: Trace) -> Phase:
        return phase_of(name, span.rows * span.count, span.keys, prediction, trace, device)

    source = Span(workload.prompt, 0, workload.batch)
    encoding = predict_encode(model, device, [source], pairs=pairs, tier=tier, **options)
    phases = [phase("encode", source, encoding, trace_encode(model, [source], **options))]
    decoding = {**options, "encoded": [source]}
    if workload.output > 0:
        span = Span(1, min(1, workload.output - 1), workload.batch)
        step = predict_step(model, device, [span], pairs=pairs, tier=tier, **decoding)
        phases.append(phase("decode", span, step, trace_step(model, [span], **decoding)))
    return phases, request_of(model, device, workload, encoding.seconds, {**decoding, "tier": tier})


def request_of(
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
