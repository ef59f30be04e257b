"""A model in chosen formats on a device: what every analysis of a workload starts from."""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.analysis.arguments import config_of, device_of
from ridgeline.analysis.step import default_lowering, predict_step, trace_step
from ridgeline.hardware import Device
from ridgeline.models import Model, ModelConfig, declare
from ridgeline.models.model import refuse_diffusion
from ridgeline.models.products import pad_products
from ridgeline.ops.batch import Span
from ridgeline.ops.formats import storage_format
from ridgeline.ops.numbers import Number
from ridgeline.predict import Prediction


@dataclass(frozen=True)
class Setting:
    """A declared model, its weights in ``weights`` and its cache in ``cache``, on ``device``."""

    model: Model
    device: Device
    weights: str
    cache: str

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def predict(self, span: Span) -> Prediction:
        """One step of ``span`` alone, whose numbers may be arrays."""
        return predict_step(self.model, self.device, [span], cache_format=self.cache, logits=self._logits)

    def activation_bytes(self, span: Span) -> Number:
        """The most that activations take at once in a step of ``span``."""
        options = {"cache_format": self.cache, "lowering": default_lowering(self.device)}
        return trace_step(self.model, [span], logits=self._logits, **options).memory().activations

    @property
    def cache_bytes_per_token(self) -> float:
        """What one token of one sequence takes in the cache, 0 for an encoder."""
        if not self.config.is_decoder:
            return 0.0
        return self.model.cache_spec(self.cache).bytes_per_token

    @property
    def _logits(self) -> str:
        return "last" if self.config.is_decoder else "all"


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
