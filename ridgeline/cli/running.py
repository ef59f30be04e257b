"""Commands that run a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import (
    Cache,
    Device,
    DraftDevice,
    DraftThreads,
    DraftWeights,
    Invariant,
    Json,
    Model,
    Speculate,
    Weights,
    app,
)
from ridgeline.ops.formats import storage_format


@app.command(epilog='Example: ridgeline generate demo "def fibonacci(n):" --max-tokens 60 --temperature 0.7')
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 128,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; unset: the model's own.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest that sum to p.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Least share of the likeliest's odds.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text.")] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="A file with the JSON schema that the text must follow.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="A regular expression that all of the text matches.")
    ] = None,
    weights: Weights = "auto",
    device: Device = "cpu",
    invariant: Invariant = False,
    cache: Cache = None,
    speculate: Speculate = "off",
    draft_weights: DraftWeights = "auto",
    draft_threads: DraftThreads = None,
    draft_device: DraftDevice = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt; the text streams as it is made."""
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    schema = None if json_schema is None else support.json_text("--json-schema", json_schema)
    loaded = support.load_to_generate(model, weights, options, device, invariant)
    wanted = {
        "max_tokens": max_tokens,
        "sampling": loaded.sampling(**options),
        "json_schema": schema,
        "regex": regex,
    }
    given = support.prompt(loaded, prompt)
    from ridgeline.engine.speculation.choice import choose

    drafting = {
        "draft_threads": draft_threads,
        "draft_weights": draft_weights,
        "draft_device": draft_device,
    }
    kept = {} if cache is None else {"cache_format": storage_format(cache)}
    generator = loaded.generator(speculator=choose(speculate, loaded, **drafting), **kept)
    if as_json:
        support.print_json(generator.generate(given, **wanted)[0])
        return
    from ridgeline.report.tables import show_stream

    show_stream(support.console(), generator, given, **wanted)


@app.command(epilog="Example: ridgeline chat demo --temperature 0.5")
def chat(
    model: Model,
    max_tokens: Annotated[
        int | None, typer.Option(help="New tokens of an answer; 0: all the window.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; unset: the model's own.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest that sum to p.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Least share of the likeliest's odds.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answers.")] = None,
    weights: Weights = "auto",
    device: Device = "cpu",
    invariant: Invariant = False,
    cache: Cache = None,
    speculate: Speculate = "off",
    draft_weights: DraftWeights = "auto",
    draft_threads: DraftThreads = None,
    draft_device: DraftDevice = None,
) -> None:
    """Talk with a model, or let it continue your text; /help lists what it takes."""
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    support.refuse_encoder_decoder(model)
    loaded = support.load_to_generate(model, weights, options, device, invariant)
    from ridgeline.chat.terminal import chat as run
    from ridgeline.engine.speculation.choice import choose

    drafting = {
        "draft_threads": draft_threads,
        "draft_weights": draft_weights,
        "draft_device": draft_device,
    }
    speculator = choose(speculate, loaded, **drafting)
    kept = None if cache is None else storage_format(cache)
    sampling = loaded.sampling(**options)
    run(loaded, sampling, max_tokens=max_tokens, speculator=speculator, cache_format=kept)
