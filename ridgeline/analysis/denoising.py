"""``ridgeline explain`` of a diffusion Transformer: where the time of a denoising step would go, and how long
images take.

All steps of a sampler cost alike, so an image takes their number times one. Guidance without a classifier
(Ho and Salimans 2022, https://arxiv.org/abs/2207.12598) runs every image with its condition and without,
which doubles the batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ridgeline.analysis.arguments import choice, config_of, device_of, whole_number
from ridgeline.analysis.assumptions import common_assumptions
from ridgeline.analysis.explain import NAIVE, Attention
from ridgeline.analysis.explanation import MemoryUse, Phase
from ridgeline.analysis.phases import phase_of
from ridgeline.analysis.step import activation_format, default_lowering, lowering_of
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models import Model, ModelConfig, declare
from ridgeline.models.denoising import Grid, count_denoising, grid_of
from ridgeline.models.diffusion import DiffusionConfig
from ridgeline.models.products import pad_products
from ridgeline.ops.count import Count
from ridgeline.ops.formats import product_format, storage_format
from ridgeline.ops.lowering import FUSED, Lowering
from ridgeline.ops.numbers import Number
from ridgeline.ops.trace import Trace
from ridgeline.predict import Prediction
from ridgeline.predict.prediction import predict
from ridgeline.predict.tiers import Tier, tier_of

#: The name of the phase that is explained and checked.
STEP = "denoise"


@dataclass(frozen=True)
class ImageWorkload:
    """What is asked of the model: ``batch`` images of ``height`` x ``width`` pixels, ``frames`` each (1: no
    video), of a prompt of ``text`` tokens (0: of a class), in ``steps`` steps, guided or not."""

    height: int
    width: int
    frames: int
    text: int
    steps: int
    guidance: bool
    batch: int

    @property
    def sequences(self) -> int:
        """Images that a step denoises: each twice if it is guided."""
        return self.batch * (2 if self.guidance else 1)


@dataclass(frozen=True)
class ImageTime:
    """All steps of a batch: seconds, and images (or videos) a second. ``multiply_adds`` are those of one
    forward pass over one image without guidance, which the field's papers print as "Gflops"."""

    seconds: float
    images_per_second: float
    multiply_adds: float


@dataclass(frozen=True)
class DenoisingExplanation:
    """What :func:`explain_denoising` found; the fields are those of
    :class:`~ridgeline.analysis.explain.Explanation`."""

    model: str
    parameters: int
    weight_format: str
    activation_format: str
    product_format: str
    attention: str
    device: str
    device_title: str
    ridge: float
    workload: ImageWorkload
    phases: tuple[Phase, ...]
    image: ImageTime
    memory: MemoryUse
    tier: str
    basis: Mapping[str, str]
    assumptions: tuple[str, ...]

    @property
    def active_parameters(self) -> int:
        """All of them: there is no mixture."""
        return self.parameters

    @property
    def request(self) -> None:
        """It has none of tokens."""
        return None


def trace_denoising(
    model: Model, grid: Grid, sequences: Number = 1, text: Number | None = None, lowering: Lowering = FUSED
) -> Trace:
    """Count one step over ``sequences`` images of ``grid``; they and ``text`` may be NumPy arrays."""
    lowering = lowering_of(model, lowering)
    ops = Count(
        activations=activation_format(model, lowering), attention=model.plain_format, lowering=lowering
    )
    batch = count_denoising(ops, model.config, grid, sequences, text)
    return ops.trace(model.forward(ops, batch))


def predict_denoising(
    model: Model,
    device: Device,
    grid: Grid,
    sequences: Number = 1,
    text: Number | None = None,
    lowering: Lowering | None = None,
    tier: str | None = None,
) -> Prediction:
    """Predict one step on ``device``, at the best tier that it has unless told another."""
    trace = trace_denoising(model, grid, sequences, text, lowering or default_lowering(device))
    return predict(trace, device, tier)


