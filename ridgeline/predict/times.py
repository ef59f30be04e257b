"""Time of every kernel of a trace on a device, at one of the device's tiers.

A datasheet takes every kernel to reach the device's rates, which real ones do in part. On a GPU time models
of kernels say how far they do, with constants fitted to the device or taken from others. On a measured
machine the time is looked up in what its kernels were measured to take.
"""

from __future__ import annotations

from ridgeline.hardware.device import Device
from ridgeline.hardware.kernels import Kernels
from ridgeline.hardware.measured import is_measured_gpu
from ridgeline.ops.numbers import Number
from ridgeline.ops.trace import Trace
from ridgeline.predict.measured import on_measured
from ridgeline.predict.prediction import KernelTime, Prediction, as_engines_run
from ridgeline.predict.residency import place
from ridgeline.predict.roofline import ROOFLINE_SECTIONS, basis_of, kernel_time, roofline, view
from ridgeline.predict.tiers import Tier, tier_of

#: The sections of a device file that the time models of a GPU's kernels stand on, beside their constants.
GPU_SECTIONS = ("matrix", "vector", "exp", "memory", "levels")


def predict(trace: Trace, device: Device, tier: str | None = None) -> Prediction:
    """The time of ``trace`` on ``device``; arrays in the trace make arrays of times. ``tier`` is one of
    :class:`Tier`, the best founded that the device has unless given.

    Raises InputError if the device cannot compute in the trace's dtype, has no figures for the tier, or, of a
    measured machine, was not measured with weights of its format.
    """
    found = tier_of(device, tier)
    if found is Tier.MEASURED:
        if is_measured_gpu(device):
            return _on_measured_gpu(trace, device)
        return on_measured(trace, device, Kernels.from_dict(device.kernels))
    if found is not Tier.DATASHEET:
        return _on_gpu(trace, device, found)
    times = tuple(kernel_time(p, roofline(p, device)) for p in place(trace))
    return Prediction(device.name, times, 0.0, basis_of(device, ROOFLINE_SECTIONS))


def _on_gpu(trace: Trace, device: Device, tier: Tier) -> Prediction:
    from ridgeline.predict.gpu.kernels import GpuTimes  # NumPy, which a datasheet does without

    gpu = GpuTimes(device, tier)
    times = []
    for placed in place(as_engines_run(trace, tier)):
        found = gpu.time(placed.kernel)
        times.append(kernel_time(placed, found.needs, found.seconds))
    return Prediction(
        device.name, tuple(times), 0.0, {**gpu.basis, **basis_of(device, GPU_SECTIONS)}, tier=tier
    )


def _on_measured_gpu(trace: Trace, device: Device) -> Prediction:
    """A decode step replays a graph, whose kernels follow one another; others the host issues."""
    from ridgeline.predict.gpu.measured import MeasuredGpu
    from ridgeline.predict.gpu.schedule import exposed, runs_as_graph

    gpu = MeasuredGpu(device)
    times: list[KernelTime] = []
    seconds: list[Number] = []
    issue: list[float] = []
    placed = iter(place(trace))
    for index, op in enumerate(trace.ops):
        for kernel in (next(placed) for _ in op.kernels(trace.lowering)):
            found = gpu.time(kernel.kernel)
            seconds.append(found.seconds)
            issue.append(gpu.issue_seconds(kernel.kernel))
            times.append(kernel_time(kernel, found.needs, found.seconds))
        if not op.parts:
            times.append(view(index, op))
    beside: Number = gpu.kernels.replay
    if not runs_as_graph(trace):
        beside = exposed(trace, seconds, issue, gpu.kernels.step)
    basis = {**basis_of(device, ("kernels",)), **gpu.basis}
    unmeasured = tuple(gpu.unmeasured)
    return Prediction(device.name, tuple(times), beside, basis, unmeasured, Tier.MEASURED)
