"""One training step of a model on a device: its trace, its phases, its memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ridgeline.analysis.search import largest
from ridgeline.hardware import Device
from ridgeline.models import Model
from ridgeline.models.denoising import count_denoising, grid_of
from ridgeline.ops.batch import Span
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.count_training import TrainingCount
from ridgeline.ops.kernel import Flops
from ridgeline.ops.lowering import FUSED, NAIVE_ATTENTION, UNFUSED, Lowering
from ridgeline.ops.numbers import Number
from ridgeline.ops.optimizer import get_optimizer, step
from ridgeline.ops.recompute import AGAIN
from ridgeline.ops.stash import stash
from ridgeline.ops.trace import Trace
from ridgeline.predict import Prediction, predict
from ridgeline.predict.tiers import Tier

#: What runs as one kernel: everything that can, all but attention, or nothing.
KERNELS: Mapping[str, Lowering] = {"fused": FUSED, "naive": NAIVE_ATTENTION, "unfused": UNFUSED}
PHASES = ("forward", "recompute", "backward", "optimizer")


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
    if model.config.is_diffusion:
        batch = count_denoising(ops, model.config, grid_of(model.config), span.count)
        return ops.trace(model.forward(ops, batch))
    output = model.whole(ops, ops.batch([span], logits="all"))
    if output.shape[-1] == model.config.vocab:  # a headless encoder's loss is the user's own
        output = ops.cross_entropy(output)
    return ops.trace(output)


@dataclass(frozen=True)
class Step:
    phases: tuple[TrainingPhase, ...]
    communication_bytes: float
    communication_seconds: float
    seconds: float
    hardware_flops: float
    memory: TrainingMemory
    basis: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """One model on one device; what differs is the recipe."""

    model: Model
    device: Device
    workload: Workload
    pairs: Pairs
    tier: Tier

    def span(self, batch: int | None = None) -> Span:
        return Span(self.workload.length, 0, self.workload.batch if batch is None else batch)

    def step(self, recipe: Recipe) -> Step:
        devices = self.workload.devices
        shards = devices if recipe.zero else 1
        trace = count_training(self.model, self.span(), recipe, shards=shards)
        prediction = predict(trace, self.device, self.tier)
        phases = tuple(_phases(trace, prediction))
        memory = self.memory(trace, recipe)
        sent = _communicated(trace, recipe.zero, devices)
        sending = sent / self.device.link_bandwidth if sent else 0.0
        passes = sum(p.seconds for p in phases if p.name != "optimizer")
        updating = sum(p.seconds for p in phases if p.name == "optimizer")
        executed = count_training(self.model, self.span(), recipe, pairs=self.pairs).flops.matrix
        return Step(
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
        """The largest batch whose memory the device holds."""

        def fits(batches: Number) -> Number:
            return self.memory(count_training(self.model, self.span(batches), recipe), recipe).fits

        return largest(fits)


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
