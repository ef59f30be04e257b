"""A GPU as a device: the catalogue's where the driver's name for it is known, else what the driver tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ridgeline.hardware.device import Device, Level, OnChip, Provenance
from ridgeline.hardware.files import load_device
from ridgeline.hardware.gpu.work import GpuFacts

#: The catalogue's device by the driver's name. A card that shares its name with another is told by its units.
CATALOGUE: Mapping[str, str] = {
    "NVIDIA B200": "b200",
    "NVIDIA H200": "h200",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 SXM5 80GB": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "NVIDIA A40": "a40",
    "NVIDIA A10": "a10",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 3060": "rtx-3060",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
    "NVIDIA GeForce RTX 4060": "rtx-4060",
    "NVIDIA GeForce RTX 4080": "rtx-4080",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 5080": "rtx-5080",
    "NVIDIA GeForce RTX 5090": "rtx-5090",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada",
    "NVIDIA RTX A6000": "rtx-a6000",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000",
}
#: Where a GPU is not in the catalogue: a clock that most come near, multiply-adds of an SM a clock on its
#: vector units, and exponentials (CUDA C++ Programming Guide, arithmetic instructions, compute capability
#: 8.0 to 9.0).
USUAL_CLOCK_HZ, LANES, EXPONENTIALS = 1.5e9, 128, 16
LAUNCH_SECONDS = 3e-6


def known_device(facts: GpuFacts) -> Device | None:
    """The catalogue's device of that name, if it has as many units: a part of a GPU is another device."""
    name = CATALOGUE.get(facts.name)
    device = None if name is None else load_device(name)
    return device if device is not None and device.units == facts.units else None


def unknown_device(facts: GpuFacts, matrix: float, bandwidth: float) -> Device:
    """A device of which only the driver's facts are known, and what was measured: FLOP/s of ``matrix``
    products in 16 bits, and bytes a second that are read."""
    clock = facts.clock_hz or USUAL_CLOCK_HZ
    vector = 2 * LANES * facts.units * clock
    found = {"matrix": "measured", "vector": "assumed", "exp": "assumed", "memory": "measured"}
    found |= {"launch": "assumed"} | ({"levels": "measured"} if facts.l2 else {})
    return Device(
        name="this-gpu",
        title=facts.name,
        kind="gpu",
        source="the driver; rates by ridgeline measure",
        date="today",
        provenance={section: Provenance(source) for section, source in found.items()},
        units=facts.units,
        clock_hz=clock,
        matrix={"bf16": matrix, "fp16": matrix},
        vector={"fp32": vector, "bf16": vector, "fp16": vector},
        exp_rate=EXPONENTIALS * facts.units * clock,
        levels=(Level("memory", facts.memory, bandwidth),),
        on_chip=OnChip(cache=facts.l2) if facts.l2 else OnChip(),
        launch_seconds=LAUNCH_SECONDS,
    )


def device_of(facts: GpuFacts, matrix: float, bandwidth: float) -> Device:
    """The GPU at datasheet's figures where it is known, else at the driver's and at measured ones."""
    known = known_device(facts)
    device = unknown_device(facts, matrix, bandwidth) if known is None else known
    return replace(device, name="this-gpu", title=facts.name if known is None else known.title)
