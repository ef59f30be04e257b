"""Time of every kernel of a trace on a device.

On a datasheet a kernel takes its launch plus the longest of: matrix operations at the dense
matrix rate, vector operations at the vector rate, exponentials at theirs, and bytes at the
bandwidth of the level that serves them. That is the roofline (Williams, Waterman, Patterson 2009)
with two more ceilings, and so a bound: real kernels reach a part of it. On a measured machine the
time is looked up in what its kernels were measured to take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ridgeline.hardware.device import Device, Provenance
from ridgeline.hardware.kernels import Affine, Kernels
from ridgeline.ops.numbers import Number, maximum, where
from ridgeline.ops.trace import Flops, Role, Trace, op_class
from ridgeline.predict.residency import PlacedKernel, bandwidth_at, footprint, place

#: The sections of a device file that a roofline stands on.
ROOFLINE_SECTIONS = ("matrix", "vector", "exp", "memory", "levels", "launch")


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
    """A step's predicted time. ``step_seconds`` is what it costs beside its kernels."""

    device: str
    kernels: tuple[KernelTime, ...]
    step_seconds: float
    basis: Mapping[str, Provenance]

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


def predict(trace: Trace, device: Device) -> Prediction:
    """The time of ``trace`` on ``device``; arrays in the trace make arrays of times.

    Raises InputError if the device cannot compute in the trace's dtype.
    """
    if device.kernels:
        measured = Kernels.from_dict(device.kernels)
        times = _measured_times(trace, device, measured)
        return Prediction(device.name, times, measured.step, _basis(device, "kernels"))
    times = tuple(_time(p, _roofline(p, device)) for p in place(trace))
    return Prediction(device.name, times, 0.0, _basis(device, *ROOFLINE_SECTIONS))


def _basis(device: Device, *sections: str) -> dict[str, Provenance]:
    return {s: device.provenance[s] for s in sections if s in device.provenance}


def _roofline(placed: PlacedKernel, device: Device) -> dict[str, Number]:
    """Seconds that each resource needs by itself."""
    kernel = placed.kernel
    return {
        "memory": sum(t.access.bytes / bandwidth_at(device.levels, t.distance) for t in placed.touches),
        "matrix": kernel.flops.matrix / device.matrix_rate(kernel.compute),
        "vector": kernel.flops.vector / device.vector_rate(kernel.compute),
        "exp": kernel.flops.exp / device.exp_rate,
        "launch": device.launch_seconds,
    }


def _time(placed: PlacedKernel, needs: dict[str, Number], seconds: Number | None = None) -> KernelTime:
    """The kernel's record: bound by its largest need, and as long as it unless told otherwise."""
    longest: Number = 0.0
    bound = "memory"
    for resource, need in needs.items():
        bound = where(need > longest, resource, bound)
        longest = maximum(longest, need)
    if seconds is None:
        work: Number = 0.0
        for resource, need in needs.items():
            work = work if resource == "launch" else maximum(work, need)
        seconds = needs["launch"] + work
    kernel, op = placed.kernel, placed.op
    return KernelTime(
        op.name,
        placed.op_index,
        op.kind,
        kernel.kind,
        op.repeat,
        seconds,
        bound,
        kernel.flops,
        kernel.bytes,
        kernel.elements,
    )


def _measured_times(trace: Trace, device: Device, measured: Kernels) -> tuple[KernelTime, ...]:
    near = device.levels[-2].capacity if len(device.levels) > 1 else 0.0
    cached = footprint(trace) <= near
    times = []
    placed = iter(place(trace))
    for index, op in enumerate(trace.ops):
        for _ in op.kernels(trace.lowering):
            times.append(_measured_time(next(placed), device, measured, cached))
        if not op.parts:  # a view computes nothing, but the call takes its time
            overhead = _simple(measured, trace.output.format, op.kind)
            seconds = 0.0 if overhead is None else overhead.overhead
            times.append(
                KernelTime(op.name, index, op.kind, op.kind, op.repeat, seconds, "launch", Flops(), 0, 0)
            )
    return tuple(times)


def _measured_time(placed: PlacedKernel, device: Device, measured: Kernels, cached: Number) -> KernelTime:
    kernel = placed.kernel
    needs = _roofline(placed, device)
    seconds: Number | None = None
    linear, attend = measured.linear.get(kernel.compute), measured.attend.get(kernel.compute)
    simple = _simple(measured, kernel.compute, kernel.kind, kernel.function)
    if kernel.kind in ("matmul", "linear") and linear is not None:
        weight = sum(a.bytes for a in kernel.reads if a.value.role is Role.WEIGHT and len(a.value.shape) > 1)
        warm = linear.seconds(kernel.rows, weight, cached=True)
        seconds = where(cached, warm, linear.seconds(kernel.rows, weight, cached=False))
        needs["launch"] = linear.warm[0][0]
    elif kernel.kind == "attend" and attend is not None:
        flops, keys = kernel.flops.matrix, sum(a.bytes for a in kernel.reads if a.value.role is Role.CACHE)
        warm = attend.seconds(kernel.rows, flops, keys, cached=True)
        seconds = where(cached, warm, attend.seconds(kernel.rows, flops, keys, cached=False))
        needs["launch"] = attend.overhead
    elif simple is not None:
        seconds = simple.seconds(kernel.bytes)
        needs["launch"] = simple.overhead
    return _time(placed, needs, seconds)


def _simple(measured: Kernels, dtype: str, kind: str, function: str = "") -> Affine | None:
    """The table of this very function, else that of its kind."""
    kinds = measured.simple.get(dtype, {})
    return kinds.get(f"{kind}.{function}", kinds.get(kind))
