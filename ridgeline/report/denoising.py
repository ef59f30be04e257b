"""What a diffusion Transformer would do on a device, on the terminal."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ridgeline.loading import FORMATS
from ridgeline.models import builtin_names, load_config
from ridgeline.report.tables import memory_line, operators, phases_table, sentence, stands_on, tiers_line
from ridgeline.report.units import count, seconds

if TYPE_CHECKING:
    from ridgeline.analysis.denoising import DenoisingExplanation, ImageWorkload


def show_denoising(console: Console, found: DenoisingExplanation, *, elements: bool = False) -> None:
    """A denoising step, its operators, whole images, memory, and what it all stands on."""
    load, (phase,) = found.workload, found.phases
    console.print(Text.assemble((found.model, "bold"), " on ", (found.device_title, "bold")))
    console.print(f"{count(found.parameters)} parameters in {found.weight_format}; {_workload(load)}")
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
    command = check_command(found)
    if command is not None:
        console.print(Text(f"Check it: {command}", style="dim"), soft_wrap=True)


def _workload(load: ImageWorkload) -> str:
    size = f"{load.width} x {load.height} pixels"
    what = f"{load.batch} x {load.frames} frames of {size}" if load.frames > 1 else f"{load.batch} x {size}"
    guided = ", guided (each twice)" if load.guidance else ""
    return f"{what}{f', {load.text} text tokens' if load.text else ''}{guided}"


def check_command(found: DenoisingExplanation) -> str | None:
    """The command line that runs the step and holds the prediction against it; None where `check` cannot."""
    if "kernels" not in found.basis or found.attention != "fused" or found.weight_format not in FORMATS:
        return None
    load, weights = found.workload, found.weight_format
    if found.model in builtin_names():
        weights = "random" if weights == load_config(found.model).format else f"random:{weights}"
    words = [found.model, "--weights", weights, "--image", f"{load.width}x{load.height}"]
    if load.frames > 1:
        words += ["--frames", load.frames]
    if load.text:
        words += ["--text", load.text]
    return shlex.join(["ridgeline", "check", *map(str, words), "--batch", str(load.sequences)])
