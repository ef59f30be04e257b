"""The command line: parses, calls the library, prints. Nothing is computed here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ridgeline.errors import InputError

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
        help=f"auto: as stored; a format to convert to: {FORMATS}; random or random:FORMAT for random ones."
    ),
]
CountedWeights = Annotated[
    str,
    typer.Option(
        help="Storage format, like bf16, int8 or int4-g128, with random: before it or without; auto or "
        "random: the config's."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


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
        weights=_counted_format(weights),
        cache=cache,
        attention=attention,
        pairs=pairs,
    )
    if as_json:
        _print_json(found)
        return
    from ridgeline.report.tables import show_explanation

    show_explanation(_console(), found, elements=elements)


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
    block_size: Annotated[int, typer.Option(help="Tokens of a cache block.")] = 32,
    headroom: Annotated[
        int, typer.Option(help="Blocks that a newcomer leaves free for each running sequence.")
    ] = 1,
    weights: CountedWeights = "auto",
    cache: Annotated[str | None, typer.Option(help="Storage format of the KV cache.")] = None,
    as_json: Json = False,
) -> None:
    """Serve requests in simulated time: latencies, throughput, cache occupancy."""
    from ridgeline.analysis.serving import simulate as run
    from ridgeline.engine.arrivals import arrivals_of

    found = run(
        model,
        on,
        arrivals_of(requests, count=count, prompt=prompt, output=output, seed=seed),
        weights=_counted_format(weights),
        cache=cache,
        kv_tokens=kv_tokens,
        batched_tokens=batched_tokens,
        sequences=sequences,
        block_size=block_size,
        headroom=headroom,
    )
    if as_json:
        _print_json(found)
        return
    from ridgeline.report.simulate import show_simulation

    show_simulation(_console(), found)


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
    weights: Weights = "auto",
    as_json: Json = False,
) -> None:
    """Continue a prompt; the text streams as it is made."""
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    loaded = _load_to_generate(model, weights, options)
    sampling = loaded.sampling(**options)
    given = _prompt(loaded, prompt)
    if as_json:
        _print_json(loaded.generate(given, max_tokens=max_tokens, sampling=sampling)[0])
        return
    from ridgeline.report.tables import show_stream

    show_stream(_console(), loaded, given, max_tokens=max_tokens, sampling=sampling)


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
) -> None:
    """Talk with a model, or let it continue your text; /help lists what it takes."""
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    loaded = _load_to_generate(model, weights, options)
    from ridgeline.chat.terminal import chat as run

    run(loaded, loaded.sampling(**options), max_tokens=max_tokens)


@app.command(epilog="Example: ridgeline measure --threads 2")
def measure(
    threads: Annotated[
        int | None, typer.Option(help="Threads to measure with; all cores if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to store the file; the cache folder if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find this machine's rates, bandwidths and call times, and store them as a hardware file."""
    from ridgeline.hardware import save_device, this_machine_file
    from ridgeline.loading import require_run_extra
    from ridgeline.outputs import refuse_unwritable
    from ridgeline.report.tables import progress, show_measurement

    require_run_extra()
    path = out or this_machine_file()
    refuse_unwritable(path)
    from ridgeline.hardware.measure import measure as run

    with progress(_errors()) as report:
        found = run(threads, report)
    save_device(found.device, path)
    if as_json:
        _print_json(found)
        return
    show_measurement(_console(), found, path)


