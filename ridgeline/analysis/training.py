"""``ridgeline training``: time, memory and utilisation of a training step, predicted from the trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ridgeline.errors import InputError
from ridgeline.hardware import Device, load_device, rates_only
from ridgeline.models import Model, ModelConfig, declare, load_config
from ridgeline.ops.count import Pairs
from ridgeline.ops.count_training import TrainingCount
from ridgeline.ops.formats import get_format, storage_format
from ridgeline.ops.optimizer import get_optimizer, step
from ridgeline.ops.protocol import Span
from ridgeline.ops.recompute import AGAIN, Recompute, policy_of
from ridgeline.ops.stash import stash
from ridgeline.ops.trace import FUSED, NAIVE_ATTENTION, UNFUSED, Flops, Lowering, Trace
from ridgeline.predict import Prediction, predict

#: What runs as one kernel: everything that can, all but attention, or nothing.
KERNELS: Mapping[str, Lowering] = {"fused": FUSED, "naive": NAIVE_ATTENTION, "unfused": UNFUSED}
PRECISIONS = ("mixed", "bf16", "fp32")
PHASES = ("forward", "recompute", "backward", "optimizer")
#: Batches that are traced at once in the search for the largest that fits.
BATCHES_A_ROUND = 64
#: The most sequences, tokens or devices that are taken to be meant.
MOST = 2**30


@dataclass(frozen=True)
class Workload:
    """``batch`` sequences of ``length`` tokens on each of ``devices`` devices."""

    batch: int
    length: int
    devices: int

    @property
    def tokens(self) -> int:
        return self.batch * self.length * self.devices


@dataclass(frozen=True)
class Recipe:
    """How it is trained: see :func:`training` for what each may be."""

    recompute: str = "none"
    optimizer: str = "adamw"
    zero: int = 0
    precision: str = "mixed"
    kernels: str = "fused"
    dropout: bool = False
    stash: str | None = None


@dataclass(frozen=True)
class TrainingPhase:
    """One phase of a step on one device; ``flops`` are those of visible pairs."""

    name: str
    seconds: float
    flops: Flops
    bytes: float
    seconds_by_bound: Mapping[str, float]


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device: what it holds of weights, gradients and the optimizer's states, and the peak of
    the activations; of ``device`` bytes that it has."""

    weights: float
    gradients: float
    states: float
    activations: float
    device: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.states + self.activations

    @property
    def fits(self) -> bool:
        return self.total <= self.device


@dataclass(frozen=True)
class Policy:
    """What the step would take with another recomputation, all else the same."""

    recompute: str
    activations: float
    total: float
    fits: bool
    seconds: float
    mfu: float
    hfu: float


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
    length: int = 2048,
    devices: int = 1,
    recompute: str = "none",
    optimizer: str = "adamw",
    zero: int = 0,
    precision: str = "mixed",
    kernels: str = "fused",
    dropout: bool = False,
    stash: str | None = None,
    pairs: str = "visible",
) -> Training:
    """Predict a training step of data-parallel ``devices``, each with ``batch`` sequences of ``length``.

    ``recompute``: none, selective or full, as :mod:`ridgeline.ops.recompute` says. ``optimizer``: one of
    :data:`ridgeline.ops.optimizer.OPTIMIZERS`. ``zero``: what the devices share out instead of each holding
    it, 1: the states, 2: and the gradients, 3: and the weights. ``precision``: mixed keeps 16-bit weights
    and float32 master weights, bf16 everything in bf16, fp32 everything in float32. ``kernels``: fused,
    naive (scores in memory) or unfused. ``stash``: the format in which activations wait for the backward
    pass. ``pairs``: which query-key pairs count as FLOPs, visible or square; the time is that of the
    visible ones.

    Raises InputError for anything else, for a length beyond the model's window, for a model that can't be
    trained, and for several devices without a link.
    """
    config = model if isinstance(model, ModelConfig) else load_config(model)
    device = load_device(on) if isinstance(on, str) else on
    recipe = Recipe(recompute, optimizer, zero, precision, kernels, dropout, stash)
    workload = Workload(batch, length, devices)
    _check(recipe, workload, config.window, config.name)
    if devices > 1 and device.link_bandwidth is None:
        raise InputError(f"{device.name} has no link: train on one device, or name one that has")
    shown = _pairs(pairs)
    built = declare(config, _format(precision, config.format))
    device = rates_only(device)
    run = _Run(built, device, workload, shown)
    found = run.step(recipe)
    return Training(
        model=config.name,
        parameters=built.parameter_count(),
        device=device.name,
        device_title=device.title,
        workload=workload,
        recipe=recipe,
        pairs=str(shown),
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
        assumptions=tuple(_assumptions(recipe, workload, found.memory, shown)),
    )


