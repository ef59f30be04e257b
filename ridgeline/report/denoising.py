"""What a diffusion Transformer would do on a device, on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ridgeline.report.images import check_denoising_command, images
from ridgeline.report.tables import memory_line, operators, phases_table, sentence, stands_on, tiers_line
from ridgeline.report.units import count, seconds

if TYPE_CHECKING:
    from ridgeline.analysis.denoising import DenoisingExplanation


def show_denoising(console: Console, found: DenoisingExplanation, *, elements: bool = False) -> None:
    """A denoising step, its operators, whole images, memory, and what it all stands on."""
    load, (phase,) = found.workload, found.phases
    console.print(Text.assemble((found.model, "bold"), " on ", (found.device_title, "bold")))
    console.print(f"{count(found.parameters)} parameters in {found.weight_format}; {images(load)}")
    console.print()
    console.print(phases_table(found.phases, elements))
    thing = "video" if load.frames > 1 else "image"
    console.print(
        f"Each {thing} takes {load.steps} steps; a batch of {load.batch} is done in "
        f"{seconds(found.image.seconds)}, {found.image.images_per_second:,.3g} {thing}s/s."
    )
    console.print(
        f"One {thing} once through the model: {count(found.image.multiply_adds)} multiply-adds, "
        'which papers print as "FLOPs".'
    )
    console.print()
    console.print(operators(phase, elements))
    console.print(sentence(phase))
    if len(phase.seconds_by_tier) > 1:
        console.print(tiers_line(phase, found.tier))
    console.print()
    ridge = f"The ridge point is {found.ridge:,.0f} FLOP/byte in {found.product_format}"
    console.print(f"{ridge}: below it memory binds, above it arithmetic.")
    console.print(memory_line(found.memory))
    console.print(f"[dim]Stands on: {stands_on(found.basis)}.[/dim]")
    for said in found.assumptions:
        console.print(f"[dim]Assumed: {said}.[/dim]")
    command = check_denoising_command(found)
    if command is not None:
        console.print(Text(f"Check it: {command}", style="dim"), soft_wrap=True)
