"""Layouts of a model on several devices, on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.report.tables import plain_table, stands_on
from ridgeline.report.units import BOUNDS, count, nbytes, percent, seconds

if TYPE_CHECKING:
    from ridgeline.analysis.layout_search import Figures
    from ridgeline.analysis.parallel import BestLayout, Parallel

#: Layouts shown beside the best one.
SHOWN = 5
WORDS = {**BOUNDS, "link": "exchanges between devices"}


def show_layout(console: Console, found: Parallel) -> None:
    """One layout: its figures, what bounds it, and what its ranks exchange."""
    load = found.workload
    console.print(
        Text.assemble((found.model, "bold"), " on ", (f"{found.figures.devices} x {found.device}", "bold"))
    )
    console.print(
        f"{count(found.parameters)} parameters in {found.weight_format}, cache in {found.cache_format}; "
        f"nodes of {found.per_node}; "
        f"{load.batch:,} x {load.prompt:,} prompt tokens, {load.output:,} new each"
    )
    console.print()
    console.print(_figures([found.figures]))
    _say_why(console, found)
    console.print()
    console.print(_exchanges(found))
    console.print()
    console.print(f"[dim]Figures of the device and its links: {stands_on(found.basis)}.[/dim]")
    for line in found.assumptions:
        console.print(f"[dim]Assumed: {line}.[/dim]")


def show_searches(console: Console, found: Sequence[BestLayout]) -> None:
    """Searches for one or several numbers of devices: the best layouts, those behind, and why not others."""
    if len(found) > 1:
        _show_overview(console, found)
        return
    (one,) = found
    if one.best is not None:
        show_layout(console, one.best)
        console.print()
        others = one.search.candidates[1 : SHOWN + 1]
        if others:
            console.print(f"Behind it, of {one.search.held} layouts that hold all limits:")
            console.print(_figures(others))
    _show_dropped(console, one)


def _show_overview(console: Console, found: Sequence[BestLayout]) -> None:
    table = plain_table(
        "devices", "best layout", "requests", "TTFT", "TPOT", "tokens/s", "a device", "exchanging"
    )
    for one in found:
        if one.best is None:
            table.add_row(f"{one.devices:,}", "none holds", *[""] * 6)
            continue
        figures = one.best.figures
        exchanging = figures.decode_communication
        table.add_row(
            f"{one.devices:,}",
            str(figures.layout),
            f"{figures.batch:,}",
            seconds(figures.ttft_seconds),
            "" if figures.tpot_seconds is None else seconds(figures.tpot_seconds),
            f"{figures.tokens_per_second:,.1f}",
            f"{figures.tokens_per_second_per_device:,.1f}",
            percent(figures.prefill_communication if exchanging is None else exchanging),
        )
    console.print(f"Best {found[0].goal} of each number of devices:")
    console.print(table)
    for one in found:
        _show_dropped(console, one)


def _show_dropped(console: Console, one: BestLayout) -> None:
    search = one.search
    for dropped in search.dropped:
        console.print(
            f"{one.devices:,} devices: {dropped.count} of {search.considered} layouts dropped, "
            f"{dropped.reason}; closest was {dropped.closest}"
        )


def _say_why(console: Console, found: Parallel) -> None:
    total = sum(found.by_bound.values())
    largest = max(found.by_bound, key=found.by_bound.get)
    phase = "prefill" if found.figures.tpot_seconds is None else "decode step"
    shares = ", ".join(
        f"{name} {percent(part / total)}"
        for name, part in sorted(found.by_class.items(), key=lambda item: -item[1])
    )
    console.print(
        f"What bounds a {phase}: {WORDS[largest]}, {percent(found.by_bound[largest] / total)} of its time "
        f"({shares})."
    )
    figures = found.figures
    console.print(
        f"The fullest device holds {nbytes(figures.weights)} of weights, {nbytes(figures.cache)} of cache "
        f"and {nbytes(figures.activations)} of activations, of {nbytes(figures.memory_limit)}."
    )
    if figures.layout.pipeline > 1:
        console.print(f"The stages wait {percent(figures.bubble)} of the prefill's time: the bubble.")
    if not figures.fits:
        console.print(
            Text(
                f"Does not fit: {nbytes(figures.memory)} of {nbytes(figures.memory_limit)} a device.",
                style="bold red",
            )
        )


def _figures(layouts: Iterable[Figures]) -> Table:
    table = plain_table("layout", "requests", "TTFT", "TPOT", "a request", "tokens/s", "memory", "exchanging")
    for f in layouts:
        shares = (f.prefill_communication, f.decode_communication)
        table.add_row(
            str(f.layout),
            f"{f.batch:,}",
            seconds(f.ttft_seconds),
            "" if f.tpot_seconds is None else seconds(f.tpot_seconds),
            seconds(f.total_seconds),
            f"{f.tokens_per_second:,.1f}",
            nbytes(f.memory),
            ", ".join(percent(share) for share in shares if share is not None),
        )
    return table


def _exchanges(found: Parallel) -> Table:
    table = plain_table("phase", "exchange", "along", "how", "size", "times", "time", left=(0, 1, 2, 3))
    for e in found.exchanges:
        table.add_row(
            e.phase,
            f"{e.name}: {e.collective}",
            e.axis,
            e.algorithm,
            nbytes(e.bytes),
            f"{e.times:,}",
            seconds(e.seconds),
        )
    return table
