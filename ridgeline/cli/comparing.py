"""Commands that weigh models, devices and formats against each other: nothing is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import CountedWeights, Frames, Image, Json, Model, TextTokens, app

Plot = Annotated[
    Path | None, typer.Option(help="Write a chart: a .html page, or a .png, .svg or .pdf picture.")
]


@app.command(
    epilog="Example: ridgeline compare llama-3-8b,qwen3-8b --on a100,h100,rtx-4090 --weights auto,int4-g128 "
    "--tpot-limit 0.03"
)
def compare(
    models: Annotated[str, typer.Argument(help="Models, separated by commas.")],
    on: Annotated[str, typer.Option(help="Devices (see `devices`), separated by commas; all for all.")],
    prompt: Annotated[str, typer.Option(help="Prompt tokens, separated by commas.")] = "512",
    output: Annotated[str, typer.Option(help="New tokens, separated by commas.")] = "128",
    batch: Annotated[
        str, typer.Option(help="Batch sizes, separated by commas.")
    ] = "1,2,4,8,16,32,64,128,256",
    weights: Annotated[str, typer.Option(help="Storage formats of weights; auto: the model's own.")] = "auto",
    cache: Annotated[str, typer.Option(help="Storage formats of the KV cache.")] = "auto",
    ttft_limit: Annotated[float | None, typer.Option(help="Seconds to the first token at most.")] = None,
    tpot_limit: Annotated[float | None, typer.Option(help="Seconds a further token at most.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every batch, not the best one.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write all points as CSV.")] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Models, devices and formats side by side: latency, throughput, memory, cost of a million tokens."""
    from ridgeline.analysis.compare import Limits
    from ridgeline.analysis.compare import compare as run
    from ridgeline.hardware import device_names
    from ridgeline.outputs import refuse_unwritable
    from ridgeline.report.compare import show_comparison, to_csv, trade_off

    for path in (csv, plot):
        if path is not None:
            refuse_unwritable(path)
    found = run(
        support.names("models", models),
        device_names() if on == "all" else support.names("--on", on),
        weights=[support.counted_format(name) for name in support.names("--weights", weights)],
        caches=[None if name == "auto" else name for name in support.names("--cache", cache)],
        prompts=support.numbers("--prompt", prompt),
        outputs=support.numbers("--output", output),
        batches=support.numbers("--batch", batch),
        limits=Limits(ttft_limit, tpot_limit),
    )
    if csv is not None:
        csv.write_text(to_csv(found), encoding="utf-8")
    _write(plot, lambda: trade_off(found))
    if as_json:
        support.print_json(found)
        return
    show_comparison(support.console(), found, every)


@app.command(epilog="Example: ridgeline capacity llama-3-70b --on h200 --context 8192 --batch 16")
def capacity(
    model: Model,
    on: Annotated[
        str, typer.Option(help="A device (see `devices`), a .toml file, this, or this-gpu.")
    ] = "this",
    context: Annotated[
        int | None, typer.Option(help="Tokens of a sequence, to find the batch; the window if not given.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences, to find how long they can be.")] = 1,
    weights: Annotated[
        str, typer.Option(help="Storage formats of weights, separated by commas; auto: the model's own.")
    ] = "auto,int8,int4-g128",
    cache: Annotated[str, typer.Option(help="Storage formats of the KV cache.")] = "auto,int8",
    step_tokens: Annotated[int, typer.Option(help="Tokens of a step at most.")] = 2048,
    share: Annotated[float, typer.Option(help="Share of the memory that may be used.")] = 1.0,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """What fits: tokens, the largest batch, the longest context, with each format of weights and cache."""
    from ridgeline.analysis.capacity import capacity as run
    from ridgeline.outputs import refuse_unwritable
    from ridgeline.report.capacity import growth, show_capacity

    if plot is not None:
        refuse_unwritable(plot)
    found = run(
        model,
        on,
        weights=[support.counted_format(name) for name in support.names("--weights", weights)],
        caches=[None if name == "auto" else name for name in support.names("--cache", cache)],
        context=context,
        batch=batch,
        step_tokens=step_tokens,
        share=share,
    )
    _write(plot, lambda: growth(found))
    if as_json:
        support.print_json(found)
        return
    show_capacity(support.console(), found)


def _write(path: Path | None, draw) -> None:
    if path is not None:
        from ridgeline.report.standalone import write_chart

        write_chart(draw(), path)


@app.command(
    epilog="Example: ridgeline report llama-3-8b --on h100 --prompt 2048 --batch 8 --out report.html"
)
def report(
    model: Model,
    on: Annotated[
        str, typer.Option(help="A device (see `devices`), a .toml file, this, or this-gpu.")
    ] = "this",
    prompt: Annotated[
        int | None, typer.Option(help="Prompt tokens of each request; 512 if not given.")
    ] = None,
    output: Annotated[int | None, typer.Option(help="New tokens of each request; 128 if not given.")] = None,
    batch: Annotated[int, typer.Option(help="Requests, or images, at once.")] = 1,
    weights: CountedWeights = "auto",
    cache: Annotated[str | None, typer.Option(help="Storage format of the KV cache.")] = None,
    image: Image = None,
    frames: Frames = None,
    text: TextTokens = None,
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
) -> None:
    """Write all that is predicted of a model on a device as one page, which needs nothing beside it."""
    from ridgeline.hardware import load_device
    from ridgeline.models import load_config
    from ridgeline.outputs import refuse_unwritable
    from ridgeline.report import write_report

    refuse_unwritable(out)
    config, device = load_config(model), load_device(on)
    of_text = {"prompt": prompt, "output": output, "cache": cache}
    of_image = {"image": image, "frames": frames, "text": text}
    if config.is_diffusion:
        support.refuse_given(f"{config.name} denoises images", of_text)
        from ridgeline.analysis.denoising import explain_denoising as run
        from ridgeline.report.studies import study_denoising as study
    else:
        support.refuse_given(f"{config.name} is no diffusion Transformer", of_image)
        from ridgeline.analysis.explain import explain as run
        from ridgeline.report.studies import study
    options = of_image if config.is_diffusion else of_text
    given = {name: value for name, value in options.items() if value is not None}
    found = run(config, device, batch=batch, weights=support.counted_format(weights), **given)
    write_report(out, found, device, studies=study(found, config, device))
    support.say(f"wrote {out}")
