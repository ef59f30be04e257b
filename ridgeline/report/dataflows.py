"""Dataflows side by side: a table, and one page of charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.errors import InputError
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
    mask = "causal" if shape.causal else "every pair visible"
    console.print(
        f"{shape.batch} x {shape.queries:,} queries over {shape.keys:,} keys, {shape.heads} heads of "
        f"{shape.dim}{groups}, {shape.format}, {mask}; {found.units} units with {nbytes(found.on_chip)} each"
    )
    console.print()
    console.print(_table(found.outcomes))
    console.print(
        f"Q, K, V and O once are {nbytes(found.least_bytes)}. "
        f"The ridge point is {found.ridge:,.0f} FLOP/byte."
    )
    for note, names in _by_note(found.outcomes).items():
        console.print(Text(f"{', '.join(names)}: {note}", style="yellow"), soft_wrap=True)
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


def _table(outcomes: Sequence[Outcome]) -> Table:
    columns = ("dataflow", "tiles", "on chip", "off-chip", "FLOP/B", "time", "busy", "bound", "longest")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in (0, 1, 7) else "right", no_wrap=True)
    for outcome in outcomes:
        longest = "-" if outcome.longest is None else count(outcome.longest)
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


def write_charts(path: str | Path, found: Comparison) -> Path:
    """Write the charts to ``path``: .html is self-contained; .png (or .svg, .pdf) takes kaleido.

    Raises InputError for other endings, where kaleido is missing, and for a path that cannot be written.
    """
    target, figure = Path(path), charts(found)
    try:
        if target.suffix == ".html":
            figure.write_html(target, include_plotlyjs=True, config={"responsive": True})
        elif target.suffix in (".png", ".svg", ".pdf"):
            _write_image(figure, target)
        else:
            raise InputError(f"{target} ends in neither .html nor .png: say which with the file's name")
    except OSError as error:
        raise InputError(f"cannot write the charts to {target}: {error.strerror}") from None
    return target


def _write_image(figure: Figure, target: Path) -> None:
    try:
        figure.write_image(target, scale=2)
    except (ImportError, ValueError, RuntimeError):
        way_out = f"pip install kaleido, or write {target.with_suffix('.html')}"
        raise InputError(f"{target} takes kaleido and Chrome: {way_out}") from None


def charts(found: Comparison) -> Figure:
    """Off-chip traffic, time and intensity by on-chip memory, and on-chip memory by length; for a model also
    the arithmetic of attention beside that of its MLP."""
    from plotly.subplots import make_subplots

    curves, wide = found.curves, found.overtaking is not None
    titles = ["Off-chip traffic", "Time", "Operational intensity", "On-chip memory that must fit"]
    titles += ["Where attention overtakes the MLP"] if wide else []
    figure = make_subplots(rows=3 if wide else 2, cols=2, subplot_titles=titles)
    panels = ((curves.bytes, 1, 1), (curves.seconds, 1, 2), (curves.intensity, 2, 1))
    for series, row, column in panels:
        _add_lines(figure, curves.on_chip, series, row, column)
        figure.update_xaxes(title_text="bytes on the chip, of a block", row=row, col=column)
        figure.add_vline(found.on_chip, line={"dash": "dot", "width": 1}, row=row, col=column)
    figure.add_hline(found.ridge, line={"dash": "dot", "width": 1}, row=2, col=1)
    figure.add_hline(found.least_bytes, line={"dash": "dot", "width": 1}, row=1, col=1)
    _add_lines(figure, curves.lengths, curves.live, 2, 2)
    figure.add_hline(found.on_chip, line={"dash": "dot", "width": 1}, row=2, col=2)
    figure.update_xaxes(title_text="queries of a sequence", row=2, col=2)
    for title, row, column in (("bytes", 1, 1), ("seconds", 1, 2), ("FLOP/byte", 2, 1), ("bytes", 2, 2)):
        figure.update_yaxes(title_text=title, row=row, col=column)
    figure.update_xaxes(type="log", exponentformat="SI")
    figure.update_yaxes(type="log", exponentformat="SI")
    if wide:
        _add_overtaking(figure, found.overtaking)
    shape = found.shape
    lengths = f"{shape.batch} x {shape.queries:,} queries, {shape.keys:,} keys"
    size = f"{lengths}, {shape.heads} heads of {shape.dim}"
    figure.update_layout(
        title=f"Attention of {found.model or size} on {found.device_title}<br><sup>{size}</sup>",
        template="plotly_white",
        height=1200 if wide else 850,
        legend={"orientation": "h", "y": -0.06},
    )
    return figure


def _add_lines(figure: Figure, xs: Sequence[int], series, row: int, column: int) -> None:
    for name, ys in series.items():
        figure.add_scatter(
            x=list(xs),
            y=list(ys),
            mode="lines",
            name=name,
            legendgroup=name,
            showlegend=(row, column) == (1, 1),
            line={"color": COLOURS.get(name), "dash": DASHES.get(name, "solid"), "width": 2},
            row=row,
            col=column,
        )


def _add_overtaking(figure: Figure, found: Overtaking) -> None:
    for name, ys, colour in (("attention", found.attention, "#1f5fa8"), ("MLP", found.mlp, "#a8500a")):
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=found.lengths, y=ys, name=name, mode="lines", line=line, row=3, col=1)
    if found.length is not None:
        at = f"{found.length:,}"
        figure.add_vline(found.length, line={"dash": "dot"}, annotation_text=at, row=3, col=1)
    figure.update_xaxes(title_text="tokens", type="linear", row=3, col=1)
    figure.update_yaxes(title_text="FLOPs of the products", type="linear", row=3, col=1)
