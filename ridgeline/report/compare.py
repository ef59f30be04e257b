"""A comparison on the terminal, as CSV and as a chart."""

from __future__ import annotations

import csv
import io
from dataclasses import fields
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ridgeline.report.standalone import PALETTE, chart
from ridgeline.report.style import log_axis
from ridgeline.report.units import count, nbytes, seconds

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ridgeline.analysis.compare import Comparison, Point


def show_comparison(console: Console, found: Comparison, every: bool = False) -> None:
    """A line for the best batch of each setting, or for ``every`` point."""
    limits = [
        f"{name.upper()} at most {seconds(s)}" for name, s in vars(found.limits).items() if s is not None
    ]
    if not every:
        within = f" within {' and '.join(limits)}" if limits else ""
        console.print(f"The batch with the highest throughput that fits{within}:")
        console.print()
    if every:
        rows = [(point, found.limits.broken_by(point)) for point in found.points]
    else:
        rows = [(best.point, best.broken) for best in found.best]
    console.print(_table(rows))
    for reason in found.refused:
        console.print(f"[dim]Left out: {reason}.[/dim]")
    console.print(
        "[dim]A batch runs alone: all prompts, then one token of each sequence a step. tokens/s are output "
        "tokens, of an encoder its input; $/M is the price of a million of them on a device that is always "
        "busy so.[/dim]"
    )


def _table(rows: list[tuple[Point, str | None]]) -> Table:
    """What is the same in every row is said once, in the title."""
    kinds = {
        "model": [p.model for p, _ in rows],
        "device": [p.device for p, _ in rows],
        "weights": [p.weights for p, _ in rows],
        "cache": [p.cache for p, _ in rows],
        "in+out": [f"{p.prompt:,}+{p.output:,}" for p, _ in rows],
    }
    same = {name: values[0] for name, values in kinds.items() if len(set(values)) == 1 and len(rows) > 1}
    title = ", ".join(f"{name} {value}" for name, value in same.items() if value)
    table = Table(
        box=None,
        header_style="bold",
        pad_edge=False,
        collapse_padding=True,
        title=title or None,
        title_justify="left",
    )
    varied = [name for name in kinds if name not in same]
    for name in varied:
        table.add_column(name, overflow="fold")
    for header in ("batch", "TTFT", "TPOT", "tokens/s", "memory", "$/M"):
        table.add_column(header, justify="right", no_wrap=header != "tokens/s")
    for i, (p, broken) in enumerate(rows):
        cells = [kinds[name][i] for name in varied]
        cells += [f"{p.batch:,}", seconds(p.ttft_seconds)]
        cells.append("" if p.tpot_seconds is None else seconds(p.tpot_seconds))
        cells += [count(p.tokens_per_second) if broken is None else broken, nbytes(p.memory_bytes)]
        costs = broken is None and p.dollars_per_million is not None
        cells.append(f"{p.dollars_per_million:,.3g}" if costs else "")
        table.add_row(*cells, style=None if broken is None else "dim")
    return table


def to_csv(found: Comparison) -> str:
    """Every point as a line, its fields as columns in SI units."""
    from ridgeline.analysis.compare import Point

    names = [f.name for f in fields(Point)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for point in found.points:
        writer.writerow(["" if (value := getattr(point, name)) is None else value for name in names])
    return out.getvalue()


def trade_off(found: Comparison) -> Figure:
    """Throughput over the time of a token (of an encoder: of the batch), a line of batches for each setting,
    on logarithmic axes."""
    from plotly.graph_objects import Figure

    lines: dict[str, list[Point]] = {}
    for p in found.points:
        if p.fits:
            name = f"{p.model}, {p.device}, {p.weights}, {p.prompt}+{p.output}"
            lines.setdefault(name, []).append(p)
    figure = Figure()
    for i, (name, points) in enumerate(lines.items()):
        points.sort(key=lambda p: p.batch)
        figure.add_scatter(
            x=[1e3 * (p.tpot_seconds or p.ttft_seconds) for p in points],
            y=[p.tokens_per_second for p in points],
            mode="lines+markers",
            name=name,
            line={
                "color": PALETTE[i % len(PALETTE)],
                "dash": ("solid", "dash", "dot")[i // len(PALETTE) % 3],
            },
            customdata=[p.batch for p in points],
            hovertemplate=(
                "batch %{customdata}: %{x:.3s} ms a token, %{y:,.0f} tokens/s<extra>%{fullData.name}</extra>"
            ),
        )
    shown = [p for points in lines.values() for p in points]
    times = (1e3 * (p.tpot_seconds or p.ttft_seconds) for p in shown)
    figure.update_xaxes(title="milliseconds a token", **log_axis(times))
    figure.update_yaxes(title="output tokens a second", **log_axis(p.tokens_per_second for p in shown))
    figure.update_layout(height=max(450, 380 + 22 * len(lines)))
    return chart(figure, "Throughput against latency, batch by batch")
