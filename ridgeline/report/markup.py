"""Pieces of HTML. Whatever text comes in is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: The symbols of the charts as shapes in a box of 16 x 16, under plotly's names.
SHAPES = {
    "circle": '<circle cx="8" cy="8" r="5"/>',
    "diamond": '<path d="M8 2 14 8 8 14 2 8Z"/>',
    "square": '<path d="M3 3H13V13H3Z"/>',
    "triangle-up": '<path d="M8 2 14 13H2Z"/>',
    "triangle-down": '<path d="M8 14 2 3H14Z"/>',
    "cross": '<path d="M6 2h4v4h4v4h-4v4H6v-4H2V6h4Z"/>',
}


@dataclass(frozen=True)
class Card:
    """A figure that matters, large, with what it is above it and notes below."""

    label: str
    value: str
    unit: str
    notes: tuple[str, ...]
    basis: str = ""


def section(anchor: str, title: str, *parts: str) -> str:
    """A section with its heading; ``parts`` are HTML."""
    body = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(title)}</h2>\n{body}\n</section>'


def heading(title: str, *sentences: str) -> str:
    """The top of the page."""
    return f"<header><h1>{escape(title)}</h1>{''.join(map(paragraph, sentences))}</header>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def cards(shown: Iterable[Card]) -> str:
    items = []
    for card in shown:
        notes = "".join(f"<dd>{escape(note)}</dd>" for note in card.notes)
        items.append(
            f'<div><dt>{escape(card.label)}</dt><dd class="value">{based(card.value, card.basis)} '
            f"<small>{escape(card.unit)}</small></dd>{notes}</div>"
        )
    return f'<dl class="cards">{"".join(items)}</dl>'


def bullets(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def preformatted(text: str) -> str:
    return f'<pre tabindex="0">{escape(text)}</pre>'


def command(line: str) -> str:
    """A command line to type."""
    return f'<pre class="command">$ {escape(line)}</pre>'


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], layout: str) -> str:
    """A table whose first column heads its rows. ``layout`` has a letter for each column: ``l`` is
    text, set left, ``r`` a number, set right, ``c`` a command line or nothing."""
    align = [' class="number"' if letter == "r" else "" for letter in layout]
    head = "".join(f'<th scope="col"{a}>{escape(c)}</th>' for a, c in zip(align, columns, strict=True))
    body = []
    for row in rows:
        first, *others = (_cell(letter, text) for letter, text in zip(layout, row, strict=True))
        cells = "".join(f"<td{a}>{cell}</td>" for a, cell in zip(align[1:], others, strict=True))
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(letter: str, text: str) -> str:
    return f"<code>{escape(text)}</code>" if letter == "c" and text else escape(text)


@dataclass(frozen=True)
class Tab:
    """A part of the page that shows alone; ``body`` is HTML."""

    anchor: str
    title: str
    body: str


def tabbed(tabs: Sequence[Tab]) -> str:
    """The tabs' titles, and below them their parts, of which page.js shows one at a time."""
    titles = "".join(
        f'<button type="button" role="tab" id="tab-{t.anchor}" aria-controls="panel-{t.anchor}" '
        f'data-panel="{t.anchor}" aria-selected="false">{escape(t.title)}</button>'
        for t in tabs
    )
    panels = "\n".join(
        f'<div role="tabpanel" id="panel-{t.anchor}" aria-labelledby="tab-{t.anchor}">{t.body}</div>'
        for t in tabs
    )
    return f'<div role="tablist" aria-label="Parts of the report">{titles}</div>\n{panels}'


@dataclass(frozen=True)
class Cell:
    """What a cell of a sortable table says, the number that it is sorted by, and what it stands on."""

    text: str
    value: float | None = None
    basis: str = ""


def sortable(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], layout: str) -> str:
    """A table like :func:`table` that the reader sorts by clicking on a column's head."""
    align = [' class="number"' if letter == "r" else "" for letter in layout]
    head = "".join(
        f'<th scope="col"{a}><button type="button">{escape(c)}</button></th>'
        for a, c in zip(align, columns, strict=True)
    )
    body = []
    for row in rows:
        cells = []
        for i, (a, cell) in enumerate(zip(align, row, strict=True)):
            tag, scope = ("td", "") if i else ("th", ' scope="row"')
            value = "" if cell.value is None else f' data-value="{cell.value:.6g}"'
            cells.append(f"<{tag}{scope}{a}{value}>{based(cell.text, cell.basis)}</{tag}>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}">'
        f'<table class="sortable"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def based(text: str, basis: str) -> str:
    """Text that shows what it stands on when the reader points at it or reaches it by key."""
    if not basis:
        return escape(text)
    return f'<span tabindex="0" data-basis="{escape(basis)}">{escape(text)}</span>'


def folded(summary: str, *parts: str) -> str:
    """Parts that show when the reader opens them."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def chart(name: str, says: str, drawn: Figure, above: str = "", *, caption: str = "") -> str:
    """A chart that page.js draws into its place; ``says`` is what it shows, for who cannot see it.
    ``above`` is HTML."""
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure>{said}{above}<div class="chart" id="{name}" role="img" aria-label="{escape(says)}" '
        f'style="height:{drawn.layout.height}px"></div>'
        f'<script type="application/json" data-chart="{name}">{drawn.to_json()}</script></figure>'
    )


def side_by_side(*parts: str) -> str:
    """Parts beside each other where there is room."""
    return f'<div class="pair">{"".join(parts)}</div>'


def key(entries: Iterable[tuple[str, str]]) -> str:
    """The key of a chart: pairs of a glyph's HTML and what it stands for."""
    items = "".join(f"<li>{glyph}{escape(label)}</li>" for glyph, label in entries)
    return f'<ul class="key">{items}</ul>'


def symbol(name: str, colour: str, *, hollow: bool = False) -> str:
    """A chart's symbol, by plotly's name of it."""
    paint = f"fill:none;stroke:{colour};stroke-width:2" if hollow else f"fill:{colour}"
    return f'<svg viewBox="0 0 16 16" aria-hidden="true" style="{paint}">{SHAPES[name]}</svg>'
