"""A step predicted over batches, contexts and weight formats: what the report's sliders move through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ridgeline.analysis.setting import Setting, settle
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models import ModelConfig
from ridgeline.ops.formats import get_format
from ridgeline.predict import Prediction

BATCHES = tuple(2**n for n in range(9))
SHORTEST, LONGEST_ENCODED = 128, 1 << 14
FORMATS = ("int8", "int4-g128")

#: Numbers by batch, then by context.
Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class PhaseSweep:
    """A step's seconds in all, by class of operator and by binding resource."""

    seconds: Grid
    by_class: Mapping[str, Grid]
    by_bound: Mapping[str, Grid]


@dataclass(frozen=True)
class FormatSweep:
    """What weights of ``bits`` a number, scales included, take: each phase by name, and bytes in memory."""

    weights: str
    bits: float
    phases: Mapping[str, PhaseSweep]
    memory_bytes: Grid


@dataclass(frozen=True)
class Sweep:
    """All combinations. In ``prefill`` (``encode`` where there is an encoder) each sequence of the batch has
    ``contexts`` tokens; in ``decode`` it adds one to so many. Memory is that of a decode step, of an encoder
    that of its pass: a prompt's own activations can be cut into steps."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    formats: tuple[FormatSweep, ...]
    device_bytes: float


def sweep(config: ModelConfig, device: Device, weights: Sequence[str | None] = (None, *FORMATS)) -> Sweep:
    """Every step of the grid on ``device``. Formats that the device cannot run are left out.

    Raises InputError if it can run none.
    """
    contexts = tuple(_contexts(config))
    found: dict[str, FormatSweep] = {}
    refused: InputError | None = None
    for format in weights:
        try:
            setting = settle(config, device, format)
            found.setdefault(setting.weights, _format(setting, contexts))
        except InputError as error:
            refused = error
    if not found:
        raise refused or InputError("there is no weight format to sweep over: give at least one")
    return Sweep(BATCHES, contexts, tuple(found.values()), device.memory_bytes)


def _contexts(config: ModelConfig) -> Iterator[int]:
    """Powers of two from SHORTEST, and what a window of another length ends with."""
    longest = config.window - 1 if config.is_decoder else config.window
    if config.is_encoder_decoder:  # no limit, but an encoder's prompt is not cut into steps
        longest = min(longest, LONGEST_ENCODED)
    context = min(SHORTEST, longest)
    while context <= min(longest, 1 << 20):
        yield context
        context *= 2


def _format(setting: Setting, contexts: Sequence[int]) -> FormatSweep:
    import numpy

    batch = numpy.repeat(BATCHES, len(contexts))
    context = numpy.tile(contexts, len(BATCHES))
    config = setting.config
    name = "encode" if config.is_encoder_decoder or not config.is_decoder else "prefill"
    phases = {name: _phase(setting.read(context, batch), context)}
    if config.is_decoder:
        phases["decode"] = _phase(setting.next(context, 1, batch), context)
    alive = (
        setting.step_activation_bytes(context, 1, batch)
        if config.is_decoder
        else setting.activation_bytes(context, batch)
    )
    memory = setting.model.weight_bytes() + setting.cache_bytes(context, 0, batch) + alive
    bits = 8 * get_format(setting.weights).nbytes((1, 4096)) / 4096
    return FormatSweep(setting.weights, bits, phases, _grid(memory, context))


def _phase(prediction: Prediction, like: Any) -> PhaseSweep:
    import numpy

    bounds: dict[str, Any] = {}
    for kernel in prediction.kernels:
        seconds = numpy.broadcast_to(kernel.seconds * kernel.repeat, like.shape)
        limits = numpy.broadcast_to(kernel.bound, like.shape)
        for bound in numpy.unique(limits):
            bounds[str(bound)] = bounds.get(str(bound), 0.0) + numpy.where(limits == bound, seconds, 0.0)
    return PhaseSweep(
        seconds=_grid(prediction.seconds, like),
        by_class={name: _grid(seconds, like) for name, seconds in prediction.by_class().items()},
        by_bound={name: _grid(seconds, like) for name, seconds in bounds.items()},
    )


def _grid(values: Any, like: Any) -> Grid:
    import numpy

    table = numpy.broadcast_to(values, like.shape).reshape(len(BATCHES), -1)
    return tuple(tuple(float(f"{x:.4g}") for x in row) for row in table)
