"""``ridgeline training``: time, memory and utilisation of a training step, predicted from the trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ridgeline.analysis.arguments import choice, config_of, device_of, whole_number
from ridgeline.analysis.training_step import (
    KERNELS,
    Policy,
    Recipe,
    Run,
    TrainingMemory,
    TrainingPhase,
    Workload,
)
from ridgeline.errors import InputError
from ridgeline.hardware import Device, rates_only
from ridgeline.models import ModelConfig, declare
from ridgeline.models.denoising import grid_of
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.formats import get_format, storage_format
from ridgeline.ops.optimizer import get_optimizer
from ridgeline.ops.recompute import Recompute, policy_of
from ridgeline.predict.tiers import Tier, tier_of

#: What the time of a kernel takes for granted at each tier.
ASSUMED_OF_KERNELS = {
    Tier.DATASHEET: "every kernel reaches the device's rates: an optimistic estimate, not a forecast",
    Tier.GENERIC: "kernels reach as much of the rates as those of other, calibrated devices",
    Tier.CALIBRATED: "backward products and updates reach as much of the rates as measured forward ones",
}
PRECISIONS = ("mixed", "bf16", "fp32")


@dataclass(frozen=True)
class Training:
    """A predicted training step.

    ``seconds`` is the longer of the passes and the communication, then the optimizer. ``model_flops`` are
    the matrix operations of one forward and backward pass of all devices without anything computed twice,
    by the convention ``pairs``; ``hardware_flops`` those that are executed. ``mfu`` and ``hfu`` are what
    they are of the devices' matrix rate in that time (Chowdhery et al. 2022, appendix B, arXiv:2204.02311).
    ``largest_batch`` is the most sequences a device that fit its memory, 0 if none.
    """

    model: str
    parameters: int
    device: str
    device_title: str
    workload: Workload
    recipe: Recipe
    pairs: str
    tier: str
    phases: tuple[TrainingPhase, ...]
    communication_bytes: float
    communication_seconds: float
    seconds: float
    tokens_per_second: float
    model_flops: float
    hardware_flops: float
    mfu: float
    hfu: float
    memory: TrainingMemory
    largest_batch: int
    policies: tuple[Policy, ...]
    basis: Mapping[str, str]
    assumptions: tuple[str, ...]


def training(
    model: str | ModelConfig,
    on: str | Device = "this",
    *,
    batch: int = 1,
    length: int | None = None,
    devices: int = 1,
    recompute: str = "none",
    optimizer: str = "adamw",
    zero: int = 0,
    precision: str = "mixed",
    kernels: str = "fused",
    dropout: bool = False,
    stash: str | None = None,
    pairs: str = "visible",
    tier: str | None = None,
) -> Training:
    """Predict a training step of data-parallel ``devices``, each with ``batch`` sequences of ``length``
    tokens: 2,048, or the window if that is shorter, unless given. Of a diffusion Transformer they are images
    as it was trained, each once, and the loss is the user's own.

    ``recompute``: none, selective or full, as :mod:`ridgeline.ops.recompute` says. ``optimizer``: one of
    :data:`ridgeline.ops.optimizer.OPTIMIZERS`. ``zero``: what the devices share out instead of each holding
    it, 1: the states, 2: and the gradients, 3: and the weights. ``precision``: mixed keeps 16-bit weights
    and float32 master weights, bf16 everything in bf16, fp32 everything in float32. ``kernels``: fused,
    naive (scores in memory) or unfused. ``stash``: the format in which activations wait for the backward
    pass. ``pairs``: which query-key pairs count as FLOPs, visible or square; the time is that of the
    visible ones. ``tier`` is what times stand on, the best that the device has unless given.

    Raises InputError for anything else, for a length beyond the model's window, for a model that can't be
    trained, and for several devices without a link.
    """
    config = config_of(model)
    device = device_of(on)
    length = _length(config, length)
    recipe = Recipe(recompute, optimizer, zero, precision, kernels, dropout, stash)
    workload = Workload(batch, length, devices)
    _check(recipe, workload, 0 if config.is_diffusion else config.window, config.name)
    if devices > 1 and device.link_bandwidth is None:
        raise InputError(f"{device.name} has no link: train on one device, or name one that has")
    shown = choice("pairs", pairs, Pairs)
    built = declare(config, _format(precision, config.format))
    device = rates_only(device)
    chosen = tier_of(device, tier)
    run = Run(built, device, workload, shown, chosen)
    found = run.step(recipe)
    return Training(
        model=config.name,
        parameters=built.parameter_count(),
        device=device.name,
        device_title=device.title,
        workload=workload,
        recipe=recipe,
        pairs=str(shown),
        tier=str(chosen),
        phases=found.phases,
        communication_bytes=found.communication_bytes,
        communication_seconds=found.communication_seconds,
        seconds=found.seconds,
        tokens_per_second=workload.tokens / found.seconds,
        model_flops=run.model_flops(recipe),
        hardware_flops=found.hardware_flops,
        mfu=run.share_of_peak(run.model_flops(recipe), found.seconds),
        hfu=run.share_of_peak(found.hardware_flops, found.seconds),
        memory=found.memory,
        largest_batch=run.largest_batch(recipe),
        policies=tuple(run.policy(replace(recipe, recompute=str(p))) for p in Recompute),
        basis=found.basis,
        assumptions=tuple(_assumptions(config, recipe, workload, found.memory, shown, chosen)),
    )


def _length(config: ModelConfig, given: int | None) -> int:
    if not config.is_diffusion:
        return min(2048, config.window) if given is None else given
    if given is not None:
        raise InputError(f"{config.name} denoises images: it has no length, so leave it out")
    return grid_of(config).tokens


def _check(recipe: Recipe, workload: Workload, window: int, name: str) -> None:
    for what in ("batch", "length", "devices"):
        whole_number(what, getattr(workload, what))
    if workload.length > window > 0:
        raise InputError(
            f"{name} takes {window} tokens at most, not {workload.length}: give a shorter --length"
        )
    policy_of(recipe.recompute)
    get_optimizer(recipe.optimizer)
    for what, value, known in (
        ("zero", recipe.zero, (0, 1, 2, 3)),
        ("precision", recipe.precision, PRECISIONS),
        ("kernels", recipe.kernels, tuple(KERNELS)),
    ):
        if value not in known:
            raise InputError(f"{what} is {value!r}; choose one of: {', '.join(map(str, known))}")
    if recipe.stash is not None:
        storage_format(recipe.stash)


def _format(precision: str, own: str) -> str:
    """The weights' format: mixed precision keeps a model's own 16 bits."""
    if precision == "mixed":
        return own if own in ("bf16", "fp16") else "bf16"
    return precision


def _assumptions(
    config: ModelConfig, recipe: Recipe, workload: Workload, memory: TrainingMemory, pairs: Pairs, tier: Tier
) -> Iterator[str]:
    yield ASSUMED_OF_KERNELS[tier]
    if config.is_diffusion:
        yield "each image is denoised once a step; its autoencoder and text encoder are left out"
    if config.is_encoder_decoder:
        yield "targets are as long as their sources; tokens are those of the sources"
    if pairs is Pairs.SQUARE:
        yield "FLOPs count all query-key pairs, times only the visible ones, so that MFU may pass 100 %"
    if workload.devices > 1:
        yield "communication has the link's full bandwidth, and hides behind the passes while these last"
    if recipe.zero == 3 and workload.devices > 1:
        yield "a layer's gathered weights are not in the memory"
    if recipe.stash is not None:
        bits = get_format(recipe.stash).bits
        yield f"what waits for the backward pass is rounded to {bits} bits as it is written"
    if recipe.kernels == "fused" and recipe.recompute == "selective":
        yield "fused attention makes its scores again in any case, so selective recomputation saves nothing"
    if not memory.fits:
        yield "the device holds the step, which in fact does not fit in its memory"
