"""What techniques of decoding gain, as tables and as one page of charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.report.standalone import PALETTE, chart
from ridgeline.report.style import log_axis
from ridgeline.report.units import count, nbytes, percent, seconds

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ridgeline.analysis.decoding import BatchPoint, Decoding


def show_decoding(console: Console, found: Decoding) -> None:
    """A table for each technique."""
    console.print(
        Text.assemble((found.model, "bold"), " on ", (found.device_title, "bold"))
        + f": {found.prompt:,} tokens of prompt, {found.output:,} of output"
    )
    for title, headers, rows in _tables(found):
        console.print()
        console.print(f"[italic]{title}[/italic]")
        table = Table(box=None, header_style="bold", pad_edge=False)
        for header in headers:
            table.add_column(header, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _tables(found: Decoding) -> Iterable[tuple[str, Sequence[str], list[Sequence[str]]]]:
    yield (
        "Without a KV cache every token computes the whole sequence again",
        ("output", "with cache", "without", "gain"),
        [
            (
                count(p.output),
                seconds(p.cached_seconds),
                seconds(p.uncached_seconds),
                f"{p.uncached_seconds / p.cached_seconds:.2f}x",
            )
            for p in found.cache
        ],
    )
    yield (
        "A batch shares what is read of the weights",
        ("batch", "step", "tokens/s", ""),
        [
            (
                count(p.batch),
                seconds(p.step_seconds),
                count(p.tokens_per_second),
                _memory(p),
            )
            for p in found.batches
        ],
    )
    yield "Speculation: the best draft length and its gain", *_speculation(found)
    if found.offloading:
        yield (
            "Weights that memory lacks are read from storage at every pass",
            ("lacking", "read", "a token", "with speculation"),
            [
                (
                    percent(p.lacking),
                    nbytes(p.streamed_bytes),
                    seconds(p.tpot_seconds),
                    seconds(p.speculative_tpot_seconds),
                )
                for p in found.offloading
            ],
        )
    yield (
        "Fewer bits are read sooner",
        ("weights", "bits", "a token", "weights take"),
        [
            (p.weights, f"{p.bits:.3g}", seconds(p.tpot_seconds), nbytes(p.weight_bytes))
            for p in found.formats
        ],
    )
    if found.contexts:
        from ridgeline.analysis.decoding import SINKS, WINDOW

        yield (
            f"Long contexts: all tokens, or the first {SINKS} and the last {WINDOW:,} (another function)",
            ("context", "a token", "cache", "streaming", "cache"),
            [
                (
                    count(p.context),
                    seconds(p.full_seconds),
                    nbytes(p.full_bytes),
                    seconds(p.streaming_seconds),
                    nbytes(p.streaming_bytes),
                )
                for p in found.contexts
            ],
        )


def _memory(point: BatchPoint) -> str:
    if not point.fits:
        return "does not fit"
    return f"reads {nbytes(point.streamed_bytes)} from storage" if point.streamed_bytes else ""


def _speculation(found: Decoding) -> tuple[Sequence[str], list[Sequence[str]]]:
    """A row for each acceptance, a column for each cost of a draft."""
    costs = list(dict.fromkeys(p.cost for p in found.speculation))
    headers = ("accepted", *(f"draft at {cost:.0%}" if cost else "free draft" for cost in costs))
    rows: dict[float, list[str]] = {}
    for p in found.speculation:
        cell = f"{p.tokens}: {p.gain:.2f}x" if p.tokens else "-"
        rows.setdefault(p.acceptance, [f"{p.acceptance:.0%}"]).append(cell)
    return headers, list(rows.values())


def draw_decoding(found: Decoding) -> Figure:
    """One chart for each technique, one below the other, for narrow screens too."""
    from plotly.subplots import make_subplots

    titles = ["KV cache", "batch", "speculation, best draft length", "formats"]
    titles += ["context"] * bool(found.contexts) + ["offloading"] * bool(found.offloading)
    rows = len(titles)
    figure = make_subplots(rows=rows, cols=1, subplot_titles=titles, vertical_spacing=0.3 / rows)

    def line(place: int, x: list, y: list, name: str, colour: int, **options) -> None:
        figure.add_scatter(
            x=x, y=y, name=name, mode="lines+markers", line={"color": PALETTE[colour]}, **options,
            row=place + 1, col=1,
        )  # fmt: skip

    outputs = [p.output for p in found.cache]
    line(0, outputs, [p.cached_seconds for p in found.cache], "with cache", 0)
    line(0, outputs, [p.uncached_seconds for p in found.cache], "without", 1)
    held = [p for p in found.batches if p.fits]
    steps = [1e3 * p.step_seconds for p in held]
    named = [f"batch {p.batch}" for p in held]
    line(1, steps, [p.tokens_per_second for p in held], "batches", 2, text=named)
    for i, cost in enumerate(dict.fromkeys(p.cost for p in found.speculation)):
        points = [p for p in found.speculation if p.cost == cost]
        gains = [p.gain for p in points]
        texts = [f"{p.tokens} tokens" for p in points]
        line(2, [p.acceptance for p in points], gains, f"draft at {cost:.0%}", 3 + i, text=texts)
    bits = [p.bits for p in found.formats]
    times = [1e3 * p.tpot_seconds for p in found.formats]
    line(3, bits, times, "bits of a weight", 0, text=[p.weights for p in found.formats])
    if found.contexts:
        contexts, place = [p.context for p in found.contexts], titles.index("context")
        line(place, contexts, [1e3 * p.full_seconds for p in found.contexts], "all tokens", 0)
        line(place, contexts, [1e3 * p.streaming_seconds for p in found.contexts], "streaming", 1)
    if found.offloading:
        lacking, place = [p.lacking for p in found.offloading], titles.index("offloading")
        line(place, lacking, [p.tpot_seconds for p in found.offloading], "from storage", 0)
        line(place, lacking, [p.speculative_tpot_seconds for p in found.offloading], "with speculation", 1)
    axes = [
        ("output tokens", "seconds"),
        ("ms a step", "tokens/s"),
        ("acceptance", "gain"),
        ("bits", "ms a token"),
        *[("context", "ms a token")] * bool(found.contexts),
        *[("share of the weights", "seconds a token")] * bool(found.offloading),
    ]
    for place, (x, y) in enumerate(axes):
        along, up = {}, {}
        if x == "output tokens":
            along = log_axis(outputs)
            up = log_axis(t for p in found.cache for t in (p.cached_seconds, p.uncached_seconds))
        elif x == "context":
            along = log_axis(p.context for p in found.contexts)
        figure.update_xaxes(title=x, **along, row=place + 1, col=1)
        figure.update_yaxes(title=y, **up, row=place + 1, col=1)
    figure.update_layout(height=330 * rows + 120)
    return chart(figure, f"Decoding {found.model} on {found.device}")
