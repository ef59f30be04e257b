"""Tuned tiles on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.report.units import seconds

if TYPE_CHECKING:
    from ridgeline.kernels.triton.tune import Tuned


def show_tuned(console: Console, found: list[Tuned], path: Path) -> None:
    """The fastest tile of each kernel, and where they went."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("kernel", "rows", "columns", "inner", "warps", "stages", "time", "tried", "no room"):
        table.add_column(name, justify="left" if name == "kernel" else "right")
    for row in found:
        tile = row.tile
        numbers = (tile.m, tile.n, tile.k or "", tile.warps, tile.stages)
        table.add_row(
            row.entry, *map(str, numbers), seconds(row.seconds), str(row.ran + row.failed), str(row.failed)
        )
    console.print(table)
    console.print("[dim]Kernels are named by bytes of an element and elements of a head.[/dim]")
    console.print(
        Text(f"Stored in {path}, which every later run on this GPU reads.", style="dim"), soft_wrap=True
    )
