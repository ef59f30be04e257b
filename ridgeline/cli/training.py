"""The command that predicts training."""

from __future__ import annotations

from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import Json, Model, app


@app.command(epilog="Example: ridgeline training gpt2-xl --on a100 --batch 8 --length 1024 --recompute full")
def training(
    model: Model,
    on: Annotated[
        str, typer.Option(help="A device (see `devices`), a .toml file, this, or this-gpu.")
    ] = "this",
    batch: Annotated[int, typer.Option(help="Sequences of a step on each device.")] = 1,
    length: Annotated[
        int | None, typer.Option(help="Tokens of each sequence; 2048, or the window if shorter.")
    ] = None,
    devices: Annotated[int, typer.Option(help="Devices that train data-parallel.")] = 1,
    recompute: Annotated[
        str, typer.Option(help="What is computed again instead of kept: none, selective or full.")
    ] = "none",
    optimizer: Annotated[
        str, typer.Option(help="sgd, sgd-momentum, adam, adamw, adamw-8bit or adafactor.")
    ] = "adamw",
    zero: Annotated[
        int, typer.Option(help="Shared out among devices: 1 states, 2 and gradients, 3 and weights.")
    ] = 0,
    precision: Annotated[str, typer.Option(help="mixed (float32 master weights), bf16 or fp32.")] = "mixed",
    kernels: Annotated[str, typer.Option(help="fused, naive (scores in memory) or unfused.")] = "fused",
    dropout: Annotated[bool, typer.Option("--dropout", help="With dropout, as GPT has it.")] = False,
    stash: Annotated[
        str | None, typer.Option(help="Format in which activations wait for the backward pass, like int8.")
    ] = None,
    pairs: Annotated[
        str, typer.Option(help="Query-key pairs that count as FLOPs: visible, or square as in papers.")
    ] = "visible",
    tier: Annotated[
        str | None, typer.Option(help="What times stand on: datasheet, generic or calibrated; the best.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict a training step: time, MFU, and the memory of weights, gradients, states, activations."""
    from ridgeline.analysis.training import training as run

    found = run(
        model,
        on,
        batch=batch,
        length=length,
        devices=devices,
        recompute=recompute,
        optimizer=optimizer,
        zero=zero,
        precision=precision,
        kernels=kernels,
        dropout=dropout,
        stash=stash,
        pairs=pairs,
        tier=tier,
    )
    if as_json:
        support.print_json(found)
        return
    from ridgeline.report.training import show_training

    show_training(support.console(), found)
