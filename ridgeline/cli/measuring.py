"""Commands that time, score and check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import FORMATS, Device, Frames, Image, Json, Model, TextTokens, Weights, app
from ridgeline.errors import InputError


@app.command(epilog="Example: ridgeline measure --threads 2, or for a GPU: ridgeline measure --device cuda")
def measure(
    threads: Annotated[
        int | None, typer.Option(help="Threads to measure with; all cores if not given.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="What is measured: cpu, or cuda for a GPU, cuda:1 for the second one.")
    ] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Where to store the file; the cache folder if not given.")
    ] = None,
    points: Annotated[
        Path | None, typer.Option(help="A CSV file for a GPU's measured kernels, which `calibrate` reads.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find this machine's rates, bandwidths and call times, or a GPU's, and store them as a hardware file."""
    from ridgeline.hardware import save_device, this_machine_file
    from ridgeline.loading import require_run_extra
    from ridgeline.outputs import refuse_unwritable
    from ridgeline.report.tables import progress, show_measurement

    if device != "cpu":
        _measure_gpu(device, threads, out, points, as_json)
        return
    if points is not None:
        raise InputError("--points are a GPU's kernels: give --device cuda, or leave --points out")
    require_run_extra()
    path = out or this_machine_file()
    refuse_unwritable(path)
    from ridgeline.hardware.measure import measure as run

    with progress(support.errors()) as report:
        found = run(threads, report)
    save_device(found.device, path)
    if as_json:
        support.print_json(found)
        return
    show_measurement(support.console(), found, path)


def _measure_gpu(
    device: str, threads: int | None, out: Path | None, points: Path | None, as_json: bool
) -> None:
    from ridgeline.hardware import gpu_file, save_device
    from ridgeline.hardware.measure import gpu_index
    from ridgeline.hardware.measure import measure as run
    from ridgeline.loading import require_gpu, require_run_extra
    from ridgeline.outputs import refuse_unwritable
    from ridgeline.report.gpu import show_gpu_measurement
    from ridgeline.report.tables import progress

    gpu_index(device)
    if out is not None and out == points:
        raise InputError(f"--out and --points are both {out}: give two files")
    require_run_extra()
    require_gpu()
    for path in (out, points):
        if path is not None:
            refuse_unwritable(path)
    with progress(support.errors()) as report:
        found = run(threads, report, device=device)
    path = out or gpu_file(found.facts.name)
    save_device(found.device, path)
    if points is not None:
        from ridgeline.hardware.gpu.points import write_points

        write_points(points, list(found.points), found.facts)
    if as_json:
        support.print_json(found)
        return
    show_gpu_measurement(support.console(), found, path, points)