def explain_denoising(
    model: str | ModelConfig,
    on: str | Device,
    *,
    image: str | int | None = None,
    frames: int | None = None,
    text: int | None = None,
    steps: int | None = None,
    guidance: bool = True,
    batch: int = 1,
    weights: str | None = None,
    attention: str = Attention.FUSED,
    tier: str | None = None,
) -> DenoisingExplanation:
    """Predict a denoising step and whole images of the diffusion Transformer ``model`` on the device ``on``.

    ``image`` are its pixels, a side or ``WIDTHxHEIGHT``, by default as the model was trained; ``frames``
    those of a video. ``text`` tokens are by default those of the model's paper or pipeline, and so are
    ``steps``; ``tier`` is as for :func:`~ridgeline.analysis.explain.explain`.

    Raises InputError for anything unknown, for a model that is no diffusion Transformer, for numbers below 1,
    sizes that are no whole number of patches, and frames or text where the model takes none.
    """
    config = config_of(model)
    require_diffusion(config)
    device = device_of(on)
    workload = _workload(config, image, frames, text, steps, guidance, batch)
    chosen = tier_of(device, tier)
    grid = grid_of(config, workload.height, workload.width, workload.frames)
    built = declare(config, None if weights is None else storage_format(weights))
    lowering = default_lowering(device)
    activations = multiplied = activation_format(built, lowering)
    if lowering.activations is not None:  # the native kernels: they pack weights and multiply in their kind
        pad_products(built)
        multiplied = product_format(weights or config.format)
    if choice("attention", attention, Attention) is Attention.NAIVE:
        lowering = NAIVE[lowering.name]
    trace = trace_denoising(built, grid, workload.sequences, workload.text, lowering)
    prediction = predict(trace, device, chosen)
    rows, context = grid.tokens * workload.sequences, built.context(grid, workload.text)
    phase = phase_of(STEP, rows, context, prediction, trace, device)
    memory = MemoryUse(
        weights=built.weight_bytes(),
        cache=0.0,
        activations=phase.activation_bytes,
        device=device.memory_bytes,
        cache_bytes_per_token=0.0,
        cache_elements_per_token=0,
        tokens_that_fit=0,
    )
    return DenoisingExplanation(
        model=config.name,
        parameters=built.parameter_count(),
        weight_format=weights or config.format,
        activation_format=activations,
        product_format=multiplied,
        attention=str(Attention(attention)),
        device=device.name,
        device_title=device.title,
        ridge=device.ridge(multiplied),
        workload=workload,
        phases=(phase,),
        image=_image(phase, workload),
        memory=memory,
        tier=str(chosen),
        basis=phase.basis,
        assumptions=tuple(_assumptions(built, device, chosen, multiplied, memory, phase, workload)),
    )


def require_diffusion(config: ModelConfig) -> None:
    """Raises InputError for a model of tokens."""
    if not config.is_diffusion:
        raise InputError(
            f"{config.name} is no diffusion Transformer: leave image, frames, text, steps and guidance out"
        )


def pixels(image: str | int | None) -> tuple[int | None, int | None]:
    """Height and width of ``image``, a side or ``WIDTHxHEIGHT``. Raises InputError for anything else."""
    if image is None:
        return None, None
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", str(image))
    if found is None:
        raise InputError(f"image must be pixels a side, like 512, or WIDTHxHEIGHT, not {str(image)[:40]!r}")
    width, height = found.groups()
    return int(height or width), int(width)


def text_tokens(config: DiffusionConfig, text: int | None) -> int:
    """Tokens of the prompt; raises InputError where the model takes none, and below 1."""
    if not config.text_width:
        if text is not None:
            raise InputError(f"{config.name} takes a class and no text: leave text out")
        return 0
    return whole_number("text", config.text_tokens if text is None else text)


def _workload(
    config: DiffusionConfig,
    image: str | int | None,
    frames: int | None,
    text: int | None,
    steps: int | None,
    guidance: bool,
    batch: int,
) -> ImageWorkload:
    grid = grid_of(config, *pixels(image), frames)
    side = config.patch * config.downsampling
    return ImageWorkload(
        height=grid.rows * side,
        width=grid.columns * side,
        frames=config.frames if frames is None else frames,
        text=text_tokens(config, text),
        steps=whole_number("steps", config.steps if steps is None else steps),
        guidance=guidance,
        batch=whole_number("batch", batch),
    )


def _image(phase: Phase, workload: ImageWorkload) -> ImageTime:
    seconds = workload.steps * phase.seconds
    multiply_adds = phase.flops.matrix / 2 / workload.sequences
    return ImageTime(seconds, workload.batch / seconds, multiply_adds)


def _assumptions(
    model: Model,
    device: Device,
    tier: Tier,
    multiplied: str,
    memory: MemoryUse,
    phase: Phase,
    workload: ImageWorkload,
) -> Iterator[str]:
    config = model.config
    if workload.guidance:
        yield "guidance without a classifier: every image is denoised with its condition and without"
    yield (
        f"an autoencoder makes {config.downsampling} x {config.downsampling} pixels of a latent one; it, the "
        "text encoder and the sampler's own arithmetic are left out"
    )
    yield from common_assumptions(model, device, tier, multiplied, memory, (phase,))
