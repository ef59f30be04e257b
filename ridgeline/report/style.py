"""What the page's charts have in common: names, colours and symbols of what is drawn.

A colour is a variable of page.css, which has a light and a dark value for each; page.js puts in
the value that holds when it draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: Classes of operators in the order they are drawn, each with plotly's name of its symbol.
CLASS_SYMBOLS = {
    "linear": "circle",
    "attention": "diamond",
    "norm": "square",
    "elementwise": "triangle-up",
    "embedding": "triangle-down",
}
#: Time of a step that no operator takes: making the batch, calls between operators.
BETWEEN = "between operators"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"


def in_order(classes: Iterable[str]) -> list[str]:
    """Each class once: the known ones as they are drawn, then the others."""
    present = set(classes)
    known = [name for name in CLASS_SYMBOLS if name in present]
    return known + sorted(present.difference(known))


def class_paint(op_class: str) -> str:
    """The name of a class's colour in page.css: ``var(--name)``, and ``var(--on-name)`` upon it."""
    return op_class if op_class in CLASS_SYMBOLS else "other"


def class_symbol(op_class: str) -> str:
    return CLASS_SYMBOLS.get(op_class, "cross")


def phase_colour(phase: str) -> str:
    return "var(--decode)" if phase == "decode" else "var(--prefill)"


def dress(figure: Figure, height: int, **layout: Any) -> Figure:
    """The layout of every chart: no background of its own, the page's font, no dragging, so that
    a finger scrolls the page."""
    figure.update_layout(
        template=None,
        height=height,
        autosize=True,
        showlegend=False,
        dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": "var(--text)"},
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        hoverlabel={
            "bgcolor": "var(--panel)",
            "bordercolor": "var(--line)",
            "font": {"color": "var(--text)"},
        },
        **layout,
    )
    axis = {"gridcolor": "var(--grid)", "linecolor": "var(--line)", "zerolinecolor": "var(--line)"}
    figure.update_xaxes(automargin=True, **axis)
    figure.update_yaxes(automargin=True, **axis)
    return figure


def log_axis(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis over ``values`` with labels that do not crowd: powers of ten, over few of them with
    their double and fivefold."""
    positive = [v for v in values if v > 0]
    if not positive:
        return {"type": "log"}
    low, high = floor(log10(min(positive))), ceil(log10(max(positive)))
    decades = high - low
    steps = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,)
    every = max(1, round(decades / 6))
    marks = [step * 10.0**n for n in range(low, high + 1, every) for step in steps]
    near = [m for m in marks if 0.9 * min(positive) <= m <= 1.1 * max(positive)]
    return {"type": "log", "tickvals": near if len(near) > 1 else marks, "tickformat": "~s"}
