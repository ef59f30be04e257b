"""A device without the times of its kernels."""

from __future__ import annotations

from dataclasses import replace

from ridgeline.hardware.device import Device


def rates_only(device: Device) -> Device:
    """The device at its rates and bandwidths, for passes that its measured kernels do not run: those of
    another implementation, and training."""
    if not device.kernels:
        return device
    provenance = {section: source for section, source in device.provenance.items() if section != "kernels"}
    return replace(device, kernels={}, provenance=provenance)
