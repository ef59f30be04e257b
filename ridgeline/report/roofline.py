"""The roofline of a device with every operator on it.

Log-log, FLOP/s over FLOP/byte (Williams, Waterman and Patterson, 2009): memory carries at most
intensity x bandwidth, the units at most their rate, and the ridge is where the two meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10, sqrt
from typing import TYPE_CHECKING

from ridgeline.report.joined import JoinedPhase, Operator
from ridgeline.report.style import class_symbol, dress, phase_colour
from ridgeline.report.units import PREFIXES, count, percent, rate, seconds

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

    from ridgeline.hardware import Device

#: Diameter in pixels of an operator that takes no time, and what all of a phase's time adds.
LEAST_SIZE, MOST_SIZE = 8.0, 18.0
#: The device's own roofline, and whatever else limits.
THICK = {"color": "var(--roof)", "width": 2.5}
THIN = {"color": "var(--muted)", "width": 1, "dash": "dot"}


@dataclass(frozen=True)
class Window:
    """What the chart shows: the least and the most of FLOP/byte and of FLOP/s."""

    x: tuple[float, float]
    y: tuple[float, float]


def roofline(device: Device, dtype: str, phases: Sequence[JoinedPhase]) -> Figure:
    """The chart, with the compute roofs that ``dtype`` has on ``device``.

    Predicted points are hollow, measured ones filled, and a line joins the two of one operator.
    """
    from plotly.graph_objects import Figure

    window = _window(device, dtype, phases)
    figure = Figure()
    _draw_memory_roofs(figure, device, dtype, window)
    _draw_compute_roofs(figure, device, dtype, window)
    for joined in phases:
        _draw_operators(figure, joined)
    figure.update_xaxes(**_log_axis("intensity, FLOP/byte", window.x))
    figure.update_yaxes(**_log_axis("FLOP/s", window.y))
    return dress(figure, 500)


def _window(device: Device, dtype: str, phases: Sequence[JoinedPhase]) -> Window:
    operators = [o for joined in phases for o in joined.operators if o.computes]
    intensities = [o.intensity for o in operators]
    times = [t for o in operators for t in ((o.flops, o.predicted), (o.flops, o.measured)) if t[1]]
    rates = [flops / took for flops, took in times]
    x = (min([0.5, *intensities]) / 4, max([4 * device.ridge(dtype), *intensities]) * 2)
    y = (min([x[0] * device.bandwidth, *rates]) / 2, max([device.matrix_rate(dtype), *rates]) * 3)
    return Window(x, y)


def _log_axis(title: str, shown: tuple[float, float]) -> dict[str, object]:
    decades = range(ceil(log10(shown[0])), floor(log10(shown[1])) + 1)
    return {
        "type": "log",
        "title": {"text": title, "standoff": 8},
        "range": [log10(end) for end in shown],
        "tickvals": [10.0**n for n in decades],
        "ticktext": [_decade(n) for n in decades],
        "ticks": "outside",
        "tickcolor": "var(--line)",
        "showline": True,
    }


def _decade(power: int) -> str:
    """10^power with its prefix (plotly's own end at T)."""
    named = 0 <= power < 3 * len(PREFIXES)
    return f"{10 ** (power % 3)}{PREFIXES[power // 3]}" if named else f"{10.0**power:g}"


def _draw_memory_roofs(figure: Figure, device: Device, dtype: str, window: Window) -> None:
    """What each level of memory can feed, up to what the device can compute."""
    roof = device.matrix_rate(dtype)
    for level in device.levels:
        name, line = ("memory", THICK) if level is device.levels[-1] else ("cache", THIN)
        ends = (window.x[0], roof / level.bandwidth), (window.x[0] * level.bandwidth, roof)
        _line(figure, *ends, line)
        start = max(window.x[0], window.y[0] / level.bandwidth)
        text = f"{level.name} {rate(level.bandwidth, 'B')}"
        _label(figure, start, start * level.bandwidth, text, name=name, xanchor="left", yanchor="top")


def _draw_compute_roofs(figure: Figure, device: Device, dtype: str, window: Window) -> None:
    """The rate of matrix products and, where it is lower, of vector operations; and the ridge."""
    roof, vector, ridge = device.matrix_rate(dtype), device.vector_rate(dtype), device.ridge(dtype)
    fastest = max(level.bandwidth for level in device.levels)
    _line(figure, (roof / fastest, ridge), (roof, roof), THIN)
    _line(figure, (ridge, window.x[1]), (roof, roof), THICK)
    name = "matrix" if vector < roof else "compute"
    _label(figure, ridge, roof, f"{name} {rate(roof, 'FLOP')}", xanchor="right", yanchor="bottom")
    if vector < roof:
        start = vector / device.bandwidth
        _line(figure, (start, window.x[1]), (vector, vector), THIN)
        text = f"vector {rate(vector, 'FLOP')}"
        _label(figure, start, vector, text, name="vector", xanchor="right", yanchor="bottom")
    _line(figure, (ridge, ridge), (window.y[0], roof), THIN)
    _label(figure, ridge, window.y[0], f"ridge {count(ridge)} FLOP/byte", xanchor="center", yanchor="bottom")


def _line(figure: Figure, x: tuple[float, float], y: tuple[float, float], line: Mapping[str, object]) -> None:
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip")


def _label(figure: Figure, x: float, y: float, text: str, **place: str) -> None:
    figure.add_annotation(
        x=log10(x),
        y=log10(y),
        text=escape(text),
        showarrow=False,
        font={"color": "var(--muted)", "size": 12},
        bgcolor="var(--panel)",
        **place,
    )


def _draw_operators(figure: Figure, joined: JoinedPhase) -> None:
    """The predicted points, the measured ones, and the lines between them."""
    operators = [o for o in joined.operators if o.computes]
    colour = phase_colour(joined.phase.name)
    if joined.check is not None:
        _draw_gaps(figure, operators)
        figure.add_trace(_points(joined, operators, "measured", colour))
    figure.add_trace(_points(joined, operators, "predicted", colour))


def _draw_gaps(figure: Figure, operators: Sequence[Operator]) -> None:
    """A line from the prediction to the measurement of each operator."""
    x, y = [], []
    for o in operators:
        if o.measured:
            x += [o.intensity, o.intensity, None]
            y += [o.flops / o.predicted, o.flops / o.measured, None]
    line = {"color": "var(--muted)", "width": 1}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip")


def _points(joined: JoinedPhase, operators: Sequence[Operator], reading: str, colour: str) -> Scatter:
    """One trace: ``reading`` is ``predicted`` (hollow) or ``measured`` (filled)."""
    from plotly.graph_objects import Scatter

    shown = [(o, getattr(o, reading)) for o in operators if getattr(o, reading)]
    total = sum(took for _, took in shown)
    hollow = "-open" if reading == "predicted" else ""
    return Scatter(
        name=f"{joined.phase.name}, {reading}",
        x=[o.intensity for o, _ in shown],
        y=[o.flops / took for o, took in shown],
        mode="markers",
        marker={
            "symbol": [class_symbol(o.op_class) + hollow for o, _ in shown],
            "size": [LEAST_SIZE + MOST_SIZE * sqrt(took / total) for _, took in shown],
            "color": colour,
            "line": {"width": 2 if hollow else 0, "color": colour},
            "opacity": 1 if hollow else 0.75,
        },
        customdata=[o.name for o, _ in shown],
        hovertext=[_hover(joined, o, reading, took, took / total) for o, took in shown],
        hoverinfo="text",
    )


def _hover(joined: JoinedPhase, o: Operator, reading: str, took: float, share: float) -> str:
    return "<br>".join(
        (
            f"<b>{escape(o.name)}</b> ({escape(o.op_class)}), {joined.phase.name}, {reading}",
            f"{count(o.intensity)} FLOP/byte, {rate(o.flops / took, 'FLOP')}",
            f"{seconds(took)}, {percent(share)} of the phase; {o.calls} calls",
            f"predicted bound: {o.bound}",
        )
    )
