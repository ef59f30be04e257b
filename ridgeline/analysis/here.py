"""What a loaded model runs on, as it was measured: this machine, or its GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ridgeline.analysis.arguments import device_of
from ridgeline.errors import InputError
from ridgeline.hardware import Device, this_gpu, this_machine
from ridgeline.hardware.files import THIS_MACHINE
from ridgeline.hardware.kernels import Kernels
from ridgeline.hardware.measured import is_measured_gpu
from ridgeline.hardware.threads import threads
from ridgeline.ops.lowering import GPU_INVARIANT

if TYPE_CHECKING:
    from ridgeline.loading import Loaded

#: What the interpreter, which stands in for a GPU in tests, is called.
NO_GPU = "Triton's interpreter"


def runs_as_measured(loaded: Loaded) -> bool:
    """Whether a GPU's hardware file, which is measured without ``invariant``, is of the kernels that run."""
    return loaded.ops.lowering is not GPU_INVARIANT


def gpu_name(loaded: Loaded) -> str:
    """What the driver calls the GPU that the model lies on."""
    if loaded.ops.device.type != "cuda":
        return NO_GPU
    import torch

    return torch.cuda.get_device_name(loaded.ops.device)


def stored_here(loaded: Loaded) -> Device | None:
    """The hardware file of what the model runs on, None before it was measured. Raises InputError for a file
    that cannot be read."""
    return this_gpu(gpu_name(loaded)) if loaded.on_gpu else this_machine()


def measured_device(on: str | Device, loaded: Loaded) -> Device:
    """The device ``on``, where ``this`` is what the model runs on.

    Raises InputError for a datasheet, for what was not measured, for a model that was loaded as ``invariant``
    on a GPU, and for a file of a CPU where the model is on a GPU, or the other way round.
    """
    on_gpu = loaded.on_gpu
    if not runs_as_measured(loaded):
        raise InputError("a GPU is measured without `invariant`: load the model without it")
    if on_gpu and isinstance(on, str) and on.strip().lower() in THIS_MACHINE:
        found, name = stored_here(loaded), gpu_name(loaded)
        if found is None:
            raise InputError(f"{name} is not measured yet: run `ridgeline measure --device cuda` first")
        return found
    device = device_of(on)
    if not device.kernels:
        way_out = "use `this`, after `ridgeline measure" + (" --device cuda`" if on_gpu else "`")
        raise InputError(f"{device.name} is a datasheet; check runs here: {way_out}")
    if is_measured_gpu(device) != on_gpu:
        kind, other = ("a GPU", "cuda") if is_measured_gpu(device) else ("a CPU", "cpu")
        raise InputError(f"{device.name} is {kind}, the model runs elsewhere: load it with device {other}")
    return device


@contextmanager
def computing_as(device: Device) -> Iterator[None]:
    """Inside, as many threads compute as the machine was measured with; a GPU has its own."""
    if is_measured_gpu(device):
        yield
        return
    with threads(Kernels.from_dict(device.kernels).threads):
        yield
