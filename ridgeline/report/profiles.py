"""Measured profiles of accelerators beside predictions, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ridgeline.validation.profiles import Judged


def show_profiles(console: Console, found: Sequence[Judged]) -> None:
    """How far predicted times of kernels lie from measured ones, device by device."""
    console.print()
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.title, table.title_justify = (
        "Kernels measured on accelerators: error of the predicted times",
        "left",
    )
    columns = ("device", "kind", "fitted to", "judged on", "mean", "median", "close")
    for name in (*columns, "generic", "data- sheet", "wanted", ""):
        named = name in ("device", "kind", "")
        whole = named or name == "generic"
        table.add_column(name, justify="left" if named or name == "wanted" else "right", no_wrap=whole)
    for j in found:
        datasheet = "-" if j.datasheet_mean is None else f"{j.datasheet_mean:.1%}"
        table.add_row(
            j.device,
            j.kind,
            f"{j.fitted_to:,}",
            f"{j.points:,}",
            f"{j.mean:.1%}",
            f"{j.median:.1%}",
            f"{j.close:.0%}",
            f"{j.generic_mean:.1%}",
            datasheet,
            j.wanted,
            Text("ok", style="green") if j.ok else Text("OFF", style="bold red"),
        )
    console.print(table)
    sources = " and ".join(dict.fromkeys(j.source for j in found))
    console.print(
        f"[dim]Points of {sources}; close: within 1 µs or 15 %; generic: with constants of other "
        "devices.[/dim]",
    )
