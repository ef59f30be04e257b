"""Commands that predict: nothing is run."""

from __future__ import annotations

from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import CountedWeights, Frames, Image, Json, Model, TextTokens, Tier, app
from ridgeline.ops.batch import BLOCK_TOKENS


@app.command(epilog="Example: ridgeline explain llama-3-8b --on h100 --prompt 4096 --batch 8")
def explain(
    model: Model,
    on: Annotated[
        str, typer.Option(help="A device (see `devices`), a .toml file, this, or this-gpu.")
    ] = "this",
    prompt: Annotated[
        int | None, typer.Option(help="Prompt tokens of each request; 512 if not given.")
    ] = None,
    output: Annotated[
        int | None, typer.Option(help="New tokens of each request; 128 if not given, of an encoder none.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Requests, or images, at once.")] = 1,
    weights: CountedWeights = "auto",
    cache: Annotated[str | None, typer.Option(help="Storage format of the KV cache.")] = None,
    attention: Annotated[
        str, typer.Option(help="Scores kept on chip (fused) or in memory (naive).")
    ] = "fused",
    pairs: Annotated[
        str | None,
        typer.Option(
            help="Pairs of a causal mask that count: those it lets through (visible, if not given), or all "
            "(square)."
        ),
    ] = None,
    tier: Tier = None,
    image: Image = None,
    frames: Frames = None,
    text: TextTokens = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps of an image; the model's usual number.")
    ] = None,
    guidance: Annotated[
        bool | None,
        typer.Option(
            "--guidance/--no-guidance",
            help="Denoise every image with its condition and without, unless told otherwise.",
        ),
    ] = None,
    mla: Annotated[
        str | None,
        typer.Option(
            help="Latent attention (DeepSeek): expanded, absorbed, or auto, which takes fewer operations."
        ),
    ] = None,
    elements: Annotated[bool, typer.Option("--elements", help="Show elements instead of bytes.")] = False,
    as_json: Json = False,
) -> None:
    """Predict where the time of prefill and decode, or of a denoising step, goes on a device."""
    from ridgeline.models import load_config

    config = load_config(model)
    common = {
        "batch": batch,
        "weights": support.counted_format(weights),
        "attention": attention,
        "tier": tier,
    }
    of_text = {"prompt": prompt, "output": output, "cache": cache, "pairs": pairs, "mla": mla}
    of_image = {"image": image, "frames": frames, "text": text, "steps": steps, "guidance": guidance}
    if config.is_diffusion:
        support.refuse_given(f"{config.name} denoises images", of_text)
        from ridgeline.analysis.denoising import explain_denoising as run
    else:
        support.refuse_given(f"{config.name} is no diffusion Transformer", of_image)
        from ridgeline.analysis.explain import explain as run
    options = of_image if config.is_diffusion else of_text
    given = {name: value for name, value in options.items() if value is not None}
    found = run(config, on, **common, **given)
    if as_json:
        support.print_json(found)
        return
    if config.is_diffusion:
        from ridgeline.report.denoising import show_denoising as show
    else:
        from ridgeline.report.tables import show_explanation as show
    show(support.console(), found, elements=elements)


@app.command(epilog="Example: ridgeline simulate llama-3-8b --on h100-sxm --requests poisson:8")
def simulate(
    model: Model,
    requests: Annotated[
        str,
        typer.Option(
            help="poisson:RATE (a second), or a .jsonl or .csv file of requests, or of a recorded run."
        ),
    ],
    on: Annotated[
        str, typer.Option(help="A device (see `devices`), a .toml file, this, or this-gpu.")
    ] = "this",
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
