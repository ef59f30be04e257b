"""A chart as a file of its own: a page that needs nothing beside it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from ridgeline.errors import InputError
from ridgeline.report.style import FONT

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: Colours that are told apart by people who see few of them (Okabe and Ito, 2008), on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D00")
SUFFIXES = (".html", ".png", ".svg", ".pdf")


def chart(figure: Figure, title: str) -> Figure:
    """The look of a chart that stands alone: its legend is below it, where a phone has room."""
    lines = title if "<" in title else "<br>".join(wrap(title, 38))
    figure.update_layout(
        template="plotly_white",
        title={"text": lines, "font": {"size": 16}, "x": 0.02, "xanchor": "left"},
        font={"family": FONT, "size": 13},
        margin={"l": 8, "r": 24, "t": 50 + 22 * lines.count("<br>")},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def write_chart(figure: Figure, path: str | Path) -> Path:
    """Write the chart as the suffix says: a page that loads nothing, or a picture, for which plotly needs the
    package kaleido and a browser.

    Raises InputError for another suffix, for a picture that cannot be made, and for a path that cannot be
    written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"cannot tell what kind of chart {path} is to be: end it in {', '.join(SUFFIXES)}")
    try:
        if path.suffix.lower() == ".html":
            page = figure.to_html(include_plotlyjs=True, config={"displaylogo": False, "responsive": True})
            said = (figure.layout.title.text or "").replace("<br>", " ")
            title = escape(said + " - Ridgeline")
            page = page.replace("<head>", f'<head><title>{title}</title><meta name="viewport" '
                                'content="width=device-width, initial-scale=1">', 1)  # fmt: skip
            path.write_text(page, encoding="utf-8")
        else:
            figure.write_image(path, width=1000, height=figure.layout.height or 600, scale=2)
    except OSError as error:
        raise InputError(f"cannot write the chart to {path}: {error.strerror}") from None
    except (ValueError, RuntimeError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"cannot make {path}: {first} (a picture needs `pip install kaleido` and Chromium; a .html needs "
            "neither)"
        ) from None
    return path
