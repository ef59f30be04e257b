"""``ridgeline capacity``: what a device's memory holds, and how the cache grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ridgeline.analysis.arguments import config_of, device_of, whole_number
from ridgeline.analysis.setting import settle
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models import ModelConfig
from ridgeline.models.model import refuse_diffusion
from ridgeline.ops.batch import Span

#: Tokens of the largest step, whose activations must fit beside weights and cache.
STEP_TOKENS = 2048


@dataclass(frozen=True)
class Holding:
    """What is left for the cache with weights and cache in these formats. ``tokens`` fit in it, 0 if weights
    and activations do not fit themselves; ``largest_batch`` of sequences of ``context`` tokens, and
    ``longest_context`` of each of ``batch`` sequences, at most the model's window."""

    weights: str
    cache: str
    weight_bytes: float
    activation_bytes: float
    cache_bytes_per_token: float
    free_bytes: float
    tokens: int
    largest_batch: int
    longest_context: int


@dataclass(frozen=True)
class Capacity:
    """What :func:`capacity` found; ``usable_bytes`` of the device's ``memory_bytes`` may be taken."""

    model: str
    device: str
    device_title: str
    memory_bytes: float
    usable_bytes: float
    window: int
    context: int
    batch: int
    step_tokens: int
    holdings: tuple[Holding, ...]


def capacity(
    model: str | ModelConfig,
    on: str | Device,
    *,
    weights: Sequence[str | None] = (None, "int8", "int4-g128"),
    caches: Sequence[str | None] = (None, "int8"),
    context: int | None = None,
    batch: int = 1,
    step_tokens: int = STEP_TOKENS,
    share: float = 1.0,
) -> Capacity:
    """How many tokens, sequences and how long ones fit, for each format of weights and cache.

    ``context`` tokens (by default the window) are those of each sequence when the batch is sought, ``batch``
    the sequences when the length is sought. Activations are those of a step of ``step_tokens``, which longer
    prompts are cut into. ``share`` of the memory may be used; what a driver keeps is not known here.

    Raises InputError for anything unknown, an encoder, numbers below 1, and a context beyond the window.
    """
    config = config_of(model)
    device = device_of(on)
    refuse_diffusion(config)
    if not config.is_decoder:
        raise InputError(f"{config.name} is an encoder: it keeps no cache; `explain` tells its memory")
    context = config.window if context is None else context
    for name, n in (("context", context), ("batch", batch), ("step_tokens", step_tokens)):
        whole_number(name, n)
    if context > config.window:
        raise InputError(f"{config.name} takes {config.window} tokens at most, so no context of {context}")
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, not {share!r}")
    usable = share * device.memory_bytes
    rows = min(step_tokens, config.window)
    holdings = []
    for weight in weights:
        for cache in caches:
            setting = settle(config, device, weight, cache)
            activations = float(setting.activation_bytes(Span(rows)))
            weight_bytes = setting.model.weight_bytes()
            token = setting.cache_bytes_per_token
            free = usable - weight_bytes - activations
            tokens = max(int(free // token), 0)
            holdings.append(
                Holding(
                    weights=setting.weights,
                    cache=setting.cache,
                    weight_bytes=weight_bytes,
                    activation_bytes=activations,
                    cache_bytes_per_token=token,
                    free_bytes=max(free, 0.0),
                    tokens=tokens,
                    largest_batch=tokens // context,
                    longest_context=min(tokens // batch, config.window),
                )
            )
    return Capacity(
        model=config.name,
        device=device.name,
        device_title=device.title,
        memory_bytes=device.memory_bytes,
        usable_bytes=usable,
        window=config.window,
        context=context,
        batch=batch,
        step_tokens=rows,
        holdings=tuple(dict.fromkeys(holdings)),
    )
