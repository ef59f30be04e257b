"""Commands that predict: nothing is run."""

from __future__ import annotations

from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import CountedWeights, Json, Model, Tier, app
from ridgeline.ops.protocol import BLOCK_TOKENS


@app.command(epilog="Example: ridgeline explain llama-3-8b --on h100 --prompt 4096 --batch 8")
def explain(
    model: Model,
    on: Annotated[str, typer.Option(help="A device (see `devices`), a .toml file, or this.")] = "this",
    prompt: Annotated[int, typer.Option(help="Prompt tokens of each request.")] = 512,
    output: Annotated[
        int | None, typer.Option(help="New tokens of each request; 128 if not given, of an encoder none.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Requests at once.")] = 1,
    weights: CountedWeights = "auto",
    cache: Annotated[str | None, typer.Option(help="Storage format of the KV cache.")] = None,
    attention: Annotated[
        str, typer.Option(help="Scores kept on chip (fused) or in memory (naive).")
    ] = "fused",
    pairs: Annotated[
        str,
        typer.Option(
            help="Pairs of a causal mask that count: those it lets through (visible), or all (square)."
        ),
    ] = "visible",
    tier: Tier = None,
    mla: Annotated[
        str | None,
        typer.Option(
            help="Latent attention (DeepSeek): expanded, absorbed, or auto, which takes fewer operations."
        ),
    ] = None,
    elements: Annotated[bool, typer.Option("--elements", help="Show elements instead of bytes.")] = False,
    as_json: Json = False,
) -> None:
    """Predict where prefill and decode time goes on a device."""
    from ridgeline.analysis.explain import explain as run

    found = run(
        model,
        on,
        prompt=prompt,
        output=output,
        batch=batch,
        weights=support.counted_format(weights),
        cache=cache,
        attention=attention,
        pairs=pairs,
        tier=tier,
        mla=mla,
    )
    if as_json:
        support.print_json(found)
        return
    from ridgeline.report.tables import show_explanation

    show_explanation(support.console(), found, elements=elements)


@app.command(epilog="Example: ridgeline simulate llama-3-8b --on h100-sxm --requests poisson:8")
def simulate(
    model: Model,
    requests: Annotated[
        str,
        typer.Option(help="poisson:RATE (a second), or a .jsonl or .csv file of arrival, prompt, output."),
    ],
    on: Annotated[str, typer.Option(help="A device (see `devices`), a .toml file, or this.")] = "this",
    count: Annotated[int | None, typer.Option(help="Requests to draw; 1000 if not given.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt tokens to draw from; 32-512.")] = None,
    output: Annotated[str | None, typer.Option(help="New tokens to draw from; 16-256.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same requests; 0.")] = None,
    kv_tokens: Annotated[int | None, typer.Option(help="Tokens in the cache; as many as fit.")] = None,
    batched_tokens: Annotated[int, typer.Option(help="Tokens of a step at most.")] = 2048,
    sequences: Annotated[int, typer.Option(help="Sequences at once at most.")] = 256,
    block_size: Annotated[int, typer.Option(help="Tokens of a cache block.")] = BLOCK_TOKENS,
    headroom: Annotated[
        int, typer.Option(help="Blocks that a newcomer leaves free for each running sequence.")
    ] = 1,
    weights: CountedWeights = "auto",
    cache: Annotated[str | None, typer.Option(help="Storage format of the KV cache.")] = None,
    tier: Tier = None,
    as_json: Json = False,
) -> None:
    """Serve requests in simulated time: latencies, throughput, cache occupancy."""
    from ridgeline.analysis.serving import simulate as run
    from ridgeline.engine.arrivals import arrivals_of

    found = run(
        model,
        on,
        arrivals_of(requests, count=count, prompt=prompt, output=output, seed=seed),
        weights=support.counted_format(weights),
        cache=cache,
        kv_tokens=kv_tokens,
        batched_tokens=batched_tokens,
        sequences=sequences,
        block_size=block_size,
        headroom=headroom,
        tier=tier,
    )
    if as_json:
        support.print_json(found)
        return
    from ridgeline.report.simulate import show_simulation

    show_simulation(support.console(), found)
