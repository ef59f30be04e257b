"""A calibration on the terminal: the constants, and how far predictions lie from what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ridgeline.analysis.calibrate import CalibrationReport
    from ridgeline.predict.calibrate.calibrate import Errors


def show_calibration(console: Console, found: CalibrationReport, path: Path | None) -> None:
    """The constants by kind, the errors, and where the device went."""
    fitted = sum(kind.fitted.points for kind in found.kinds)
    points = "1 point" if fitted == 1 else f"{fitted} points"
    console.print(Text.assemble((found.device.title, "bold"), f", calibrated with {points}"))
    for kind in found.kinds:
        constants = ", ".join(f"{name} {value:g}" for name, value in asdict(kind.constants).items())
        console.print(Text.assemble((kind.kind, "bold"), f": {constants}"))
    console.print()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("kind", "points", "of them", "mean", "median", "p90", "bias", "close"):
        table.add_column(name, justify="left" if name in ("kind", "points") else "right")
    for row in _rows(found):
        table.add_row(*row)
    console.print(table)
    console.print("[dim]Relative errors of the predicted times; close: within 1 µs or 15 %.[/dim]")
    for layer, rows in found.passed.items():
        console.print(
            Text(f"Passed over: {layer} ({rows:,} points), whose time tokens alone do not tell.", style="dim")
        )
    if path is not None:
        console.print(Text(f"Stored in {path}; `--on {path}` uses it.", style="dim"), soft_wrap=True)


def _rows(found: CalibrationReport) -> Iterator[tuple[str, ...]]:
    for kind in found.kinds:
        yield _row(kind.kind, "fitted to", kind.fitted)
        if kind.rest is not None:
            yield _row(kind.kind, "the rest", kind.rest)
        yield _row(kind.kind, "not calibrated", kind.generic)
    for name, errors in found.judged.items():
        yield _row(name, "judged", errors)


def _row(kind: str, which: str, errors: Errors) -> tuple[str, ...]:
    shares = (errors.mean, errors.median, errors.p90)
    return (
        kind,
        which,
        f"{errors.points:,}",
        *(f"{share:.1%}" for share in shares),
        f"{errors.bias:+.1%}",
        f"{errors.close:.0%}",
    )
