"""What fits in a device's memory, on the terminal and as a chart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.report.standalone import PALETTE, chart
from ridgeline.report.units import count, nbytes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ridgeline.analysis.capacity import Capacity


def show_capacity(console: Console, found: Capacity) -> None:
    """A line for each format of weights and cache."""
    console.print(
        Text.assemble((found.model, "bold"), " on ", (found.device_title, "bold"))
        + f": {nbytes(found.usable_bytes)} of memory"
    )
    console.print()
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    keeps = any(h.cache for h in found.holdings)
    headers = ["weights", "cache"] if keeps else ["weights"]
    headers += ["weights take", *(("a token takes", "left for the cache") if keeps else ("left",)), "tokens"]
    headers += [f"sequences of {found.context:,}"]
    headers += ["longest" if found.batch == 1 else f"longest of {found.batch:,}"]
    for header in headers:
        table.add_column(header, justify="left" if header in ("weights", "cache") else "right")
    for h in found.holdings:
        table.add_row(
            h.weights,
            *((h.cache,) if keeps else ()),
            nbytes(h.weight_bytes),
            *((nbytes(h.cache_bytes_per_token),) if keeps else ()),
            nbytes(h.free_bytes) if h.tokens else "none",
            count(h.tokens),
            count(h.largest_batch),
            count(h.longest_context),
        )
    console.print(table)
    room = (
        f"Activations of a step of {count(found.step_tokens)} tokens are left room for."
        if keeps
        else "All sequences of a batch run in one pass, whose activations are what is left."
    )
    console.print(
        f"[dim]No sequence is longer than the model's window of {count(found.window)}. {room} What a driver "
        "or allocator keeps is not counted.[/dim]"
    )


def growth(found: Capacity) -> Figure:
    """Memory over the context of ``batch`` sequences, a line for each pair of formats, up to the capacity."""
    from plotly.graph_objects import Figure

    figure = Figure()
    weights = list(dict.fromkeys(h.weights for h in found.holdings))
    caches = list(dict.fromkeys(h.cache for h in found.holdings))
    for h in found.holdings:
        figure.add_scatter(
            x=found.lengths,
            y=h.growth,
            mode="lines",
            name=f"{h.weights}, cache {h.cache}" if h.cache else h.weights,
            line={
                "color": PALETTE[weights.index(h.weights) % len(PALETTE)],
                "dash": ("solid", "dash", "dot")[caches.index(h.cache) % 3],
            },
            hovertemplate="%{x:,} tokens: %{y:.3s}B<extra>%{fullData.name}</extra>",
        )
    figure.add_hline(found.usable_bytes, line_dash="dash", annotation_text=f"memory of {found.device}")
    sequences = "one sequence" if found.batch == 1 else f"each of {found.batch:,} sequences"
    figure.update_xaxes(title=f"tokens of {sequences}", rangemode="tozero")
    figure.update_yaxes(title="bytes", tickformat="~s", rangemode="tozero")
    figure.update_layout(height=450 + 22 * len(found.holdings))
    return chart(figure, f"{found.model} on {found.device_title}")
