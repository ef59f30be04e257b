"""Dataflows side by side: a table, and one page of charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.report.standalone import chart
from ridgeline.report.style import log_axis
from ridgeline.report.tables import stands_on
from ridgeline.report.units import count, nbytes, seconds

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ridgeline.analysis.dataflows import Comparison
    from ridgeline.analysis.overtake import Overtaking
    from ridgeline.predict.dataflows import Crossover, Outcome

#: Colours that can be told apart, also where colours cannot; FLAT's granularities share one.
COLOURS = {
    "naive": "#7f7f7f",
    "FLAT matrix": "#f2b880",
    "FLAT batch": "#e8954a",
    "FLAT head": "#d97318",
    "FLAT row": "#a8500a",
    "flash v1": "#6fa8dc",
    "flash v2": "#1f5fa8",
    "split-KV": "#38a169",
}
DASHES = {"split-KV": "dot", "flash v1": "dash", "naive": "dash"}


def show_dataflows(console: Console, found: Comparison) -> None:
    """The side-by-side table, what each one meets, and where they cross."""
    shape = found.shape
    name = found.model or f"{shape.heads} heads of {shape.dim}"
    console.print(Text.assemble(("Attention of ", ""), (name, "bold"), " on ", (found.device_title, "bold")))
    groups = "" if shape.group == 1 else f" on {shape.kv_heads} key/value heads"
    units = "1 unit" if found.units == 1 else f"{found.units} units"
    mask = "causal" if shape.causal else "every pair visible"
    console.print(
        f"{shape.batch} x {shape.queries:,} queries over {shape.keys:,} keys, {shape.heads} heads of "
        f"{shape.dim}{groups}, {shape.format}, {mask}; {units} of {nbytes(found.on_chip)}"
    )
    console.print()
    console.print(_table(found.outcomes))
    console.print(
        f"Q, K, V and O once are {nbytes(found.least_bytes)}. "
        f"The ridge point is {found.ridge:,.0f} FLOP/byte."
    )
    for note, names in _by_note(found.outcomes).items():
        console.print(Text(f"{', '.join(names)}: {note}", style="yellow"), soft_wrap=True)
    console.print(_overflowing(found.outcomes), soft_wrap=True)
    for crossing in found.crossovers:
        console.print(_crossing(crossing), soft_wrap=True)
    if found.overtaking is not None:
        console.print(overtaking_line(found.overtaking), soft_wrap=True)
    console.print(f"[dim]Stands on: {stands_on(found.basis)}.[/dim]")
    for said in found.assumptions:
        console.print(f"[dim]Assumed: {said}.[/dim]")


def _by_note(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Every note once, with the dataflows that it is of."""
    names: dict[str, list[str]] = {}
    for outcome in outcomes:
        for note in outcome.notes:
            names.setdefault(note.removeprefix(f"{outcome.name}: "), []).append(outcome.name)
    return names


def _overflowing(outcomes: Sequence[Outcome]) -> str:
    """From which lengths 32-bit indices and grids overflow."""
    names: dict[int, list[str]] = {}
    for o in outcomes:
        if o.overflows_from is not None:
            names.setdefault(o.overflows_from, []).append(o.name)
    if not names:
        return "No 32-bit index and no grid overflows at any length."
    ends = [f"{', '.join(names[n])} from {n:,} queries" for n in sorted(names)]
    return f"32-bit indices or grids overflow: {'; '.join(ends)}."


def _table(outcomes: Sequence[Outcome]) -> Table:
    columns = ("dataflow", "tiles", "on chip", "off-chip", "FLOP/B", "time", "busy", "bound", "longest")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in (0, 1, 7) else "right", no_wrap=True)
    for outcome in outcomes:
        longest = "-" if outcome.longest is None else _length(outcome.longest)
        cost = outcome.cost
        if cost is None:
            table.add_row(outcome.name, "none fit", f"> {nbytes(outcome.least_live)}", *[""] * 5, longest)
            continue
        splits = f" / {cost.tiles.splits}" if cost.tiles.splits > 1 else ""
        table.add_row(
            outcome.name,
            f"{cost.tiles.rows} x {cost.tiles.keys}{splits}",
            nbytes(cost.live),
            nbytes(cost.bytes),
            count(cost.intensity),
            seconds(cost.seconds),
            f"{cost.busy:.0%}",
            cost.bound,
            longest,
        )
    return table


def _length(tokens: int) -> str:
    """A number of tokens in five characters."""
    if tokens < 10_000:
        return f"{tokens:,}"
    return f"{tokens / 1e3:.0f}k" if tokens < 1e6 else f"{tokens / 1e6:.3g}M"


