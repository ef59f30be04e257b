"""The command that divides a pass by class of layer."""

from __future__ import annotations

from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import CountedWeights, Json, Model, app


@app.command(epilog="Example: ridgeline breakdown opt-1.3b --on a100 --prompt 2048")
def breakdown(
    model: Model,
    on: Annotated[
        str, typer.Option(help="A device (see `devices`), a .toml file, this, or this-gpu.")
    ] = "this",
    prompt: Annotated[
        int | None, typer.Option(help="Tokens of each sequence; 2048, or the window if shorter.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    training: Annotated[bool, typer.Option("--training", help="With the backward pass.")] = False,
    weights: CountedWeights = "auto",
    tier: Annotated[
        str | None, typer.Option(help="What times stand on: datasheet, generic or calibrated; the best.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Divide a pass's time into attention, fully connected, activation and norm, as papers do."""
    from ridgeline.analysis.breakdown import predict_breakdown

    found = predict_breakdown(
        model,
        on,
        prompt=prompt,
        batch=batch,
        training=training,
        weights=support.counted_format(weights),
        tier=tier,
    )
    if as_json:
        support.print_json(found)
        return
    from ridgeline.report.breakdown import show_breakdown

    show_breakdown(support.console(), found)
