"""A model split over unlike devices, on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ridgeline.report.tables import plain_table, stands_on
from ridgeline.report.units import count, nbytes, seconds

if TYPE_CHECKING:
    from ridgeline.analysis.placement import Placed


def show_placement(console: Console, found: Placed) -> None:
    """Every operator's intensity, its time on each device and its place; then simple placements beside it."""
    load = found.workload
    console.print(Text.assemble((found.model, "bold"), " over ", (", ".join(found.devices), "bold")))
    if found.phase == "denoise":
        work = f"{load.batch:,} x an image as trained, with its condition and without"
    elif found.phase == "encode":
        work = f"{load.batch:,} x {load.prompt:,} tokens"
    else:
        work = f"{load.batch:,} x {load.prompt:,} prompt tokens, {load.output:,} new each"
    console.print(
        f"{found.phase} of {work}; ridges: "
        + ", ".join(f"{name} {ridge:,.0f} FLOP/byte" for name, ridge in found.ridges.items())
    )
    console.print()
    table = plain_table("operator", "calls", "FLOP/byte", *found.devices, "runs on")
    for o in found.operators:
        times = [
            Text(seconds(o.seconds[name]), style="bold" if name == o.device else "") for name in found.devices
        ]
        table.add_row(o.name, f"{o.calls:,}", f"{o.intensity:,.3g}", *times, o.device)
    console.print(table)
    console.print()
    table = plain_table("placement", "a step", "transfers", "sent", "sending", "beyond memory")
    for choice in found.choices:
        over = "" if choice.fits else nbytes(choice.over)
        sent = nbytes(choice.transferred_bytes)
        row = (seconds(choice.seconds), count(choice.transfers), sent, seconds(choice.transfer_seconds))
        table.add_row(choice.rule, *row, Text(over, style="red"))
    console.print(table)
    console.print()
    for name, basis in found.basis.items():
        console.print(f"[dim]Figures of {name}: {stands_on(basis)}.[/dim]")
    for line in found.assumptions:
        console.print(f"[dim]Assumed: {line}.[/dim]")
