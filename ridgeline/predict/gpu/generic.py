"""Constants for a device that was not calibrated: what the calibrated ones of its class have in common."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from math import exp, log
from typing import Any

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device
from ridgeline.hardware.files import load_device
from ridgeline.predict.gpu.kinds import kind

#: The catalogue's devices with a calibration.
CALIBRATED = ("a100-80gb", "h100-sxm", "a40", "rtx-4090")
#: Cards for games run above the clock that their datasheet names; those for data centres seldom reach it.
GAMES = "GeForce"


def constants_of(device: Device, name: str) -> Any:
    """The constants that ``device`` was calibrated with for this kind of kernel.

    Raises InputError if there are none, or not those that the kind's model has.
    """
    found = device.calibration.get(name)
    if found is None:
        raise InputError(f"{device.name} is not calibrated for {name}: run `ridgeline calibrate` first")
    wanted = {f.name for f in fields(kind(name).constants)}
    if wanted != found.keys():
        odd = ", ".join(sorted(wanted ^ found.keys()))
        raise InputError(f"calibration.{name} of {device.name} lacks or misnames {odd}: calibrate it again")
    return kind(name).constants(**found)


def generic_constants(device: Device, name: str) -> Any:
    """The geometric mean of the constants of the *other* calibrated devices, of those in the class of
    ``device`` if there are any; the model's usual ones where none is calibrated for this kind."""
    others = [d for d in _calibrated() if d.name != device.name and name in d.calibration]
    alike = [d for d in others if (GAMES in d.title) == (GAMES in device.title)]
    return _mean(kind(name).constants, [constants_of(d, name) for d in alike or others])


@lru_cache(maxsize=1)
def _calibrated() -> tuple[Device, ...]:
    return tuple(load_device(name) for name in CALIBRATED)


def _mean(constants: type, found: list[Any]) -> Any:
    if not found:
        return constants()
    values = {f.name: [getattr(c, f.name) for c in found] for f in fields(constants)}
    return constants(**{name: _central(v) for name, v in values.items()})


def _central(values: list[float]) -> float:
    """The geometric mean; where not all are positive, the arithmetic."""
    if min(values) <= 0:
        return sum(values) / len(values)
    return exp(sum(map(log, values)) / len(values))
