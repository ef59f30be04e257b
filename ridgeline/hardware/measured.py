"""The measured kernels of a device file, whichever reading they are of."""

from __future__ import annotations

from ridgeline.hardware.device import Device
from ridgeline.hardware.gpu_kernels import GpuKernels
from ridgeline.hardware.kernels import Kernels
from ridgeline.ops.lowering import FUSED, GPU, Lowering


def is_measured_gpu(device: Device) -> bool:
    """Whether its kernels are the gpu reading's, as ``ridgeline measure --device cuda`` left them."""
    return device.kernels.get("reading") == GPU.name


def measured_kernels(device: Device) -> Kernels | GpuKernels:
    """Raises InputError if they were written by another version or hold an impossible value."""
    return (GpuKernels if is_measured_gpu(device) else Kernels).from_dict(device.kernels)


def measured_lowering(device: Device) -> Lowering:
    """What runs there: the reading whose kernels were measured, or else fused kernels."""
    if is_measured_gpu(device):
        return GPU
    return Kernels.from_dict(device.kernels).lowering if device.kernels else FUSED
