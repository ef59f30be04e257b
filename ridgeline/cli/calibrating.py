"""The command that fits a device's time models to measured points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import Json, app


@app.command(epilog="Example: ridgeline calibrate --from points.csv --on h100-sxm --output my-h100.toml")
def calibrate(
    sources: Annotated[
        list[Path], typer.Option("--from", help="A CSV file of measured points; may be repeated.")
    ],
    on: Annotated[str, typer.Option(help="The GPU that they were measured on (see `devices`), or its file.")],
    points: Annotated[int, typer.Option(help="How many to fit to, at most; the rest judges.")] = 64,
    judge: Annotated[
        list[Path] | None, typer.Option(help="A CSV file of further points to judge by; may be repeated.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model whose layers a file names, where it names layers.")
    ] = None,
    tensor: Annotated[
        int, typer.Option(help="On how many tensor-parallel ranks the layers ran that a file names.")
    ] = 1,
    output: Annotated[Path | None, typer.Option(help="Where to write the calibrated hardware file.")] = None,
    as_json: Json = False,
) -> None:
    """Fit a GPU's time models to a few measured points, and show how well they predict the rest."""
    from ridgeline.analysis.calibrate import calibrate as run
    from ridgeline.hardware import save_device
    from ridgeline.outputs import refuse_unwritable

    if output is not None:
        refuse_unwritable(output)
    found = run(on, sources, judge=judge or (), most=points, model=model, tensor=tensor)
    if output is not None:
        save_device(found.device, output)
    if as_json:
        support.print_json(found)
        return
    from ridgeline.report.calibrate import show_calibration

    show_calibration(support.console(), found, output)
