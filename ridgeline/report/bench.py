"""What ``ridgeline bench`` found, as a table, as CSV, or as JSON."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, TextIO

from ridgeline.hardware.fingerprint import Fingerprint
from ridgeline.report.plain import to_json
from ridgeline.report.units import count

if TYPE_CHECKING:
    from ridgeline.analysis.bench import Bench, BenchResult

#: The columns of CSV, after which come the machine's.
COLUMNS = (
    *("model", "format", "parameters", "test", "tokens", "depth", "batch"),
    *("tokens_per_second", "deviation", "ms_per_token", "predicted_tokens_per_second"),
)


def write_table(found: Bench, stream: TextIO) -> None:
    """A line a test, in columns for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    machine = found.machine
    size = f"{count(found.parameters)} parameters in {found.format}"
    threads = f"{machine.threads} {'thread' if machine.threads == 1 else 'threads'}"
    computed = machine.gpu or f"{threads} of {machine.cpu}"
    console.print(Text.assemble((found.model, "bold"), f", {size}; {computed}"))
    table = Table(box=None, header_style="bold", pad_edge=False)
    predicts = any(r.predicted is not None for r in found.results)
    columns = ["test", "batch", "tokens/s", "±", "ms/token"] + ["predicted", "error"] * predicts
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for result in found.results:
        table.add_row(*_cells(result), *(_prediction(result) if predicts else ()))
    console.print(table)
    repetitions = len(found.results[0].seconds)
    console.print(
        f"[dim]Tokens of all sequences a second, mean and standard deviation of {repetitions} repetitions; "
        "ms/token is what one sequence waits for each of its tokens.[/dim]"
    )


def write_csv(found: Bench, stream: TextIO) -> None:
    """A line a test, each with the machine's fingerprint."""
    machine = asdict(found.machine)
    writer = csv.DictWriter(stream, (*COLUMNS, *(f.name for f in fields(Fingerprint))), lineterminator="\n")
    writer.writeheader()
    for result in found.results:
        test = result.test
        writer.writerow(
            {
                "model": found.model,
                "format": found.format,
                "parameters": found.parameters,
                "test": test.name,
                "tokens": test.tokens,
                "depth": test.depth,
                "batch": test.batch,
                "tokens_per_second": f"{result.tokens_per_second:.3f}",
                "deviation": f"{result.deviation:.3f}",
                "ms_per_token": f"{result.milliseconds_per_token:.5f}",
                "predicted_tokens_per_second": _plain(result.predicted_tokens_per_second),
                **machine,
            }
        )


def write_json(found: Bench, stream: TextIO) -> None:
    """Everything, the seconds of every repetition included."""
    stream.write(to_json(found) + "\n")


#: The forms a result can be written in, by name.
WRITERS: Mapping[str, Callable[[Bench, TextIO], None]] = {
    "table": write_table,
    "csv": write_csv,
    "json": write_json,
}


def _cells(result: BenchResult) -> tuple[str, ...]:
    return (
        result.test.name,
        str(result.test.batch),
        f"{result.tokens_per_second:,.1f}",
        f"{result.deviation:,.1f}",
        f"{result.milliseconds_per_token:,.3f}",
    )


def _prediction(result: BenchResult) -> tuple[str, str]:
    predicted = result.predicted_tokens_per_second
    if predicted is None:
        return "-", "-"
    return f"{predicted:,.1f}", f"{result.tokens_per_second / predicted - 1:+.1%}"


def _plain(number: float | None) -> str:
    return "" if number is None else f"{number:.3f}"
