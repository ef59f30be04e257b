"""What a prediction's times stand on: a datasheet's rates, constants of other devices, constants fitted to
this one, or this machine's measured kernels."""

from __future__ import annotations

from enum import StrEnum

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device

#: A device is calibrated once it has constants for matrix products: most of a model's time.
DECISIVE = "gemm"


class Tier(StrEnum):
    """From the most optimistic to the best founded. ``datasheet``: every kernel reaches the device's rates, a
    lower bound. ``generic``: time models of GPU kernels with what other, calibrated devices have in common.
    ``calibrated``: with constants fitted to this device. ``measured``: this machine's own kernel times."""

    DATASHEET = "datasheet"
    GENERIC = "generic"
    CALIBRATED = "calibrated"
    MEASURED = "measured"


def tier_of(device: Device, wanted: str | None = None) -> Tier:
    """The ``wanted`` tier, or the best that there is for ``device``.

    Raises InputError for a tier that is unknown, or that the device has no figures for.
    """
    known = tiers_of(device)
    if wanted is None:
        return known[-1]
    if wanted not in tuple(Tier):
        raise InputError(f"unknown tier '{wanted}'; choose one of: {', '.join(Tier)}")
    if wanted not in known:
        raise InputError(f"{device.name} has no figures for tier {wanted}; it has: {', '.join(known)}")
    return Tier(wanted)


def tiers_of(device: Device) -> tuple[Tier, ...]:
    """The tiers that a device can be predicted at, the best founded last."""
    models = (Tier.GENERIC,) if device.kind == "gpu" or DECISIVE in device.calibration else ()
    fitted = (Tier.CALIBRATED,) if DECISIVE in device.calibration else ()
    return (Tier.DATASHEET, *models, *fitted, *((Tier.MEASURED,) if device.kernels else ()))
