"""Hardware: what a device can do, as files that say where every figure comes from."""

from ridgeline.hardware.device import DTYPES, KINDS, SECTIONS, Device, Level, OnChip, Provenance
from ridgeline.hardware.files import (
    cache_folder,
    device_names,
    gpu_file,
    load_device,
    save_device,
    this_gpu,
    this_machine,
    this_machine_file,
)
from ridgeline.hardware.rates import rates_only

__all__ = [
    "DTYPES",
    "KINDS",
    "SECTIONS",
    "Device",
    "Level",
    "OnChip",
    "Provenance",
    "cache_folder",
    "device_names",
    "gpu_file",
    "load_device",
    "rates_only",
    "save_device",
    "this_gpu",
    "this_machine",
    "this_machine_file",
]
