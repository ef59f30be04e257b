"""``ridgeline dataflows``: the ways to order attention's loops, side by side on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from ridgeline.analysis.arguments import config_of, device_of, whole_number
from ridgeline.analysis.overtake import Overtaking, attention_overtakes
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models import ModelConfig, declare
from ridgeline.models.denoising import grid_of
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.formats import storage_format
from ridgeline.predict.dataflows import (
    DATAFLOWS,
    AttentionShape,
    Chip,
    Crossover,
    Outcome,
    Tiles,
    best,
    choices,
    crossover,
    outcome,
)
from ridgeline.predict.dataflows.evaluate import fastest, least_traffic, smallest

if TYPE_CHECKING:
    from ridgeline.models.diffusion import DiffusionConfig

#: The most that a size may be, so that a slip of the hand is not swept.
MOST = 2**40
#: On-chip sizes of the curves: powers of two from 4 KiB to 16 GiB, with one between each two.
CURVE_SIZES = tuple(round(2 ** (12 + i / 2)) for i in range(45))
#: The pairs whose crossovers are looked for: (moves no more, than).
COMPARED = ("FLAT row", "flash v1", "flash v2")
#: The sections of a device file that the times stand on.
SECTIONS = ("matrix", "vector", "exp", "memory", "levels", "launch")


@dataclass(frozen=True)
class Curves:
    """By on-chip bytes of a block (``on_chip``): for each dataflow the least bytes of main memory and the
    least seconds, None where it does not fit. By ``lengths`` of the queries: the on-chip bytes of its
    smallest tiles.
    """

    on_chip: tuple[int, ...]
    bytes: Mapping[str, tuple[float | None, ...]]
    seconds: Mapping[str, tuple[float | None, ...]]
    intensity: Mapping[str, tuple[float | None, ...]]
    lengths: tuple[int, ...]
    live: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Comparison:
    """Every dataflow of :data:`~ridgeline.predict.dataflows.DATAFLOWS` on one attention.

    Costs are those of one attention operator, which a model has once a layer. ``least_bytes`` is what
    any of them moves at least: Q, K, V and O once. ``ridge`` is the device's, in FLOP/byte.
    """

    model: str | None
    device: str
    device_title: str
    shape: AttentionShape
    units: int
    on_chip: float
    ridge: float
    least_bytes: float
    outcomes: tuple[Outcome, ...]
    crossovers: tuple[Crossover, ...]
    curves: Curves
    overtaking: Overtaking | None
    basis: Mapping[str, str]
    assumptions: tuple[str, ...]


def shape_of(
    model: str | ModelConfig | None,
    *,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    prompt: int | None = None,
    past: int = 0,
    batch: int = 1,
    causal: bool | None = None,
    format: str | None = None,
) -> AttentionShape:
    """The attention of a model, or of the sizes given: ``prompt`` new tokens after ``past`` cached ones,
    4,096 unless given, of a diffusion Transformer all that an image as trained has, with its text's where
    they attend together.

    Raises InputError if both or neither are given, or if a size is out of range.
    """
    config = None if model is None else config_of(model)
    if prompt is None:
        prompt = image_tokens(config) if config is not None and config.is_diffusion else 4096
    for name, value, least in (("prompt", prompt, 1), ("past", past, 0), ("batch", batch, 1)):
        whole_number(name, value, least, MOST)
    if config is None:
        if heads is None or head_dim is None:
            raise InputError("name a model, or give the attention itself: --heads N --head-dim N")
        causal, format = True if causal is None else causal, "bf16" if format is None else format
    else:
        if heads is not None or kv_heads is not None or head_dim is not None:
            raise InputError(f"{model} has its own heads: leave out --heads, --kv-heads and --head-dim")
        heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim
        if causal is None:  # of an encoder-decoder, its encoder's attention
            causal = config.is_decoder and not config.is_encoder_decoder
        format = declare(config).plain_format if format is None else format
    return AttentionShape(
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        dim=head_dim,
        queries=prompt,
        keys=past + prompt,
        batch=batch,
        causal=causal,
        format=storage_format(format),
    )


def compare_dataflows(
    shape: AttentionShape,
    on: str | Device = "this",
    *,
    model: str | ModelConfig | None = None,
    units: int | None = None,
    on_chip: float | None = None,
    tiles: Tiles | None = None,
) -> Comparison:
    """Every dataflow with its fastest tiles that fit, or with ``tiles``, and where they end and cross.

    ``units`` and ``on_chip`` are those of :class:`~ridgeline.predict.dataflows.Chip`. Raises InputError
    as it does, and if the device can't compute in the shape's format.
    """
    device = device_of(on)
    chip = Chip.of(device, units=units, on_chip=on_chip)
    overtaking, config = None, None
    if model is not None:
        config = config_of(model)
        if not config.is_diffusion:  # whose pass is over images
            pairs = Pairs.VISIBLE if shape.causal else Pairs.SQUARE
            overtaking = attention_overtakes(declare(config), pairs=pairs)
    return Comparison(
        model=None if config is None else config.name,
        device=device.name,
        device_title=device.title,
        shape=shape,
        units=chip.units,
        on_chip=chip.on_chip,
        ridge=device.ridge(shape.format),
        least_bytes=shape.operand_bytes,
        outcomes=tuple(outcome(flow, shape, chip, tiles) for flow in DATAFLOWS),
        crossovers=tuple(_crossovers(shape, chip)),
        curves=_curves(shape, chip),
        overtaking=overtaking,
        basis={s: str(device.provenance[s]) for s in SECTIONS if s in device.provenance},
        assumptions=(*_of_model(config), *_assumptions(chip)),
    )


def _crossovers(shape: AttentionShape, chip: Chip) -> Iterator[Crossover]:
    flows = [flow for flow in DATAFLOWS if flow.name in COMPARED]
    for winner, other in permutations(flows, 2):
        found = crossover(winner, other, shape, chip)
        if found is not None and found.other_bytes is not None:
            yield found


def _curves(shape: AttentionShape, chip: Chip) -> Curves:
    moved, took, intensity = {}, {}, {}
    for flow in DATAFLOWS:
        found = choices(flow, shape, chip)
        least = [best(found, size, least_traffic) for size in CURVE_SIZES]
        quick = [best(found, size, fastest) for size in CURVE_SIZES]
        moved[flow.name] = tuple(None if c is None else c.bytes for c in least)
        intensity[flow.name] = tuple(None if c is None else c.intensity for c in least)
        took[flow.name] = tuple(None if c is None else c.seconds for c in quick)
    lengths = tuple(2**i for i in range(7, 24))
    live = {
        flow.name: tuple(_least_live(flow, shape.at_length(length)) for length in lengths)
        for flow in DATAFLOWS
    }
    return Curves(CURVE_SIZES, moved, took, intensity, lengths, live)


def _least_live(flow, shape: AttentionShape) -> float:
    return flow.live(shape, smallest(flow, shape))


def image_tokens(config: DiffusionConfig) -> int:
    """The most keys that a row of an image as trained sees."""
    return declare(config).context(grid_of(config), config.text_tokens if config.text_width else 0)


def _of_model(config: ModelConfig | None) -> Iterator[str]:
    """Which of a model's attentions is shown, where it has several."""
    if config is None:
        return
    if config.is_encoder_decoder:
        yield (
            "the encoder's attention is shown; the decoder's has a causal mask, and in its cross-attention "
            "every token sees the whole prompt"
        )
        return
    if config.is_diffusion:
        return
    model = declare(config)
    masks = {layer.mask for layer in model.layers if hasattr(layer, "mask")}
    windows = {mask.window[0] + 1 for mask in masks if mask.window[0] >= 0}
    if windows:
        seen = " or ".join(f"{n:,}" for n in sorted(windows))
        yield f"layers with a window see at most {seen} keys; a layer that sees all is shown"
    spec = model.cache_spec(model.plain_format) if config.is_decoder else None
    if spec is not None and spec.is_latent:
        yield f"latent attention is shown expanded, with keys and values of {config.head_dim} elements a head"


def _assumptions(chip: Chip) -> Iterator[str]:
    if chip.units == 1:
        yield f"the whole chip works on one block at its rates, with {chip.on_chip:,.0f} bytes on it"
    else:
        yield (
            f"{chip.units} units work on a block each, with {chip.on_chip:,.0f} bytes on the chip and an "
            "equal share of the device's rates and bandwidth, which every block reaches"
        )
    yield "no cache between the chip's own memory and main memory: what two blocks read is read twice"
    yield "on-chip memory holds all that a block has, also the float32 sums, which a GPU keeps in registers"
