"""The roofline of a kernel: what each resource of a device needs for it by itself.

A kernel takes its launch plus the longest of: matrix operations at the dense matrix rate, vector operations
at the vector rate, exponentials at theirs, and bytes at the bandwidth of the level that serves them
(Williams, Waterman, Patterson 2009, with two more ceilings).
"""

from __future__ import annotations

from collections.abc import Iterable

from ridgeline.hardware.device import Device, Provenance
from ridgeline.ops.kernel import Flops
from ridgeline.ops.numbers import Number, maximum, where
from ridgeline.ops.trace import OpCost, Trace
from ridgeline.predict.prediction import KernelTime
from ridgeline.predict.residency import PlacedKernel, bandwidth_at, place

#: The sections of a device file that a roofline stands on.
ROOFLINE_SECTIONS = ("matrix", "vector", "exp", "memory", "levels", "launch")


def resource_seconds(trace: Trace, device: Device) -> dict[str, Number]:
    """Seconds that each resource needs by itself for all kernels of ``trace`` at the device's rates: matrix,
    vector, exp, memory and launch. The longest of them is the roofline of the whole pass."""
    sums: dict[str, Number] = {}
    for placed in place(trace):
        for resource, seconds in roofline(placed, device).items():
            sums[resource] = sums.get(resource, 0) + seconds * placed.op.repeat
    return sums


def basis_of(device: Device, sections: Iterable[str]) -> dict[str, Provenance]:
    return {s: device.provenance[s] for s in sections if s in device.provenance}


def roofline(placed: PlacedKernel, device: Device) -> dict[str, Number]:
    """Seconds that each resource needs by itself."""
    kernel = placed.kernel
    return {
        "memory": sum(t.access.bytes / bandwidth_at(device.levels, t.distance) for t in placed.touches),
        "matrix": kernel.flops.matrix / device.matrix_rate(kernel.compute),
        "vector": kernel.flops.vector / device.vector_rate(kernel.compute),
        "exp": kernel.flops.exp / device.exp_rate,
        "launch": device.launch_seconds,
    }


def kernel_time(placed: PlacedKernel, needs: dict[str, Number], seconds: Number | None = None) -> KernelTime:
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


def view(index: int, op: OpCost) -> KernelTime:
    """An operator that takes no time."""
    return KernelTime(op.name, index, op.kind, op.kind, op.repeat, 0.0, "launch", Flops(), 0, 0)
