"""A model in chosen formats on a device: what every analysis of a workload starts from.

A request is the same to all of them: what comes before its first token (:meth:`Setting.first`), and one step
for each token after it (:meth:`Setting.next`). Of an encoder-decoder the first is encoding the prompt and the
decoder's first step, of an encoder the one pass that there is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ridgeline.analysis.arguments import config_of, device_of
from ridgeline.analysis.generation import mean_step
from ridgeline.analysis.step import (
    default_lowering,
    predict_encode,
    predict_step,
    trace_encode,
    trace_step,
)
from ridgeline.hardware import Device
from ridgeline.models import Model, ModelConfig, declare
from ridgeline.models.model import refuse_diffusion
from ridgeline.models.products import pad_products
from ridgeline.ops.batch import Span
from ridgeline.ops.formats import storage_format
from ridgeline.ops.lowering import Lowering
from ridgeline.ops.numbers import Number, maximum
from ridgeline.predict import Prediction


@dataclass(frozen=True)
class Setting:
    """A declared model, its weights in ``weights`` and its cache in ``cache``, on ``device``, run as
    ``lowering`` says (by default as the device was measured) and timed at ``tier`` (by default its best).
    Numbers of tokens and sequences may be arrays that broadcast."""

    model: Model
    device: Device
    weights: str
    cache: str
    lowering: Lowering | None = None
    tier: str | None = None

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def read(self, prompt: Number, batch: Number = 1, found: Number = 0) -> Prediction:
        """The pass that reads ``batch`` prompts, of which ``found`` tokens lie in the cache already: prefill,
        or encoding."""
        if self.config.is_encoder_decoder:
            source = Span(prompt, 0, batch)
            return predict_encode(self.model, self.device, [source], **self._timed)
        span = Span(prompt - found, found, batch)
        return predict_step(self.model, self.device, [span], logits=self._logits, **self._timed)

    def first(self, prompt: Number, batch: Number = 1, found: Number = 0) -> Prediction:
        """All that runs until the first token of ``batch`` prompts is there: :meth:`read`, and behind an
        encoder a step of the decoder."""
        reading = self.read(prompt, batch, found)
        if not self.config.is_encoder_decoder:
            return reading
        return reading.followed_by(self.next(prompt, 0, batch))

    def next(self, prompt: Number, given: Number, batch: Number = 1, rows: Number = 1) -> Prediction:
        """The step behind ``given`` tokens of the output that takes the last of them and gives the one after;
        with more ``rows``, as many proposed tokens as are more than one are verified as well."""
        span, encoded = self._step(prompt, given, batch, rows)
        return predict_step(self.model, self.device, [span], encoded=encoded, **self._timed)

    def anew(self, prompt: Number, given: Number, batch: Number = 1) -> Prediction:
        """The step of :meth:`next` where nothing was kept: prompt and output are computed again."""
        if not self.config.is_encoder_decoder:
            return self.first(prompt + given, batch)
        span, source = Span(given + 1, 0, batch), Span(prompt, 0, batch)
        step = predict_step(self.model, self.device, [span], encoded=[source], **self._timed)
        return self.read(prompt, batch).followed_by(step)

    def mean_next(self, prompt: Any, steps: Any, batch: Any = 1) -> Any:
        """The mean seconds of the ``steps`` steps after the first token."""

        def seconds(given: Any) -> Any:
            return self.next(_spread(prompt, given), given, _spread(batch, given)).seconds

        return mean_step(seconds, 1, steps)

    def activation_bytes(self, prompt: Number, batch: Number = 1, found: Number = 0) -> Number:
        """The most that activations take at once until the first token is there."""
        if not self.config.is_encoder_decoder:
            return self._activations([Span(prompt - found, found, batch)])
        source = Span(prompt, 0, batch)
        encoding = trace_encode(self.model, [source], **self._options).memory().activations
        return maximum(encoding, self._activations([Span(1, 0, batch)], [source]))

    def step_activation_bytes(self, prompt: Number, given: Number, batch: Number = 1) -> Number:
        """The most that they take in the step of :meth:`next`."""
        span, encoded = self._step(prompt, given, batch, 1)
        return self._activations([span], encoded)

    def _activations(self, spans: list[Span], encoded: list[Span] | tuple = ()) -> Number:
        options = {**self._options, "logits": self._logits, "encoded": encoded}
        return trace_step(self.model, spans, **options).memory().activations

    def cache_bytes(self, prompt: Number, output: Number, batch: Number = 1) -> Number:
        """What the cache of so long sequences takes at their end: of an encoder-decoder, what the decoder
        reads of the prompt, and its own tokens."""
        return self.cache_bytes_per_token * batch * (prompt + output)

    @property
    def cache_bytes_per_token(self) -> float:
        """What one token of one sequence takes in the cache, 0 for an encoder."""
        if not self.config.is_decoder:
            return 0.0
        return self.model.cache_spec(self.cache).bytes_per_token

    def _step(
        self, prompt: Number, given: Number, batch: Number, rows: Number
    ) -> tuple[Span, list[Span] | tuple[()]]:
        if not self.config.is_encoder_decoder:
            return Span(rows, prompt + given - 1, batch), ()
        return Span(rows, given, batch), [Span(prompt, 0, batch)]  # behind the token that it begins with

    @property
    def _options(self) -> dict[str, Any]:
        return {"cache_format": self.cache, "lowering": self.lowering or default_lowering(self.device)}

    @property
    def _timed(self) -> dict[str, Any]:
        return {**self._options, "tier": self.tier}

    @property
    def _logits(self) -> str:
        return "last" if self.config.is_decoder else "all"

    def run_as(self, lowering: Lowering | None) -> Setting:
        """The same setting under another lowering, or under its own for None."""
        return self if lowering is None else replace(self, lowering=lowering)


def _spread(number: Any, like: Any) -> Any:
    """A number or an array [n] for every entry of ``like`` [n, steps]."""
    import numpy

    number = numpy.asarray(number)
    return numpy.broadcast_to(number[..., None] if number.ndim else number, like.shape)


def settle(
    model: str | ModelConfig, on: str | Device, weights: str | None = None, cache: str | None = None
) -> Setting:
    """The model as the device would store it: ``weights`` and ``cache`` are storage formats, None those that
    the model ships in. Raises InputError for anything unknown."""
    config = config_of(model)
    refuse_diffusion(config)
    device = device_of(on)
    built = declare(config, None if weights is None else storage_format(weights))
    if default_lowering(device).activations is not None:  # the native kernels pack weights
        pad_products(built)
    cache = built.plain_format if cache is None else storage_format(cache)
    return Setting(built, device, weights or config.stored_format, cache)
