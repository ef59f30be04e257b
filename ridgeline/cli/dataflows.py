"""The command that lays dataflows of attention side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import Json, app
from ridgeline.errors import InputError


@app.command(epilog="Example: ridgeline dataflows llama-3-8b --on h100 --prompt 8192 --plot dataflows.html")
def dataflows(
    model: Annotated[
        str | None, typer.Argument(help="A model folder, hub id or built-in config; or give --heads.")
    ] = None,
    on: Annotated[
        str, typer.Option(help="A device (see `devices`), a .toml file, this, or this-gpu.")
    ] = "this",
    prompt: Annotated[
        int | None,
        typer.Option("--prompt", "--length", help="Queries of each sequence; 4096, of images all they have."),
    ] = None,
    past: Annotated[int, typer.Option(help="Cached keys before them; --prompt 1 is a decode step.")] = 0,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    heads: Annotated[int | None, typer.Option(help="Query heads, without a model.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Key/value heads; as many if not given.")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Elements of a head.")] = None,
    full: Annotated[bool, typer.Option("--full", help="No causal mask: every pair is visible.")] = False,
    form: Annotated[
        str | None, typer.Option("--format", help="Storage format of Q, K, V and O; the model's, or bf16.")
    ] = None,
    on_chip: Annotated[
        float | None, typer.Option(help="Bytes on the chip for a block; the device's own share of a unit.")
    ] = None,
    units: Annotated[
        int | None, typer.Option(help="Units that work on a block each; 1: the whole chip on one.")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Query rows of a tile; the fastest that fit.")] = None,
    keys: Annotated[int | None, typer.Option(help="Keys of a tile, given with --rows.")] = None,
    splits: Annotated[int | None, typer.Option(help="Splits of the keys, of split-KV; 2.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A file for the charts: .html, or .png.")] = None,
    as_json: Json = False,
) -> None:
    """Lay naive, FLAT, Flash and split-KV attention side by side: traffic, live memory, time, limits."""
    from ridgeline.analysis.dataflows import compare_dataflows, shape_of
    from ridgeline.predict.dataflows import Tiles

    shape = shape_of(
        model,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        prompt=prompt,
        past=past,
        batch=batch,
        causal=False if full else None,
        format=form,
    )
    if (rows is None) != (keys is None) or (splits is not None and rows is None):
        raise InputError("a tile has both sides: give --rows and --keys together, --splits with them")
    tiles = None if rows is None else Tiles(rows, keys, 2 if splits is None else splits)
    found = compare_dataflows(shape, on, model=model, units=units, on_chip=on_chip, tiles=tiles)
    if plot is not None:
        from ridgeline.report.dataflows import charts
        from ridgeline.report.standalone import write_chart

        write_chart(charts(found), plot)
    if as_json:
        support.print_json(found)
        return
    from ridgeline.report.dataflows import show_dataflows

    show_dataflows(support.console(), found)
