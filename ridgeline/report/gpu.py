"""What ``ridgeline measure --device cuda`` found, in lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.hardware.gpu.measure import GpuMeasurement
from ridgeline.hardware.gpu_kernels import GpuKernels
from ridgeline.report.units import rate, seconds

#: Bandwidths in words.
NAMES = {
    "copy": "copying main memory, read and write",
    "read": "reading main memory",
    "l2": "copying within L2",
}
#: Spread from which a figure says that something else was running.
NOISY = 0.5


def show_gpu_measurement(console: Console, found: GpuMeasurement, path: Path, points: Path | None) -> None:
    """The GPU's figures, how many kernels they stand on, and where they are kept."""
    kernels = GpuKernels.from_dict(found.device.kernels)
    console.print(Text.assemble((found.device.title, "bold"), f", measured in {seconds(found.seconds)}"))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    for what, figure in _figures(kernels):
        table.add_row(what, figure)
    console.print(table)
    counts = ", ".join(f"{len(t)} of {name}" for name, t in kernels.tables.items())
    console.print(f"[dim]{found.measured} times; kernels by table: {counts}.[/dim]")
    if found.left_out:
        console.print(f"There was no time for {found.left_out} of the finest steps: predictions interpolate.")
    for figure, said in found.failed.items():
        console.print(Text(f"{figure} did not run at {said}"))
    name, most = max(found.spreads.items(), key=lambda item: item[1])
    if most > NOISY:
        console.print(f"The GPU was busy: {name} spread by {most:.0%}. Measure again when it is idle.")
    if points is not None:
        console.print(f"[dim]{len(found.points)} points in {points}, for `ridgeline calibrate`.[/dim]")
    console.print(f"[dim]Stored in {path}; `--on this-gpu` uses it.[/dim]")


def _figures(kernels: GpuKernels) -> Iterator[tuple[str, str]]:
    for name, value in kernels.bandwidth.items():
        yield NAMES.get(name, name), rate(value, "B")
    for name, table in kernels.tables.items():
        if name == "linear.bf16":
            best = max(2 * m * n * k / s for (m, n, k), s in zip(table.points, table.seconds, strict=True))
            yield "matrix products, bf16", rate(best, "FLOP")
    yield "launching a kernel, on the host", seconds(kernels.launch)
    yield "an empty kernel in a graph", seconds(kernels.gap)
    yield "replaying a step's graph, beside its kernels", seconds(kernels.replay)
    yield "a step operator by operator, beside them", seconds(kernels.step)
    for kind, value in kernels.issue.items():
        yield f"issuing an operator: {kind}", seconds(value)
