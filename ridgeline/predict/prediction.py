"""A predicted pass: the time of every kernel, and what it stands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ridgeline.hardware.device import Provenance
from ridgeline.ops.kernel import Flops
from ridgeline.ops.lowering import FUSED, GPU_ENGINE, NAIVE_ATTENTION
from ridgeline.ops.numbers import Number
from ridgeline.ops.trace import Trace, op_class
from ridgeline.predict.tiers import Tier


@dataclass(frozen=True)
class KernelTime:
    """The prediction of one kernel, of operator ``op_index`` of the trace.

    ``seconds``, ``flops``, ``bytes`` and ``elements`` are those of one call, which happens
    ``repeat`` times. ``bound`` is the resource that takes longest: matrix, vector, exp, memory or
    launch.
    """

    op: str
    op_index: int
    op_kind: str
    kind: str
    repeat: int
    seconds: Number
    bound: str
    flops: Flops
    bytes: Number
    elements: Number

    @property
    def name(self) -> str:
        """The operator, and the part where the operator is several kernels."""
        return self.op if self.kind in (self.op_kind, "matmul") else f"{self.op}/{self.kind}"

    @property
    def intensity(self) -> Number:
        """Operational intensity, FLOP/byte."""
        return self.flops.total / self.bytes if self.kind != "split" else 0.0  # a view moves nothing

    @property
    def op_class(self) -> str:
        return op_class(self.op_kind)


@dataclass(frozen=True)
class Prediction:
    """A step's predicted time. ``step_seconds`` is what it costs beside its kernels; ``basis`` the
    sections of the device file that were used, and the kinds of kernel whose constants were; ``unmeasured``
    the kernels of a measured machine that had no table, and so a roofline at its measured rates instead;
    ``tier`` what the times stand on.
    """

    device: str
    kernels: tuple[KernelTime, ...]
    step_seconds: float
    basis: Mapping[str, Provenance]
    unmeasured: tuple[str, ...] = ()
    tier: Tier = Tier.DATASHEET

    @property
    def seconds(self) -> Number:
        return self.step_seconds + sum(k.seconds * k.repeat for k in self.kernels)

    @property
    def flops(self) -> Flops:
        total = Flops()
        for k in self.kernels:
            total = total + k.flops * k.repeat
        return total

    @property
    def bytes(self) -> Number:
        return sum(k.bytes * k.repeat for k in self.kernels)

    @property
    def elements(self) -> Number:
        return sum(k.elements * k.repeat for k in self.kernels)

    def counted_as(self, trace: Trace) -> Prediction:
        """The same times beside the operations of ``trace``: the same pass, counted by another
        convention."""
        trace = as_engines_run(trace, self.tier)
        counted = {
            (i, n): kernel.flops
            for i, op in enumerate(trace.ops)
            for n, kernel in enumerate(op.kernels(trace.lowering))
        }
        kernels, seen = [], dict.fromkeys(range(len(trace.ops)), 0)
        for k in self.kernels:
            kernels.append(replace(k, flops=counted.get((k.op_index, seen[k.op_index]), k.flops)))
            seen[k.op_index] += 1
        return replace(self, kernels=tuple(kernels))

    def followed_by(self, other: Prediction) -> Prediction:
        """Both passes, one after the other, on the same device."""
        count = 1 + max((k.op_index for k in self.kernels), default=-1)
        later = (replace(k, op_index=count + k.op_index) for k in other.kernels)
        return replace(
            self,
            kernels=(*self.kernels, *later),
            step_seconds=self.step_seconds + other.step_seconds,
            basis={**self.basis, **other.basis},
            unmeasured=tuple(dict.fromkeys((*self.unmeasured, *other.unmeasured))),
        )

    def by_class(self) -> dict[str, Number]:
        """Seconds by class of operator."""
        return self._sum_by(lambda k: k.op_class)

    def by_op(self) -> dict[str, Number]:
        """Seconds of all calls of an operator by its name, in the trace's order."""
        return self._sum_by(lambda k: k.op)

    def by_bound(self) -> dict[str, Number]:
        """Seconds by binding resource (of a prediction without arrays)."""
        return self._sum_by(lambda k: k.bound)

    def _sum_by(self, key) -> dict[str, Number]:
        sums: dict[str, Number] = {}
        for k in self.kernels:
            sums[key(k)] = sums.get(key(k), 0) + k.seconds * k.repeat
        return sums


def as_engines_run(trace: Trace, tier: Tier | None) -> Trace:
    """A pass of fused operators, or one with naive attention, as engines run it on a GPU whose kernels have
    time models: rotations and gated activations are kernels of their own. A training step, the lowering of a
    reading and other tiers are left as they are: a datasheet's bound is that of the fewest kernels."""
    modelled = tier in (Tier.GENERIC, Tier.CALIBRATED) and trace.forward is None
    if not modelled or trace.lowering.name not in (FUSED.name, NAIVE_ATTENTION.name):
        return trace
    apart = FUSED.fused - GPU_ENGINE.fused
    return trace.lowered(replace(trace.lowering, name=GPU_ENGINE.name, fused=trace.lowering.fused - apart))
