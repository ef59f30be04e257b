"""Commands that say what to try, and what each technique does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import CountedWeights, Device, Json, Model, Weights, app
from ridgeline.errors import InputError


@app.command(epilog="Example: ridgeline advise llama-3-8b --on rtx-4090 --goal throughput --prompt 1024")
def advise(
    model: Model,
    on: Annotated[
        str, typer.Option(help="A device (see `devices`), a .toml file, this, or this-gpu.")
    ] = "this",
    goal: Annotated[
        str, typer.Option(help="What is to be better: latency, throughput or memory.")
    ] = "latency",
    prompt: Annotated[int, typer.Option(help="Prompt tokens of each request.")] = 512,
    output: Annotated[int | None, typer.Option(help="New tokens of each request; 128 if not given.")] = None,
    batch: Annotated[int, typer.Option(help="Requests at once.")] = 1,
    weights: Weights = "auto",
    draft: Annotated[str | None, typer.Option(help="A model that could propose tokens.")] = None,
    acceptance: Annotated[
        float, typer.Option(help="Chance that a draft's token is accepted, if those before it are.")
    ] = 0.6,
    repeated: Annotated[float, typer.Option(help="The same chance for tokens looked up in the text.")] = 0.3,
    shared: Annotated[float, typer.Option(help="Share of every prompt that was seen before.")] = 0.5,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run what this machine can run (with --on this).")
    ] = False,
    device: Device = "cpu",
    text: Annotated[
        Path | None, typer.Option(help="A text for speculation to continue, for --verify.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What bounds a workload, and every technique ranked by the gain that is predicted for it."""
    from ridgeline.analysis.advice import advise as run
    from ridgeline.analysis.advice.techniques import Assumptions
    from ridgeline.report.advise import show_advice, show_trials

    if text is not None and not verify:
        raise InputError("--text is what --verify continues: give --verify, too, or leave --text out")
    on = support.on_device(on, device)
    here = ("this-gpu",) if device == "cuda" else ("this", "here")
    if verify and on not in here:
        raise InputError(f"--verify runs on this machine, not on {on}: measure it, and leave --on out")
    found = run(
        model,
        on,
        goal=goal,
        prompt=prompt,
        output=output,
        batch=batch,
        weights=support.counted_format(weights),
        draft=draft,
        assumptions=Assumptions(acceptance, repeated, shared),
    )
    trials = ()
    if not as_json:
        show_advice(support.console(), found)
    if verify:
        trials = _verify(found, model, weights, text, device)
    if as_json:
        support.print_json({"advice": found, "trials": trials})
    elif verify:
        show_trials(support.console(), trials)


def _verify(found, model: str, weights: str, text: Path | None, device: str):
    from ridgeline.analysis.advice.verify import verify as run
    from ridgeline.analysis.evaluate import read_text
    from ridgeline.demo.heldout import held_out_texts
    from ridgeline.loading import require_run_extra
    from ridgeline.report.tables import progress

    require_run_extra()
    given = read_text(text) if text is not None else None
    if given is None and model == "demo":
        given = max(held_out_texts().values(), key=len)
    with progress(support.errors()) as report:
        return run(found, model, weights, given, progress=report, device=device)


@app.command(epilog="Example: ridgeline decoding llama-2-13b --on phone --weights int4-g128 --output 256")
def decoding(
    model: Model,
    on: Annotated[
        str, typer.Option(help="A device (see `devices`), a .toml file, this, or this-gpu.")
    ] = "this",
    prompt: Annotated[int, typer.Option(help="Prompt tokens of the request.")] = 512,
    output: Annotated[int, typer.Option(help="New tokens of the request.")] = 128,
    weights: CountedWeights = "auto",
    acceptance: Annotated[
        float, typer.Option(help="Chance that a proposed token is accepted, where weights are offloaded.")
    ] = 0.7,
    plot: Annotated[
        Path | None, typer.Option(help="Write charts: a .html page, or a .png, .svg or .pdf picture.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The KV cache, batches, speculation, offloading, fewer bits, streaming: each turned up step by step."""
    from ridgeline.analysis.decoding import decoding as run
    from ridgeline.outputs import refuse_unwritable
    from ridgeline.report.decoding import draw_decoding, show_decoding

    if plot is not None:
        refuse_unwritable(plot)
    given = support.counted_format(weights)
    found = run(model, on, prompt=prompt, output=output, weights=given, acceptance=acceptance)
    if plot is not None:
        from ridgeline.report.standalone import write_chart

        write_chart(draw_decoding(found), plot)
    if as_json:
        support.print_json(found)
        return
    show_decoding(support.console(), found)