def _crossing(found: Crossover) -> str:
    return (
        f"From {nbytes(found.on_chip)} on the chip {found.winner} moves no more than {found.other}: "
        f"{nbytes(found.winner_bytes)} against {nbytes(found.other_bytes)}."
    )


def overtaking_line(found: Overtaking) -> str:
    """Where attention overtakes the MLP, in a sentence."""
    pairs = "all pairs" if found.pairs == "square" else "visible pairs"
    if found.length is None:
        return f"Attention never takes more FLOPs than the MLP ({pairs})."
    return f"Attention overtakes the MLP at {found.length:,} tokens ({pairs}, projections included)."


# -- the charts -----------------------------------------------------------------------------------


def charts(found: Comparison) -> Figure:
    """Off-chip traffic, time and intensity by on-chip memory, and on-chip memory by length; for a model also
    the arithmetic of attention beside that of its MLP. One below the other, for narrow screens too."""
    from plotly.subplots import make_subplots

    curves, limit = found.curves, {"dash": "dot", "width": 1}
    panels = [
        ("Off-chip traffic", "bytes", curves.bytes, found.least_bytes),
        ("Time", "seconds", curves.seconds, None),
        ("Operational intensity", "FLOP/byte", curves.intensity, found.ridge),
    ]
    titles = [*(title for title, *_ in panels), "On-chip memory that must fit"]
    titles += ["Where attention overtakes the MLP"] if found.overtaking is not None else []
    figure = make_subplots(rows=len(titles), subplot_titles=titles, vertical_spacing=0.35 / len(titles))
    for row, (_, unit, series, line) in enumerate(panels, start=1):
        _add_lines(figure, curves.on_chip, series, row)
        figure.add_vline(found.on_chip, line=limit, row=row, col=1)
        if line is not None:
            figure.add_hline(line, line=limit, row=row, col=1)
        figure.update_xaxes(title_text="bytes on the chip, of a block", row=row)
        figure.update_yaxes(title_text=unit, row=row)
    row = len(panels) + 1
    _add_lines(figure, curves.lengths, curves.live, row)
    figure.add_hline(found.on_chip, line=limit, row=row, col=1)
    figure.update_xaxes(title_text="queries of a sequence", row=row)
    figure.update_yaxes(title_text="bytes", row=row)
    for place, (_, _, series, _) in enumerate(panels, start=1):
        figure.update_yaxes(**_axis_of(series), row=place)
        figure.update_xaxes(**log_axis(curves.on_chip), row=place)
    figure.update_yaxes(**_axis_of(curves.live), row=row)
    figure.update_xaxes(**log_axis(curves.lengths), row=row)
    if found.overtaking is not None:
        _add_overtaking(figure, found.overtaking, row + 1)
    shape = found.shape
    size = f"{shape.batch} x {shape.queries:,} queries over {shape.keys:,} keys, {shape.heads} heads"
    title = f"Attention of {found.model or f'{shape.heads} heads of {shape.dim}'}"
    figure = chart(figure, f"{title}<br><sup>{found.device_title}</sup><br><sup>{size}</sup>")
    return figure.update_layout(
        height=380 * len(titles),
        margin_t=150,
        legend={"yref": "paper", "yanchor": "top", "y": -0.4 / 3 / len(titles)},
    )


def _axis_of(series: Mapping[str, Sequence]) -> dict[str, Any]:
    return log_axis(y for ys in series.values() for y in ys if y is not None)


def _add_lines(figure: Figure, xs: Sequence[int], series: Mapping[str, Sequence], row: int) -> None:
    for name, ys in series.items():
        figure.add_scatter(
            x=list(xs),
            y=list(ys),
            mode="lines",
            name=name,
            legendgroup=name,
            showlegend=row == 1,
            line={"color": COLOURS.get(name), "dash": DASHES.get(name, "solid"), "width": 2},
            row=row,
            col=1,
        )


def _add_overtaking(figure: Figure, found: Overtaking, row: int) -> None:
    for name, ys, colour in (("attention", found.attention, "#1f5fa8"), ("MLP", found.mlp, "#a8500a")):
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=found.lengths, y=ys, name=name, mode="lines", line=line, row=row, col=1)
    if found.length is not None:
        at = f"{found.length:,}"
        figure.add_vline(found.length, line={"dash": "dot"}, annotation_text=at, row=row, col=1)
    figure.update_xaxes(title_text="tokens", type="linear", row=row, col=1)
    figure.update_yaxes(title_text="FLOPs of the products", type="linear", row=row, col=1)
