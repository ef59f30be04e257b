"""The application that commands register with, and the arguments that they share."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Ridgeline tells where a Transformer's time goes on a given machine, and takes it back.\n\n"
    "Start with: ridgeline demo",
)

Model = Annotated[
    str,
    typer.Argument(help="A model folder, a hub id (org/name), a built-in config (see `models`), or demo."),
]
FORMATS = "bf16, fp32, fp16, int8, int4-g32, int4-g64, int4-g128, or these three with -zp"
Weights = Annotated[
    str,
    typer.Option(
        help=f"auto: as stored; a format to convert to: {FORMATS}, on a GPU also fp8 and fp8-128x128; random "
        "or random:FORMAT for random ones."
    ),
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, or cuda for a GPU.")]
Invariant = Annotated[
    bool,
    typer.Option(
        "--invariant",
        help="Same bits whatever else is computed with a request: on a GPU at a price; the cpu's always are.",
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(help="Format of the key/value cache: int8, on a GPU fp8; unset: the weights' own."),
]
CountedWeights = Annotated[
    str,
    typer.Option(
        help="Storage format, like bf16, int8 or int4-g128, with random: before it or without; auto or "
        "random: the config's."
    ),
]
Speculate = Annotated[
    str,
    typer.Option(
        help="Draft tokens and verify them, for speed; the output stays the same. off, ngram (look-up in the "
        "text so far), self, draft:MODEL, or draft for demo's own."
    ),
]
Tier = Annotated[
    str | None,
    typer.Option(
        help="What times stand on: datasheet, generic, calibrated or measured; the best that the device has."
    ),
]
Image = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="Pixels a side of a diffusion Transformer's image, or WIDTHxHEIGHT; as trained.",
    ),
]
Frames = Annotated[int | None, typer.Option(help="Frames of its video; as trained.")]
TextTokens = Annotated[int | None, typer.Option("--text", help="Tokens of its prompt; the usual number.")]
DraftWeights = Annotated[str, typer.Option(help="Weights of a draft model, as --weights has them.")]
DraftThreads = Annotated[
    int | None,
    typer.Option(help="Threads of the draft's own: it then drafts on while proposals are verified."),
]
DraftDevice = Annotated[
    str | None, typer.Option(help="Where a draft model runs, cpu or cuda; unset: where the model does.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from ridgeline import __version__

        print(f"ridgeline {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass
