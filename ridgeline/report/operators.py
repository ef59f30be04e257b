"""Every operator of a phase in numbers, each with what it stands on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ridgeline.report.joined import JoinedPhase, Operator
from ridgeline.report.markup import Cell, sortable
from ridgeline.report.units import BOUNDS, count, nbytes, percent, rate, seconds

if TYPE_CHECKING:
    from ridgeline.hardware import Device

COLUMNS = ("operator", "class", "calls", "FLOP/byte", "FLOP/s", "bound by", "predicted", "share")


def operators_table(joined: JoinedPhase, device: Device, dtype: str) -> str:
    """A sortable table; a time tells what binds it, and how near it comes to what that allows."""
    rows = (tuple(_cells(o, joined, device, dtype)) for o in joined.operators)
    return sortable(f"{joined.phase.name}, predicted", COLUMNS, rows, "llrrrlrr")


def _cells(o: Operator, joined: JoinedPhase, device: Device, dtype: str) -> Iterator[Cell]:
    yield Cell(o.name)
    yield Cell(o.op_class)
    yield Cell(count(o.calls), o.calls)
    counted = f"{count(o.flops)} FLOP and {nbytes(o.bytes)}, counted from the model's definition"
    yield Cell(count(o.intensity), o.intensity, counted) if o.computes else Cell("-", 0.0)
    per_second = o.flops / o.predicted if o.computes and o.predicted else 0.0
    yield Cell(rate(per_second, "FLOP"), per_second) if per_second else Cell("-", 0.0)
    yield Cell(o.bound)
    yield Cell(seconds(o.predicted), o.predicted, time_basis(o, joined, device, dtype))
    share = o.predicted / joined.phase.seconds
    yield Cell(percent(share), share)


def time_basis(o: Operator, joined: JoinedPhase, device: Device, dtype: str) -> str:
    """What binds it, how near the time comes to what that allows, and where the device's figures are from."""
    tiers = ", ".join(f"{section} {tier}" for section, tier in joined.phase.basis.items())
    said = f"{o.calls:,} calls bound by {BOUNDS.get(o.bound, o.bound)}"
    limit = _limit(o, device, dtype)
    if limit and o.predicted:
        said += f"; {percent(limit / o.predicted)} of what the device's rate allows"
    return f"{said}. Stands on: {tiers}."


def _limit(o: Operator, device: Device, dtype: str) -> float | None:
    """Seconds that the binding resource needs at the device's full rate."""
    if o.bound == "memory":
        return o.bytes / device.bandwidth
    if o.bound == "matrix":
        return o.flops / device.matrix_rate(dtype)
    return o.calls * device.launch_seconds if o.bound == "launch" else None
