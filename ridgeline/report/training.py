"""A training step on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.report.tables import plain_table, stands_on
from ridgeline.report.units import BOUNDS, count, nbytes, seconds

if TYPE_CHECKING:
    from ridgeline.analysis.training import Training
    from ridgeline.analysis.training_step import TrainingMemory


def show_training(console: Console, found: Training) -> None:
    """Phases, utilisation, memory, and what other recomputation would give."""
    load, recipe = found.workload, found.recipe
    console.print(Text.assemble("Training ", (found.model, "bold"), " on ", (found.device_title, "bold")))
    several = "" if load.devices == 1 else f" on each of {load.devices:,} devices, ZeRO {recipe.zero}"
    stash = "" if recipe.stash is None else f", activations kept in {recipe.stash}"
    console.print(
        f"{count(found.parameters)} parameters, {load.batch:,} x {load.length:,} tokens{several}; "
        f"{recipe.optimizer}, {recipe.precision} precision, {recipe.kernels} kernels, "
        f"recompute {recipe.recompute}{stash}"
    )
    console.print()
    console.print(_phases(found))
    console.print(_throughput(found))
    if found.communication_seconds:
        sent, took = nbytes(found.communication_bytes), seconds(found.communication_seconds)
        console.print(f"Each device sends {sent} a step, which takes {took}.")
    console.print(_memory(found.memory))
    console.print(f"{found.largest_batch:,} sequences a device fit.")
    console.print()
    console.print(_policies(found))
    console.print(f"[dim]Stands on: {stands_on(found.basis)}.[/dim]")
    for said in found.assumptions:
        console.print(f"[dim]Assumed: {said}.[/dim]")


def _phases(found: Training) -> Table:
    table = plain_table("phase", "time", "share", "FLOPs", "bytes", "bound by", left=(0, 5))
    total = sum(p.seconds for p in found.phases)
    for p in found.phases:
        bound = max(p.seconds_by_bound, key=lambda name: p.seconds_by_bound[name])
        share = f"{p.seconds / total:.1%}"
        table.add_row(p.name, seconds(p.seconds), share, count(p.flops.total), nbytes(p.bytes), BOUNDS[bound])
    return table


def _throughput(found: Training) -> str:
    return (
        f"A step takes {seconds(found.seconds)}: {found.tokens_per_second:,.0f} tokens/s, "
        f"MFU {found.mfu:.1%}, HFU {found.hfu:.1%} ({found.pairs} pairs)."
    )


def _memory(memory: TrainingMemory) -> Text:
    parts = ("weights", "gradients", "states", "activations")
    uses = " + ".join(f"{name} {nbytes(getattr(memory, name))}" for name in parts)
    line = Text(f"Memory: {uses} = {nbytes(memory.total)} of {nbytes(memory.device)}; ")
    if memory.fits:
        return line.append("fits.")
    return line.append(f"does not fit, {memory.total / memory.device:.1f} times the device.", style="red")


def _policies(found: Training) -> Table:
    table = plain_table("recompute", "activations", "memory", "fits", "time", "MFU", "HFU", left=(0, 3))
    for p in found.policies:
        table.add_row(
            p.recompute,
            nbytes(p.activations),
            nbytes(p.total),
            "yes" if p.fits else "no",
            seconds(p.seconds),
            f"{p.mfu:.1%}",
            f"{p.hfu:.1%}",
        )
    return table
