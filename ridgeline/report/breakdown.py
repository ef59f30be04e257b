"""Time by class of layer on the terminal, predicted and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.analysis.breakdown import (
    ATTENTION,
    GROUPS,
    PUBLISHED,
    PUBLISHED_MODEL,
    PUBLISHED_PRODUCTS,
)
from ridgeline.report.tables import plain_table, stands_on
from ridgeline.report.units import seconds

if TYPE_CHECKING:
    from ridgeline.analysis.breakdown import PredictedBreakdown
    from ridgeline.analysis.check import PhaseCheck


def show_breakdown(console: Console, found: PredictedBreakdown) -> None:
    """A row for each class, a column for each way to run the model."""
    console.print(Text.assemble((found.model, "bold"), " on ", (found.device_title, "bold")))
    what = "forward and backward pass" if found.training else "forward pass"
    console.print(f"{what} of {found.batch:,} x {found.prompt:,} tokens in {found.format}")
    console.print()
    published = found.model == PUBLISHED_MODEL
    table = plain_table("layers", *found.ways, *(["published"] if published else []))
    for group in GROUPS:
        cells = [f"{way.shares[group]:.1%}" for way in found.ways.values()]
        table.add_row(group, *cells, *([f"{PUBLISHED[group]:.1%}"] if published else []))
    products = [
        f"{way.products_of_attention:.0%}" if name != "fused" else "" for name, way in found.ways.items()
    ]
    table.add_row(
        f"products in {ATTENTION}", *products, *([f"{PUBLISHED_PRODUCTS:.0%}"] if published else [])
    )
    totals = [seconds(sum(way.seconds.values()) + way.outside) for way in found.ways.values()]
    table.add_row("the whole pass", *totals, *([""] if published else []))
    console.print(table)
    if published:
        console.print("[dim]Published: measured by DSQ's authors on a machine that they do not name.[/dim]")
    console.print(f"[dim]Stands on: {stands_on(found.basis)}.[/dim]")
    console.print("[dim]Shares are of the layers; embedding and output matrix stand outside.[/dim]")


def class_checks(phase: PhaseCheck) -> Table:
    """Predicted and measured seconds and shares of each class of a phase that was run."""
    title = f"{phase.name} at {phase.context:,}: layers"
    table = plain_table(title, "predicted", "share", "measured", "share")
    predicted, measured = phase.breakdown["predicted"], phase.breakdown["measured"]
    for group in GROUPS:
        row = [
            x for b in (predicted, measured) for x in (seconds(b.seconds[group]), f"{b.shares[group]:.1%}")
        ]
        table.add_row(group, *row)
    table.add_row("outside", seconds(predicted.outside), "", seconds(measured.outside), "")
    return table
