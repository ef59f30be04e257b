"""Advice on the terminal, and beside it what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.report.units import BOUNDS, count, nbytes, seconds, signed_percent

if TYPE_CHECKING:
    from ridgeline.analysis.advice import Advice, Outcome
    from ridgeline.analysis.advice.verify import Trial


def show_advice(console: Console, found: Advice) -> None:
    """What bounds the workload, what serves it already, and the techniques by their gain."""
    console.print(
        Text.assemble((found.model, "bold"), " on ", (found.device_title, "bold"), f", for {found.goal}")
    )
    tokens = f"{found.prompt:,} + {found.output:,} tokens" if found.output else f"{found.prompt:,} tokens"
    console.print(f"{found.batch:,} x {tokens}: {_state(found.now)}")
    bound = BOUNDS.get(found.now.bound, found.now.bound)
    console.print(f"Most of the time goes to {bound}.")
    if found.in_use:
        served = "; ".join(f"{u.technique} {u.gain:.2f}x" for u in found.in_use)
        console.print(f"In use already, with what each gains: {served}.")
    console.print()
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for header in ("gain", "technique", "then", "memory", "answers", "assumes"):
        table.add_column(header, justify="right" if header in ("gain", "memory") else "left", overflow="fold")
    for s in found.suggestions:
        gain = f"{s.gain:.2f}x" if s.outcome.fits else "-"
        more = f"{'-' if s.memory_bytes < 0 else '+'}{nbytes(abs(s.memory_bytes))}"
        table.add_row(gain, s.technique, _short(found.goal, s.outcome), more, s.quality, s.assumption)
    console.print(table)
    useful = [s for s in found.suggestions if s.gain > 1.02 and s.outcome.fits]
    if useful:
        console.print("\nTo try:")
        for command in dict.fromkeys(s.command for s in useful):
            console.print(f"  {command}", soft_wrap=True)
    for reason in found.refused:
        console.print(f"[dim]Left out: {reason}.[/dim]")


def _state(outcome: Outcome) -> str:
    parts = [f"first token after {seconds(outcome.ttft_seconds)}"]
    if outcome.tpot_seconds is not None:
        parts.append(f"{seconds(outcome.tpot_seconds)} a token")
    parts.append(f"{seconds(outcome.total_seconds)} in all, {count(outcome.tokens_per_second)} tokens/s")
    parts.append(nbytes(outcome.memory_bytes))
    if not outcome.fits:
        parts[-1] += ", which do not fit: the times are those of a device that held them"
    elif outcome.streamed_bytes:
        parts[-1] += f", of which {nbytes(outcome.streamed_bytes)} are read from storage at every pass"
    return ", ".join(parts)


def _short(goal: str, outcome: Outcome) -> str:
    if not outcome.fits:
        return "does not fit"
    if goal == "memory":
        return nbytes(outcome.memory_bytes)
    if goal == "latency":
        return seconds(outcome.total_seconds)
    return f"{count(outcome.tokens_per_second)} tokens/s"


def show_trials(console: Console, trials: Sequence[Trial]) -> None:
    """Predicted and measured gains side by side."""
    console.print("\nOn this machine:")
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for header in ("technique", "predicted", "measured", "difference", ""):
        table.add_column(header, justify="left" if header in ("technique", "") else "right", overflow="fold")
    for trial in trials:
        if trial.measured is not None:
            off = signed_percent(trial.measured / trial.predicted - 1)
            table.add_row(
                trial.technique, f"{trial.predicted:.2f}x", f"{trial.measured:.2f}x", off, trial.observed
            )
    console.print(table)
    for trial in trials:
        if trial.measured is None:
            console.print(f"[dim]Not tried: {trial.technique}: {trial.skipped}.[/dim]")