def count_training(
    model: Model, span: Span, recipe: Recipe, *, shards: int = 1, pairs: Pairs = Pairs.VISIBLE
) -> Trace:
    """The trace of a whole step: forward pass, loss, backward pass, optimizer."""
    trace = _forward(model, span, recipe, pairs).backward(recipe.recompute)
    if recipe.stash is not None:
        trace = stash(trace, recipe.stash)
    master = "fp32" if recipe.precision == "mixed" else None
    return step(trace, get_optimizer(recipe.optimizer), master=master, shards=shards)


def _forward(model: Model, span: Span, recipe: Recipe, pairs: Pairs) -> Trace:
    lowering = KERNELS[recipe.kernels]
    ops = TrainingCount(
        activations=model.plain_format, lowering=lowering, pairs=pairs, train=True, dropout=recipe.dropout
    )
    output = model.forward(ops, ops.batch([span], logits="all"))
    if output.shape[-1] == model.config.vocab:  # a headless encoder's loss is the user's own
        output = ops.cross_entropy(output)
    return ops.trace(output)


@dataclass(frozen=True)
class _Step:
    phases: tuple[TrainingPhase, ...]
    communication_bytes: float
    communication_seconds: float
    seconds: float
    hardware_flops: float
    memory: TrainingMemory
    basis: Mapping[str, str]


