"""Counting and predicting one step of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device
from ridgeline.hardware.kernels import Kernels
from ridgeline.models.model import Model, refuse_diffusion
from ridgeline.ops.count import Count, Pairs
from ridgeline.ops.numbers import Number, is_array
from ridgeline.ops.protocol import Span
from ridgeline.ops.trace import FUSED, Lowering, Trace
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
    context: Context | None = None,
) -> Trace:
    """Count one step over ``spans``; rows, past and count of a span may be NumPy arrays. With a ``context``
    it is the step of one of the ranks that share these sequences.

    A decoder keeps its keys and values in ``cache_format`` (by default that of the weights which are never
    quantised); an encoder has no cache. ``logits`` are wanted of each sequence's ``last`` row or of ``all``.

    Raises InputError for no spans, rows or counts below 1, sequences beyond the model's window, and a model
    that takes no tokens.
    """
    refuse_diffusion(model.config)
    _check_spans(model, spans)
    if logits not in ("last", "all"):
        raise InputError(f"logits must be last or all, not {logits!r}")
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
    batch = ops.batch(spans, logits=logits, cache=cache)
    return ops.trace(model.forward(ops, batch))


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
    }
    prediction = predict(trace_step(model, spans, **options), device, tier)
    if pairs is Pairs.VISIBLE:
        return prediction
    return prediction.counted_as(trace_step(model, spans, pairs=pairs, **options))


def _context_count(context: Context, options: dict[str, Any]) -> Count:
    from ridgeline.ops.count_context import ContextCount

    return ContextCount(context, **options)


def activation_format(model: Model, lowering: Lowering) -> str:
    """The implementation's own, or that of the weights which are never quantised."""
    return lowering.activations or model.plain_format


def default_lowering(device: Device) -> Lowering:
    """What runs there: the reading whose kernels were measured, or else fused kernels."""
    return Kernels.from_dict(device.kernels).lowering if device.kernels else FUSED


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
