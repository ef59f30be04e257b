"""Counting and predicting one step of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device
from ridgeline.hardware.measured import measured_lowering
from ridgeline.models.model import EncoderDecoder, Model, refuse_diffusion, refuse_two_passes
from ridgeline.ops.batch import Memory, Span
from ridgeline.ops.count import Count
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.formats import get_format
from ridgeline.ops.lowering import FUSED, GPU, GPU_QUANTISED, Lowering
from ridgeline.ops.numbers import Number, is_array
from ridgeline.ops.trace import Trace
from ridgeline.predict.prediction import Prediction, predict

if TYPE_CHECKING:
    from ridgeline.ops.count_context import Context


def trace_step(
    model: Model,
    spans: Sequence[Span],
    *,
    cache_format: str | None = None,
    lowering: Lowering = FUSED,
    pairs: Pairs = Pairs.VISIBLE,
    logits: str = "last",
    encoded: Sequence[Span] = (),
    context: Context | None = None,
) -> Trace:
    """Count one step over ``spans``; rows, past and count of a span may be NumPy arrays. With a ``context``
    it is the step of one of the ranks that share these sequences.

    A decoder keeps its keys and values in ``cache_format`` (by default that of the weights which are never
    quantised); an encoder has no cache. ``logits`` are wanted of each sequence's ``last`` row or of ``all``.
    An encoder-decoder's step decodes, beside what was ``encoded`` for each span and lies in a cache, too.

    Raises InputError for no spans, rows or counts below 1, sequences beyond the model's window, and a model
    that takes no tokens.
    """
    refuse_diffusion(model.config)
    _check_spans(model, spans)
    if len(encoded) != len(spans):
        refuse_two_passes(model.config)
    if logits not in ("last", "all"):
        raise InputError(f"logits must be last or all, not {logits!r}")
    lowering = lowering_of(model, lowering)
    activations = activation_format(model, lowering)
    options = {
        "activations": activations,
        "attention": model.plain_format,
        "lowering": lowering,
        "pairs": pairs,
    }
    ops = Count(**options) if context is None else _context_count(context, options)
    cache = None
    if model.config.is_decoder:
        cache = ops.alloc_cache(model.cache_spec(cache_format or model.plain_format), 0)
    batch = ops.batch(spans, logits=logits, cache=cache, memory=_memory(model, ops, encoded, cache_format))
    return ops.trace(model.forward(ops, batch))


def trace_encode(
    model: EncoderDecoder,
    spans: Sequence[Span],
    *,
    cache_format: str | None = None,
    lowering: Lowering = FUSED,
    pairs: Pairs = Pairs.VISIBLE,
) -> Trace:
    """Count what an encoder-decoder does once a sequence: the encoder, and the keys and values that the
    decoder's layers make of its output and keep. Arguments and errors are those of :func:`trace_step`."""
    _check_spans(model, spans)
    lowering = lowering_of(model, lowering)
    activations = activation_format(model, lowering)
    ops = Count(activations=activations, attention=model.plain_format, lowering=lowering, pairs=pairs)
    batch = ops.batch(spans, logits="all", memory=_memory(model, ops, spans, cache_format))
    return ops.trace(model.encode(ops, batch))


def _memory(model: Model, ops: Count, spans: Sequence[Span], cache_format: str | None) -> Memory | None:
    if not model.config.is_encoder_decoder:
        return None
    spec = model.memory_spec(cache_format or model.plain_format)
    return Memory(tuple(spans), cache=ops.alloc_cache(spec, 0))


def predict_step(
    model: Model,
    device: Device,
    spans: Sequence[Span],
    *,
    cache_format: str | None = None,
    lowering: Lowering | None = None,
    pairs: Pairs = Pairs.VISIBLE,
    logits: str = "last",
    tier: str | None = None,
    encoded: Sequence[Span] = (),
) -> Prediction:
    """Predict one step on ``device``: :func:`trace_step`, then the time of every kernel, at the best ``tier``
    that the device has unless one is given.

    ``pairs`` is a convention for the operations that are shown: the time is always that of the
    pairs that a mask lets through.
    """
    options = {
        "cache_format": cache_format,
        "lowering": lowering or default_lowering(device),
        "logits": logits,
        "encoded": encoded,
    }
    return _predicted(lambda pairs: trace_step(model, spans, pairs=pairs, **options), device, pairs, tier)


def predict_encode(
    model: EncoderDecoder,
    device: Device,
    spans: Sequence[Span],
    *,
    cache_format: str | None = None,
    lowering: Lowering | None = None,
    pairs: Pairs = Pairs.VISIBLE,
    tier: str | None = None,
) -> Prediction:
    """Predict :func:`trace_encode` on ``device``; ``pairs`` and ``tier`` as for :func:`predict_step`."""
    options = {"cache_format": cache_format, "lowering": lowering or default_lowering(device)}
    return _predicted(lambda pairs: trace_encode(model, spans, pairs=pairs, **options), device, pairs, tier)


def _predicted(trace: Callable[[Pairs], Trace], device: Device, pairs: Pairs, tier: str | None) -> Prediction:
    prediction = predict(trace(Pairs.VISIBLE), device, tier)
    return prediction if pairs is Pairs.VISIBLE else prediction.counted_as(trace(pairs))


def _context_count(context: Context, options: dict[str, Any]) -> Count:
    from ridgeline.ops.count_context import ContextCount

    return ContextCount(context, **options)


def activation_format(model: Model, lowering: Lowering) -> str:
    """The implementation's own, or that of the weights which are never quantised."""
    return lowering.activations or model.plain_format


def default_lowering(device: Device) -> Lowering:
    """What runs there: the reading whose kernels were measured, or else fused kernels."""
    return measured_lowering(device)


def lowering_of(model: Model, lowering: Lowering) -> Lowering:
    """``lowering`` as it is with the model's weights: the gpu reading's quantised products merge more."""
    if lowering is GPU and any(get_format(w.format).is_quantised for w in model.weights()):
        return GPU_QUANTISED
    return lowering


def _check_spans(model: Model, spans: Sequence[Span]) -> None:
    if not spans:
        raise InputError("a step needs at least one span")
    window = model.config.window
    for span in spans:
        for name, least in (("rows", 1), ("past", 0), ("count", 1)):
            if _least(getattr(span, name)) < least:
                raise InputError(
                    f"a span's {name} must be at least {least}, not {_least(getattr(span, name))}"
                )
        longest = -_least(-span.keys)
        if longest > window:
            raise InputError(
                f"{model.config.name} takes {window} tokens at most, and a span reaches {longest}"
            )


def _least(n: Number) -> Number:
    return n.min() if is_array(n) else n