@app.command(epilog="Example: ridgeline check tinyllama-1.1b --weights random --context 512 --context 2048")
def check(
    model: Model,
    on: Annotated[str, typer.Option(help="The measured hardware file: this, or a .toml file.")] = "this",
    prompt: Annotated[int, typer.Option(help="Prompt tokens of the prefill.")] = 512,
    context: Annotated[
        list[int] | None, typer.Option(help="Context of a decode step; may be repeated.")
    ] = None,
    weights: Weights = "auto",
    as_json: Json = False,
) -> None:
    """Predict from the stored hardware file, then run, and show both."""
    from ridgeline.hardware import load_device
    from ridgeline.loading import require_run_extra
    from ridgeline.report.tables import progress, show_check

    device = load_device(on)
    require_run_extra()
    from ridgeline.analysis.check import check as run

    loaded = _load(model, weights)
    with progress(_errors()) as report:
        found = run(
            loaded, on=device, prompt=prompt, contexts=tuple(context) if context else None, progress=report
        )
    if as_json:
        _print_json(found)
        return
    show_check(_console(), found)


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
    repeat: Annotated[int, typer.Option(help="How often each test is timed.")] = 5,
    threads: Annotated[
        int | None, typer.Option(help="Threads; what the machine was measured with, or all cores.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="What to print: table, csv or json.")] = "table",
    output: Annotated[Path | None, typer.Option(help="The file to write to, instead of printing.")] = None,
    as_json: Json = False,
) -> None:
    """Time reading prompts and generating, as llama-bench does, beside what is predicted."""
    from ridgeline.analysis.bench import bench as run
    from ridgeline.analysis.bench import bench_tests
    from ridgeline.hardware import load_device, this_machine_file
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
        "prompts": _numbers("--prompt", prompt),
        "generates": _numbers("--generate", generate),
        "depths": _numbers("--depth", depth),
        "batches": _numbers("--batch", batch),
    }
    bench_tests(config, **lengths)
    if output is not None:
        refuse_unwritable(output)
    on = load_device("this") if this_machine_file().is_file() else None
    loaded = _load(model, weights)
    with progress(_errors()) as report:
        found = run(loaded, **lengths, repeat=repeat, threads=threads, on=on, progress=report)
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
    weights: Annotated[str, typer.Option(help=f"Formats to compare: auto, {FORMATS}.")] = "auto",
    as_json: Json = False,
) -> None:
    """Score how well a model predicts a text: perplexity and bits per byte."""
    formats = _formats(weights)
    name, texts = _texts(text, heldout)
    _refuse_builtin(model)
    found = [_evaluated(model, format, texts) for format in formats]
    if as_json:
        _print_json(found)
        return
    from ridgeline.report.tables import show_evaluation

    show_evaluation(_console(), found, name)


@app.command(epilog="Example: ridgeline validate --json")
def validate(as_json: Json = False) -> None:
    """Compute published figures again and show the difference; exit code 1 if one is off."""
    from ridgeline.validation import validate as run

    results = run()
    if as_json:
        _print_json(results)
    else:
        from ridgeline.report.tables import show_validation

        show_validation(_console(), results)
    if not all(result.ok for result in results):
        raise typer.Exit(1)


