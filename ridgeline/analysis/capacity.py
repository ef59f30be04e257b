"""``ridgeline capacity``: what a device's memory holds, and how the cache grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ridgeline.analysis.arguments import config_of, device_of, whole_number
from ridgeline.analysis.explanation import OUTPUT, Workload
from ridgeline.analysis.search import largest
from ridgeline.analysis.setting import Setting, settle
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models import ModelConfig
from ridgeline.models.model import refuse_diffusion
from ridgeline.ops.numbers import Number, maximum

#: Tokens of the largest step, whose activations must fit beside weights and cache.
STEP_TOKENS = 2048
#: Tokens of a sequence where the model sets no limit: prompt and output that `explain` takes unless told.
REQUEST = Workload().prompt + OUTPUT
#: Lengths at which growth is told, and the longest of them where the model sets no limit.
POINTS, LONGEST_ENCODED = 65, 1 << 14


@dataclass(frozen=True)
class Holding:
    """What is left for the cache with weights and cache in these formats. ``tokens`` fit in it, 0 if weights
    and activations do not fit themselves; ``largest_batch`` of sequences of ``context`` tokens, and
    ``longest_context`` of each of ``batch`` sequences, at most the model's window. Of an encoder ``cache`` is
    empty, ``activation_bytes`` are those of one sequence, and ``tokens`` those of the largest batch."""

    weights: str
    cache: str
    weight_bytes: float
    activation_bytes: float
    cache_bytes_per_token: float
    free_bytes: float
    tokens: int
    largest_batch: int
    longest_context: int
    growth: tuple[float, ...]


@dataclass(frozen=True)
class Capacity:
    """What :func:`capacity` found; ``usable_bytes`` of the device's ``memory_bytes`` may be taken.
    ``lengths`` are those at which each holding's ``growth`` says what ``batch`` sequences take of memory in
    all."""

    model: str
    device: str
    device_title: str
    memory_bytes: float
    usable_bytes: float
    window: int
    context: int
    batch: int
    step_tokens: int
    lengths: tuple[int, ...]
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

    An encoder keeps nothing: its sequences run in one pass, and its activations are what grows. One of an
    encoder-decoder reads each prompt whole, as long as ``context`` if that is more than a step.

    Raises InputError for anything unknown, numbers below 1, and a context beyond the window.
    """
    config = config_of(model)
    device = device_of(on)
    refuse_diffusion(config)
    if context is None:
        context = REQUEST if config.is_encoder_decoder else config.window
    for name, n in (("context", context), ("batch", batch), ("step_tokens", step_tokens)):
        whole_number(name, n)
    if context > config.window:
        raise InputError(f"{config.name} takes {config.window} tokens at most, so no context of {context}")
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, not {share!r}")
    usable = share * device.memory_bytes
    rows = min(step_tokens, config.window)
    holding = _holding if config.is_decoder else _encoders_holding
    drawn = LONGEST_ENCODED if config.is_encoder_decoder else config.window
    lengths = tuple(max(drawn * n // (POINTS - 1), 1) for n in range(POINTS))
    holdings = [
        holding(settle(config, device, weight, cache), usable, rows, context, batch, lengths)
        for weight in weights
        for cache in (caches if config.is_decoder else (None,))
    ]
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
        lengths=lengths,
        holdings=tuple(dict.fromkeys(holdings)),
    )


def _holding(
    setting: Setting, usable: float, rows: int, context: int, batch: int, lengths: tuple[int, ...]
) -> Holding:
    """A decoder's: all that is left goes to the cache, token by token."""
    import numpy

    token, window = setting.cache_bytes_per_token, setting.config.window
    weights = setting.model.weight_bytes()

    def free(longest: Number) -> Number:
        """Bytes beside weights and activations; an encoder reads the longest sequence whole."""
        read = maximum(rows, longest) if setting.config.is_encoder_decoder else rows
        return usable - weights - setting.activation_bytes(read)

    left = float(free(context))
    tokens = max(int(left // token), 0)
    longest = min(tokens // batch, window)
    if setting.config.is_encoder_decoder:
        longest = largest(lambda n: free(n) >= token * n * batch, window)
    return Holding(
        weights=setting.weights,
        cache=setting.cache,
        weight_bytes=weights,
        activation_bytes=usable - weights - left,
        cache_bytes_per_token=token,
        free_bytes=max(left, 0.0),
        tokens=tokens,
        largest_batch=tokens // context,
        longest_context=longest,
        growth=tuple((usable - free(numpy.array(lengths)) + token * batch * numpy.array(lengths)).tolist()),
    )


def _encoders_holding(
    setting: Setting, usable: float, rows: int, context: int, batch: int, lengths: tuple[int, ...]
) -> Holding:
    """An encoder's: activations of one pass over all sequences."""
    import numpy

    weights = setting.model.weight_bytes()
    free = usable - weights
    most = largest(lambda n: setting.activation_bytes(context, n) <= free)
    longest = largest(lambda n: setting.activation_bytes(n, batch) <= free, setting.config.window)
    return Holding(
        weights=setting.weights,
        cache="",
        weight_bytes=weights,
        activation_bytes=float(setting.activation_bytes(context)),
        cache_bytes_per_token=0.0,
        free_bytes=max(free, 0.0),
        tokens=most * context,
        largest_batch=most,
        longest_context=longest,
        growth=tuple((weights + setting.activation_bytes(numpy.array(lengths), batch)).tolist()),
    )
