"""Constants for a device that was not calibrated: what the calibrated ones of its class have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from math import exp, log
from typing import Any

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device
from ridgeline.hardware.files import load_device
from ridgeline.predict.gpu.kinds import kind

#: The catalogue's devices with a calibration.
CALIBRATED = ("a100-80gb", "h100-sxm", "a40", "rtx-4090")
#: Left out, it is the first that there was.
FIRST = {"generation"}
#: Cards for games run above the clock that their datasheet names: an RTX 4090 at 2.81 to 2.85 GHz of 2.52 in
#: games, https://www.tweaktown.com/news/88568, of which a matrix product leaves less.
GAMES, GAMES_REACH = "GeForce", 1.08
#: The constants of each kind that are shares of the clock. Attention's are not taken for such: an RTX 4090's
#: give an A100 what is published for it.
CLOCKED: Mapping[str, tuple[str, ...]] = {"gemm": ("matrix", "feed"), "elementwise": ("issue",)}


def constants_of(device: Device, name: str) -> Any:
    """The constants that ``device`` was calibrated with for this kind of kernel.

    Raises InputError if there are none, or not those that the kind's model has.
    """
    found = device.calibration.get(name)
    if found is None:
        raise InputError(f"{device.name} is not calibrated for {name}: run `ridgeline calibrate` first")
    wanted = {f.name for f in fields(kind(name).constants)}
    if wanted - FIRST != found.keys() - FIRST:
        odd = ", ".join(sorted(wanted ^ found.keys()))
        raise InputError(f"calibration.{name} of {device.name} lacks or misnames {odd}: calibrate it again")
    return kind(name).constants(**found)


def generic_constants(device: Device, name: str) -> Any:
    """The geometric mean of the constants of the *other* calibrated devices, of those in the class of
    ``device`` if there are any; the model's usual ones where none is calibrated for this kind. What is a
    share of the clock follows the clock that each device reaches; what depends on the chip's generation
    is as the kind says."""
    others = [d for d in _calibrated() if d.name != device.name and name in d.calibration]
    alike = [d for d in others if (GAMES in d.title) == (GAMES in device.title)]
    found = [_clocked(constants_of(d, name), name, 1 / reach(d)) for d in alike or others]
    of = kind(name)
    constants = _clocked(_mean(of.constants, found), name, reach(device)) if found else of.constants()
    return constants if of.assumed is None else of.assumed(device, constants)


def reach(device: Device) -> float:
    """The clock that a device reaches where its power allows it, against that of its matrix rates."""
    if device.boost_hz and device.clock_hz:
        return device.boost_hz / device.clock_hz
    return GAMES_REACH if GAMES in device.title else 1.0


def _clocked(constants: Any, name: str, factor: float) -> Any:
    clocked = CLOCKED.get(name, ())
    return replace(constants, **{field: getattr(constants, field) * factor for field in clocked})


@lru_cache(maxsize=1)
def _calibrated() -> tuple[Device, ...]:
    return tuple(load_device(name) for name in CALIBRATED)


def _mean(constants: type, found: list[Any]) -> Any:
    values = {f.name: [getattr(c, f.name) for c in found] for f in fields(constants)}
    return constants(**{name: _central(v) for name, v in values.items()})


def _central(values: list[float]) -> float:
    """The geometric mean; where not all are positive, the arithmetic."""
    if min(values) <= 0:
        return sum(values) / len(values)
    return exp(sum(map(log, values)) / len(values))