@app.command(epilog="Example: ridgeline demo --report report.html")
def demo(
    report: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Measure this machine, generate, explain, check, and write report.html."""
    from ridgeline.loading import require_run_extra

    require_run_extra()
    from ridgeline.demo.tour import tour

    found = tour(_errors() if as_json else _console(), report)
    if as_json:
        _print_json(found)


@app.command(epilog="Example: ridgeline models")
def models(as_json: Json = False) -> None:
    """List the models that ship with Ridgeline: the demo pair, and configs without weights."""
    from ridgeline.models import builtin_names
    from ridgeline.models.registry import DEMOS

    names = (*DEMOS, *builtin_names())
    _print_json(names) if as_json else print("\n".join(names))


@app.command(epilog="Example: ridgeline devices")
def devices(as_json: Json = False) -> None:
    """List the devices of the catalogue."""
    from ridgeline.hardware import device_names

    names = device_names()
    _print_json(names) if as_json else print("\n".join(names))


def main() -> None:
    """Runs the command line; bad input is one line on stderr and exit code 2."""
    command = typer.main.get_command(app)
    try:
        code = command.main(standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe is caught, and not at the interpreter's end
    except InputError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _leave_closed_pipe()
    except SystemExit as end:  # rich and click make an exit of 1 out of a closed pipe
        if isinstance(end.__context__, BrokenPipeError):
            _leave_closed_pipe()
        raise
    except OSError as error:  # a file or folder that nothing else has named
        named = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{named}{error.strerror or error}")
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's usage errors have it, nothing else does
            raise
        _fail(error.format_message())
    sys.exit(code if isinstance(code, int) else 0)


def _leave_closed_pipe() -> NoReturn:
    """The reader of our output has gone, which is no error of ours; nor is what is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    print(f"ridgeline: {message}", file=sys.stderr)
    sys.exit(2)


def _print_json(value: Any) -> None:
    from ridgeline.report.plain import to_json

    print(to_json(value))


def _console():
    from rich.console import Console

    return Console(highlight=False)


def _errors():
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _load(model: str, weights: str):
    """The model, with a progress bar on stderr while its weights are read or made."""
    from ridgeline.loading import load, require_run_extra
    from ridgeline.models import declare, load_config
    from ridgeline.report.tables import progress

    require_run_extra()
    total = declare(load_config(model)).parameter_count()
    done = 0

    with progress(_errors()) as report:

        def ready(parameters: int) -> None:
            nonlocal done
            done += parameters
            report(f"loading {model}", done / total)

        return load(model, weights=weights, progress=ready)


def _load_to_generate(model: str, weights: str, options: dict[str, float | None]):
    """The model, after what its config alone can refuse; says what its folder asks for in vain."""
    from ridgeline.engine.request import refuse_encoder
    from ridgeline.engine.sampling import Sampling
    from ridgeline.models import load_config

    refuse_encoder(load_config(model))
    Sampling(**{name: value for name, value in options.items() if value is not None})
    loaded = _load(model, weights)
    if loaded.generation.ignored:
        asked = ", ".join(loaded.generation.ignored)
        note = f"generation_config.json asks for {asked}, which ridgeline does not do yet: ignored"
        print(f"ridgeline: {note}", file=sys.stderr)
    return loaded


def _numbers(option: str, text: str) -> list[int]:
    """The whole numbers of a list like ``1,16``."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}: give whole numbers, like 1,16") from None


def _counted_format(weights: str) -> str | None:
    """The format that --weights asks for, None for the config's. Random or not, the count is the same."""
    return None if weights in ("auto", "random") else weights.removeprefix("random:")


def _formats(weights: str) -> list[str]:
    """The weight formats in a list like ``bf16,int8``, each of which can be run."""
    from ridgeline.loading import FORMATS

    formats = [name.strip() for name in weights.split(",")]
    for name in formats:
        if name not in ("auto", *FORMATS):
            raise InputError(
                f"--weights {name!r} cannot be evaluated: choose among auto, {', '.join(FORMATS)}"
            )
    return formats


def _texts(file: Path | None, heldout: bool) -> tuple[str, list[str]]:
    """What is evaluated: its name, and its documents."""
    if (file is not None) == heldout:
        raise InputError("eval needs one text to score: give either --text FILE or --heldout")
    if file is not None:
        from ridgeline.analysis.evaluate import read_text

        return str(file), [read_text(file)]
    from ridgeline.demo.heldout import held_out_texts

    texts = list(held_out_texts().values())
    version = ".".join(map(str, sys.version_info[:3]))
    return f"{len(texts)} held-out files of Python {version}", texts


def _evaluated(model: str, weights: str, texts: list[str]):
    """The evaluation in one format; its weights leave memory before the next one's come."""
    loaded = _load(model, weights)
    from ridgeline.analysis.evaluate import evaluate as run
    from ridgeline.report.tables import progress

    with progress(_errors()) as report:
        return run(loaded, texts, progress=report)


def _refuse_builtin(model: str) -> None:
    from ridgeline.models import builtin_names

    if model.lower() in builtin_names():
        raise InputError(f"{model} is a built-in config without weights: give a folder, a hub id, or demo")


def _prompt(loaded: Any, text: str) -> Any:
    """The prompt as text; a model without a tokenizer takes token ids, separated by spaces."""
    if loaded.tokenizer is not None:
        return text
    try:
        ids = [int(token) for token in text.split()]
    except ValueError:
        ids = []
    if not ids:
        raise InputError("this model has no tokenizer: give the prompt as token ids, like '1 2 3'")
    return ids


if __name__ == "__main__":
    main()
