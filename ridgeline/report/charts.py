"""The page's bar charts: time by class of operator, memory by use, and the signed errors."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from ridgeline.ops.trace import op_class
from ridgeline.report.joined import JoinedPhase
from ridgeline.report.style import BETWEEN, class_paint, dress, in_order, phase_colour
from ridgeline.report.units import nbytes, percent, seconds, signed_percent

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ridgeline.analysis.check import PhaseCheck
    from ridgeline.analysis.explanation import MemoryUse

#: Uses of memory in the order they are drawn, each with the name of its colour in page.css.
MEMORY_PAINTS = {"weights": "linear", "KV cache": "attention", "activations": "norm", "free": "free"}
#: A bar of the error chart ends here, whatever the error; its text says the error itself.
LONGEST_ERROR = 1.0


def time_by_class(joined: JoinedPhase) -> Figure:
    """A phase's seconds by class of operator: predicted, and below it measured."""
    from plotly.graph_objects import Figure

    bars = {"predicted": predicted_classes(joined)}
    if joined.check is not None:
        bars["measured"] = measured_classes(joined.check)
    figure = Figure()
    for name in classes_of(joined):
        took = [times.get(name, 0.0) for times in bars.values()]
        shares = [t / sum(times.values()) for t, times in zip(took, bars.values(), strict=True)]
        labels = [f"{name} {percent(share)}" for share in shares]
        hovers = [f"{name}, {bar}<br>{seconds(t)}" for bar, t in zip(bars, took, strict=True)]
        _add_part(figure, list(bars), took, class_paint(name), labels, hovers)
    figure.update_xaxes(tickformat="~s", ticksuffix="s", nticks=6)
    return _stacked(figure, 50 + 48 * len(bars))


def predicted_classes(joined: JoinedPhase) -> dict[str, float]:
    """Predicted seconds of a phase by class, with what the step takes beside its operators."""
    times = {name: float(t) for name, t in joined.phase.seconds_by_class.items()}
    return _with_rest(times, float(joined.phase.seconds))


def measured_classes(check: PhaseCheck) -> dict[str, float]:
    """Measured seconds by class. Operators are timed one by one, so that they can add up to more
    than the step took in one piece; then nothing is left between them."""
    times: dict[str, float] = {}
    for o in check.operators:
        name = op_class(o.kind)
        times[name] = times.get(name, 0.0) + o.measured
    return _with_rest(times, check.measured)


def classes_of(joined: JoinedPhase) -> list[str]:
    """The classes that the chart of this phase shows, in their order."""
    measured = {} if joined.check is None else measured_classes(joined.check)
    return in_order([*predicted_classes(joined), *measured])


def _with_rest(times: dict[str, float], total: float) -> dict[str, float]:
    rest = total - sum(times.values())
    return {**times, BETWEEN: rest} if rest > 1e-9 * total else times


def memory_by_use(memory: MemoryUse) -> Figure:
    """What is in use against the device's capacity, and below it the same magnified."""
    from plotly.subplots import make_subplots

    free = max(memory.device - memory.total, 0.0)
    uses = {"weights": memory.weights, "KV cache": memory.cache, "activations": memory.activations}
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.45)
    for row, bar, parts in ((1, "device", {**uses, "free": free}), (2, "in use", uses)):
        for name, size in parts.items():
            hover = f"{name}<br>{nbytes(size)}, {percent(size / memory.device)} of the device"
            label = f"{name} {nbytes(size)}"
            _add_part(figure, [bar], [size], MEMORY_PAINTS[name], [label], [hover], row=row, col=1)
    if not memory.fits:
        _mark_capacity(figure, memory.device)
    figure.update_xaxes(tickformat="~s", ticksuffix="B", nticks=6)
    _stacked(figure, 215)
    return figure.update_layout(margin_t=24)  # of which the capacity's label takes most


def _mark_capacity(figure: Figure, capacity: float) -> None:
    """A line across the device's bar where its memory ends."""
    figure.add_vline(capacity, row=1, col=1, line={"color": "var(--text)", "width": 2, "dash": "dash"})
    figure.add_annotation(
        x=capacity,
        y=1,
        xref="x",
        yref="y domain",
        xanchor="left",
        yanchor="bottom",
        text=f"capacity {nbytes(capacity)}",
        showarrow=False,
    )


def signed_errors(check: PhaseCheck) -> Figure:
    """A bar of every operator's signed error, below that of the whole step; the operator that
    takes longest comes first."""
    from plotly.graph_objects import Figure

    operators = sorted(check.operators, key=lambda o: o.measured, reverse=True)
    rows = [("whole step", check.error), *((o.name, o.error) for o in operators)]
    errors = [error for _, error in rows]
    figure = Figure()
    figure.add_bar(
        x=[max(min(error, LONGEST_ERROR), -LONGEST_ERROR) for error in errors],
        y=list(range(len(rows))),  # by number, as operators of two kinds of layer share their names
        orientation="h",
        marker={
            "color": phase_colour(check.name),
            "opacity": [1.0] + [0.6] * len(operators),
        },
        text=[signed_percent(error) for error in errors],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    names = [escape(name) for name, _ in rows]
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[f"<b>{names[0]}</b>", *names[1:]], showgrid=False
    )
    figure.update_yaxes(range=[len(rows) - 0.4, -0.6], zeroline=False)
    ticks = [-1.0, -0.5, 0.0, 0.5, 1.0]
    figure.update_xaxes(range=[-1.35, 1.35], tickvals=ticks, ticktext=[signed_percent(t) for t in ticks])
    figure.update_layout(bargap=0.3)
    return dress(figure, 60 + 24 * len(rows))


def _add_part(
    figure: Figure,
    bars: Sequence[str],
    sizes: Sequence[float],
    paint: str,
    labels: Sequence[str],
    hovers: Sequence[str],
    **place: int,
) -> None:
    """One part of every bar; its label shows where it fits."""
    figure.add_bar(
        y=bars,
        x=sizes,
        orientation="h",
        marker={"color": f"var(--{paint})", "line": {"color": "var(--panel)", "width": 1}},
        text=[escape(label) for label in labels],
        hovertext=list(hovers),
        hoverinfo="text",
        textposition="inside",
        insidetextfont={"color": f"var(--on-{paint})"},
        insidetextanchor="middle",
        textangle=0,
        **place,
    )


def _stacked(figure: Figure, height: int) -> Figure:
    figure.update_layout(barmode="stack", bargap=0.2, uniformtext={"minsize": 11, "mode": "hide"})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return dress(figure, height)