@dataclass(frozen=True)
class _Run:
    """One model on one device; what differs is the recipe."""

    model: Model
    device: Device
    workload: Workload
    pairs: Pairs

    def span(self, batch: int | None = None) -> Span:
        return Span(self.workload.length, 0, self.workload.batch if batch is None else batch)

    def step(self, recipe: Recipe) -> _Step:
        devices = self.workload.devices
        shards = devices if recipe.zero else 1
        trace = count_training(self.model, self.span(), recipe, shards=shards)
        prediction = predict(trace, self.device)
        phases = tuple(_phases(trace, prediction))
        memory = self.memory(trace, recipe)
        sent = _communicated(trace, recipe.zero, devices)
        sending = sent / self.device.link_bandwidth if sent else 0.0
        passes = sum(p.seconds for p in phases if p.name != "optimizer")
        updating = sum(p.seconds for p in phases if p.name == "optimizer")
        executed = count_training(self.model, self.span(), recipe, pairs=self.pairs).flops.matrix
        return _Step(
            phases=phases,
            communication_bytes=sent,
            communication_seconds=sending,
            seconds=max(passes, sending) + updating,
            hardware_flops=executed * devices,
            memory=memory,
            basis={section: str(source) for section, source in prediction.basis.items()},
        )

    def memory(self, trace: Trace, recipe: Recipe) -> TrainingMemory:
        return shared_out(trace, recipe.zero, self.workload.devices, self.device.memory_bytes)

    def model_flops(self, recipe: Recipe) -> float:
        """Matrix operations of all devices, with scores and layers computed once."""
        plain = replace(recipe, kernels="unfused", recompute="none", stash=None)
        trace = _forward(self.model, self.span(), plain, self.pairs).backward()
        return trace.flops.matrix * self.workload.devices

    def share_of_peak(self, flops: float, seconds: float) -> float:
        peak = self.device.matrix_rate(self.model.plain_format) * self.workload.devices
        return flops / seconds / peak

    def policy(self, recipe: Recipe) -> Policy:
        found = self.step(recipe)
        return Policy(
            recompute=recipe.recompute,
            activations=found.memory.activations,
            total=found.memory.total,
            fits=found.memory.fits,
            seconds=found.seconds,
            mfu=self.share_of_peak(self.model_flops(recipe), found.seconds),
            hfu=self.share_of_peak(found.hardware_flops, found.seconds),
        )

    def largest_batch(self, recipe: Recipe) -> int:
        """Memory grows with the batch: every round traces many batches at once and keeps one interval."""
        import numpy

        most, over = 0, MOST + 1
        while over - most > 1:
            width = max(1, (over - most) // BATCHES_A_ROUND)
            batches = numpy.arange(most + width, over, width)
            trace = count_training(self.model, self.span(batches), recipe)
            fits = self.memory(trace, recipe).fits
            most = int(batches[fits].max(initial=most))
            over = min(over, int(batches[~fits].min(initial=over)))
        return most


def shared_out(trace: Trace, zero: int, devices: int, device_bytes: float) -> TrainingMemory:
    """What one of ``devices`` holds of a whole step's trace at a stage of ZeRO."""
    used = trace.memory()
    return TrainingMemory(
        weights=used.weights / (devices if zero >= 3 else 1),
        gradients=used.gradients / (devices if zero >= 2 else 1),
        states=used.states / (devices if zero >= 1 else 1),
        activations=used.activations,
        device=device_bytes,
    )


def _phases(trace: Trace, prediction: Prediction) -> Iterator[TrainingPhase]:
    forward = len(trace.forward.ops)
    for name in PHASES:
        kernels = [k for k in prediction.kernels if _phase_of(k.op, k.op_kind, k.op_index < forward) == name]
        if kernels:
            part = replace(prediction, kernels=tuple(kernels))
            yield TrainingPhase(
                name=name,
                seconds=float(part.seconds),
                flops=part.flops,
                bytes=float(part.bytes),
                seconds_by_bound=part.by_bound(),
            )


def _phase_of(name: str, kind: str, is_forward: bool) -> str:
    if is_forward:
        return "forward"
    if kind == "optimizer":
        return "optimizer"
    return "recompute" if name.endswith(AGAIN) else "backward"


def _communicated(trace: Trace, zero: int, devices: int) -> float:
    """Bytes that each device sends: rings, in which a device passes on (n - 1)/n of a tensor.

    An all-reduce is a reduce-scatter and an all-gather of the gradients. Where the states are shared out,
    each device updates its part and gathers the weights instead; where the weights are too, they are
    gathered for either pass (Rajbhandari et al. 2020, section 7).
    """
    if devices == 1:
        return 0.0
    memory = trace.memory()
    gathered = {0: memory.gradients, 1: memory.weights, 2: memory.weights, 3: 2 * memory.weights}[zero]
    return (memory.gradients + gathered) * (devices - 1) / devices


def _check(recipe: Recipe, workload: Workload, window: int, name: str) -> None:
    for what in ("batch", "length", "devices"):
        value = getattr(workload, what)
        if not 1 <= value <= MOST:
            raise InputError(f"{what} must be 1 to {MOST:,}, not {value}")
    if workload.length > window:
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


def _pairs(name: str) -> Pairs:
    try:
        return Pairs(name)
    except ValueError:
        raise InputError(f"pairs must be {' or '.join(Pairs)}, not '{name}'") from None


def _format(precision: str, own: str) -> str:
    """The weights' format: mixed precision keeps a model's own 16 bits."""
    if precision == "mixed":
        return own if own in ("bf16", "fp16") else "bf16"
    return precision


def _assumptions(recipe: Recipe, workload: Workload, memory: TrainingMemory, pairs: Pairs) -> Iterator[str]:
    yield "every kernel reaches the device's rates: an optimistic estimate, not a forecast"
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
