"""The command that serves a model."""

from __future__ import annotations

from contextlib import ExitStack
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
    Model,
    Speculate,
    Weights,
    app,
)


@app.command(epilog="Example: ridgeline serve demo --port 8000 --api-key secret")
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What requests call the model; unset: as here.")] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="RIDGELINE_API_KEYS", help="Needed for the API; may be repeated."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Web pages from there may use the API; may be repeated."),
    ] = None,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, max=2**40, help="Tokens that the key/value cache holds; unset: half of free memory."
        ),
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences computed at once.")] = 64,
    batched_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a step.")] = 512,
    threads: Annotated[int | None, typer.Option(help="Threads that compute; unset: every core.")] = None,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests answered at once; others get 429.")
    ] = 256,
    body_limit: Annotated[float, typer.Option(min=0.001, max=1e6, help="MB of a request's body.")] = 4.0,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="How long running requests may take after SIGTERM.")
    ] = 30.0,
    weights: Weights = "auto",
    device: Device = "cpu",
    invariant: Invariant = False,
    cache: Cache = None,
    speculate: Speculate = "off",
    draft_weights: DraftWeights = "auto",
    draft_threads: DraftThreads = None,
    draft_device: DraftDevice = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's API does; SIGTERM or Ctrl-C ends it."""
    support.require_serve_extra()
    from ridgeline.server.gate import Admission, Limits
    from ridgeline.server.run import address, bind

    support.refuse_encoder_decoder(model)
    if speculate != "off":
        from ridgeline.engine.request import refuse_encoder
        from ridgeline.models import load_config

        refuse_encoder(load_config(model))
    limits = Limits(tuple(api_key or ()), int(body_limit * 1e6), max_requests)
    listening = bind(host, port)  # before the weights are loaded for nothing
    with ExitStack() as held:
        held.enter_context(listening)
        loaded = support.load(model, weights, device, invariant)
        support.note_ignored(loaded)
        if threads is not None:
            from ridgeline.hardware.threads import threads as computing_threads

            held.enter_context(computing_threads(threads))
        from ridgeline.engine.speculation.choice import choose
        from ridgeline.server.app import make_app
        from ridgeline.server.run import Server, example
        from ridgeline.server.service import Service

        drafting = {
            "draft_threads": draft_threads,
            "draft_weights": draft_weights,
            "draft_device": draft_device,
        }
        service = Service.start(
            loaded,
            name or model,
            token_budget=batched_tokens,
            sequences=sequences,
            cache_tokens=cache_tokens,
            speculator=choose(speculate, loaded, **drafting),
            cache_format=cache,
        )
        held.callback(service.close)
        server = Server(make_app(service, limits, Admission(), cors or ()), drain_seconds)
        support.say(f"{service.name} is served; try: {example(service, limits, address(listening))}")
        server.run(sockets=[listening])
