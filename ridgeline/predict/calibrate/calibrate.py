"""Fitting a device's constants to a few of the points that were measured on it, and judging the fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device, Provenance
from ridgeline.predict.calibrate.choose import choose
from ridgeline.predict.gpu.fitting import rounded
from ridgeline.predict.gpu.generic import constants_of, generic_constants
from ridgeline.predict.gpu.kinds import Points, kind

#: Points of all kinds together that a device is calibrated with.
MOST = 64
#: A time counts as met within a microsecond, which is what times are often rounded to, or this share.
CLOSE_SECONDS, CLOSE = 1e-6, 0.15


@dataclass(frozen=True)
class Errors:
    """Relative errors of predicted times over ``points`` measured ones: the mean, median and 90th
    percentile of their absolute values, and the mean with signs. ``close`` is the share within
    CLOSE_SECONDS or CLOSE."""

    points: int
    mean: float
    median: float
    p90: float
    bias: float
    close: float


@dataclass(frozen=True)
class KindCalibration:
    """One kind's ``constants``, and their errors on the points that they were fitted to (``fitted``), on
    the rest (None if there is none), and those of generic constants on that rest, or on all."""

    kind: str
    constants: Any
    fitted: Errors
    rest: Errors | None
    generic: Errors


@dataclass(frozen=True)
class Calibration:
    """A device with its constants, and how good they are."""

    device: Device
    kinds: tuple[KindCalibration, ...]


def calibrate(device: Device, points: Mapping[str, Points], *, most: int = MOST) -> Calibration:
    """The device with constants fitted to at most ``most`` points, chosen from all kinds together.

    Constants that the device has for other kinds stay as they are.

    Raises InputError for no points, or fewer than one for each kind.
    """
    if not points:
        raise InputError("there are no points to calibrate with")
    if most < len(points):
        raise InputError(f"{most} points can't calibrate {len(points)} kinds: give one for each at least")
    kinds, calibration = [], dict(device.calibration)
    for name, count in shares({name: len(p) for name, p in points.items()}, most).items():
        mine = points[name]
        chosen = choose(mine, count)
        rest = np.ones(len(mine), bool)
        rest[chosen] = False
        constants = rounded(kind(name).fit(device, mine.take(chosen)))
        calibration[name] = asdict(constants)
        judged = mine.take(rest)
        kinds.append(
            KindCalibration(
                name,
                constants,
                errors(device, constants, mine.take(chosen)),
                errors(device, constants, judged) if len(judged) else None,
                errors(device, generic_constants(device, name), judged if len(judged) else mine),
            )
        )
    provenance = {**device.provenance, "calibration": Provenance.CALIBRATED}
    return Calibration(replace(device, calibration=calibration, provenance=provenance), tuple(kinds))


def judge(device: Device, points: Mapping[str, Points]) -> dict[str, Errors]:
    """How well the calibrated ``device`` predicts these points, by kind. Raises InputError for a kind that
    it is not calibrated for."""
    return {name: errors(device, constants_of(device, name), mine) for name, mine in points.items()}


def errors(device: Device, constants: Any, points: Points) -> Errors:
    """How far the times that these constants give lie from the measured ones."""
    predicted = kind(points.kind).seconds(device, constants, points)
    relative = predicted / points.seconds - 1
    off = np.abs(relative)
    allowed = np.maximum(CLOSE_SECONDS, CLOSE * points.seconds)
    return Errors(
        points=len(points),
        mean=float(off.mean()),
        median=float(np.median(off)),
        p90=float(np.quantile(off, 0.9)),
        bias=float(relative.mean()),
        close=float((np.abs(predicted - points.seconds) <= allowed * (1 + 1e-9)).mean()),
    )


def shares(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """How many points each kind gets of ``most``, which is at least one for each: in proportion to what
    kinds ask for, and no more than there are; what one leaves over goes to the others."""
    given = dict.fromkeys(counts, 1)
    for _ in range(most - len(counts)):
        wanting = [name for name in counts if given[name] < counts[name]]
        if not wanting:
            break
        given[min(wanting, key=lambda name: given[name] / kind(name).share)] += 1
    return given