@app.command(epilog="Example: ridgeline check tinyllama-1.1b --weights random --context 512 --context 2048")
def check(
    model: Model,
    on: Annotated[
        str, typer.Option(help="The measured hardware file: this, this-gpu, or a .toml file.")
    ] = "this",
    prompt: Annotated[
        int | None, typer.Option(help="Prompt tokens of the prefill; 512 if not given.")
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option(help="Context of a decode step; may be repeated.")
    ] = None,
    image: Image = None,
    frames: Frames = None,
    text: TextTokens = None,
    batch: Annotated[int | None, typer.Option(help="Images at once; 1 if not given.")] = None,
    weights: Weights = "auto",
    device: Device = "cpu",
    by: Annotated[
        str, typer.Option(help="What is shown of a phase: its operators (operator) or classes (class).")
    ] = "operator",
    as_measured: Annotated[
        bool,
        typer.Option("--as-measured", help="Predict by the file as it is, without reading memory's rate."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict from the stored hardware file and memory's rate of the moment, then run, and show both."""
    from ridgeline.hardware import load_device
    from ridgeline.loading import require_run_extra
    from ridgeline.models import load_config
    from ridgeline.report.tables import progress, show_check

    if by not in ("operator", "class"):
        raise InputError(f"--by is {by!r}: choose operator or class")
    config = load_config(model)
    of_text = {"prompt": prompt, "context": tuple(context) if context else None}
    of_image = {"image": image, "frames": frames, "text": text, "batch": batch}
    if config.is_diffusion:
        support.refuse_given(f"{config.name} denoises images", of_text)
    else:
        support.refuse_given(f"{config.name} is no diffusion Transformer", of_image)
        of_text["contexts"] = of_text.pop("context")
    measured = load_device(support.on_device(on, device))
    require_run_extra()
    if config.is_diffusion:
        from ridgeline.analysis.check_denoising import check_denoising as run
    else:
        from ridgeline.analysis.check import check as run

    options = of_image if config.is_diffusion else of_text
    given = {name: value for name, value in options.items() if value is not None}
    loaded = support.load(model, weights, device)
    with progress(support.errors()) as report:
        found = run(loaded, on=measured, **given, as_measured=as_measured, progress=report)
    if as_json:
        support.print_json(found)
        return
    show_check(support.console(), found, by_class=by == "class")


@app.command(epilog="Example: ridgeline bench demo --prompt 128,512 --depth 0,256 --batch 1,16")
def bench(
    model: Model,
    prompt: Annotated[str, typer.Option(help="Lengths of prompts to read, like 128,512; 0: none.")] = "512",
    generate: Annotated[
        str | None, typer.Option(help="Numbers of tokens to generate; 64 if not given, of an encoder none.")
    ] = None,
    depth: Annotated[str, typer.Option(help="Tokens that are cached before, like 0,4096.")] = "0",
    batch: Annotated[str, typer.Option(help="Sequences at once, like 1,16.")] = "1",
    weights: Weights = "auto",
    device: Device = "cpu",
    repeat: Annotated[int, typer.Option(help="How often each test is timed.")] = 5,
    threads: Annotated[
        int | None, typer.Option(help="Threads; what the machine was measured with, or all cores.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="What to print: table, csv or json.")] = "table",
    output: Annotated[Path | None, typer.Option(help="The file to write to, instead of printing.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="A file for ui.perfetto.dev: requests, steps and operators of a small engine run."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time reading prompts and generating, as llama-bench does, beside what is predicted."""
    from ridgeline.analysis.bench import bench as run
    from ridgeline.analysis.bench import bench_tests
    from ridgeline.analysis.here import stored_here
    from ridgeline.engine.request import refuse_encoder, refuse_encoder_decoder
    from ridgeline.models import load_config
    from ridgeline.outputs import refuse_unwritable
    from ridgeline.report.bench import WRITERS
    from ridgeline.report.tables import progress

    form = "json" if as_json else form
    if form not in WRITERS:
        raise InputError(f"--format is {form!r}: choose among {', '.join(WRITERS)}")
    config = load_config(model)
    generate = generate or ("64" if config.is_decoder else "0")
    lengths = {
        "prompts": support.numbers("--prompt", prompt),
        "generates": support.numbers("--generate", generate),
        "depths": support.numbers("--depth", depth),
        "batches": support.numbers("--batch", batch),
    }
    bench_tests(config, **lengths)
    if output is not None and output == trace:
        raise InputError(f"--output and --trace are both {trace}: give two files")
    for path in (output, trace):
        if path is not None:
            refuse_unwritable(path)
    if trace is not None:
        refuse_encoder(config)
    refuse_encoder_decoder(config)
    loaded = support.load(model, weights, device)
    on = stored_here(loaded)
    with progress(support.errors()) as report:
        found = run(loaded, **lengths, repeat=repeat, threads=threads, on=on, progress=report)
        if trace is not None:
            support.trace_engine(loaded, found.machine.threads, trace, report)
            print(f"ridgeline: open {trace} at ui.perfetto.dev", file=sys.stderr)
    if output is None:
        WRITERS[form](found, sys.stdout)
        return
    with output.open("w", encoding="utf-8") as stream:
        WRITERS[form](found, stream)


@app.command("eval", epilog="Example: ridgeline eval demo --heldout --weights bf16,int8,int4-g128")
def evaluate(
    model: Model,
    text: Annotated[Path | None, typer.Option(help="A text file in UTF-8, read as one document.")] = None,
    heldout: Annotated[
        bool, typer.Option("--heldout", help="The Python modules that the demo model never saw.")
    ] = False,
    weights: Annotated[
        str, typer.Option(help=f"Formats to compare: auto, {FORMATS}, on a GPU also fp8 and fp8-128x128.")
    ] = "auto",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Score how well a model predicts a text: perplexity and bits per byte."""
    formats = support.formats(weights, device)
    name, texts = support.texts(text, heldout)
    support.refuse_builtin(model)
    found = [support.evaluated(model, format, texts, device) for format in formats]
    if as_json:
        support.print_json(found)
        return
    from ridgeline.report.tables import show_evaluation

    show_evaluation(support.console(), found, name)


@app.command(epilog="Example: ridgeline validate --json")
def validate(as_json: Json = False) -> None:
    """Compute published figures and measured profiles again, and show the difference; exit code 1 if one is
    off."""
    from ridgeline.validation import judge_profiles
    from ridgeline.validation import validate as run

    results, profiles = run(), judge_profiles()
    if as_json:
        support.print_json({"figures": results, "profiles": profiles})
    else:
        from ridgeline.report.profiles import show_profiles
        from ridgeline.report.tables import show_validation

        show_validation(support.console(), results)
        show_profiles(support.console(), profiles)
    if not all(result.ok for result in (*results, *profiles)):
        raise typer.Exit(1)
