"""What commands do with their arguments: load, say, print."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ridgeline.errors import InputError


def print_json(value: Any) -> None:
    from ridgeline.report.plain import to_json

    print(to_json(value))


def console():
    from rich.console import Console

    return Console(highlight=False)


def errors():
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def require_serve_extra() -> None:
    """Raises InputError if a package that the server takes is missing."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise InputError(f"serving needs {package}: pip install 'ridgeline[run,serve]'")


def say(line: str) -> None:
    """A line on stdout at once; one that cannot be written (a full disk) is lost, and no reason to end."""
    with suppress(OSError):
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


def on_device(on: str, device: str) -> str:
    """What --on means with --device: with cuda, ``this`` is the GPU.

    Raises InputError for another device, and where there is no GPU.
    """
    from ridgeline.hardware.files import THIS_GPU, THIS_MACHINE
    from ridgeline.loading import DEVICES, require_gpu, require_run_extra

    if device not in DEVICES:
        raise InputError(f"device is {device!r}; choose one of: {', '.join(DEVICES)}")
    if device == "cpu":
        return on
    require_run_extra()
    require_gpu()
    return THIS_GPU if on.strip().lower() in THIS_MACHINE else on


def load(model: str, weights: str, device: str = "cpu", invariant: bool = False):
    """The model, with a progress bar on stderr while its weights are read or made."""
    from ridgeline.loading import load, require_run_extra
    from ridgeline.models import declare, load_config
    from ridgeline.report.tables import progress

    require_run_extra()
    total = declare(load_config(model)).parameter_count()
    done = 0

    with progress(errors()) as report:

        def ready(parameters: int) -> None:
            nonlocal done
            done += parameters
            report(f"loading {model}", done / total)

        return load(model, weights=weights, progress=ready, device=device, invariant=invariant)


def load_to_generate(
    model: str,
    weights: str,
    options: dict[str, float | None],
    device: str = "cpu",
    invariant: bool = False,
):
    """The model, after what its config alone can refuse; says what its folder asks for in vain."""
    from ridgeline.engine.request import refuse_encoder
    from ridgeline.engine.sampling import Sampling
    from ridgeline.models import load_config

    refuse_encoder(load_config(model))
    Sampling(**{name: value for name, value in options.items() if value is not None})
    loaded = load(model, weights, device, invariant)
    note_ignored(loaded)
    return loaded


def refuse_encoder_decoder(model: str) -> None:
    """Raises InputError if the engine does not run the model, before its weights are loaded for nothing."""
    from ridgeline.engine.request import refuse_encoder_decoder
    from ridgeline.models import load_config

    refuse_encoder_decoder(load_config(model))


def note_ignored(loaded: Any) -> None:
    """Says what the model's folder asks for in vain; a full disk for stderr is no reason to end."""
    if loaded.generation.ignored:
        asked = ", ".join(loaded.generation.ignored)
        note = f"generation_config.json asks for {asked}, which ridgeline does not do yet: ignored"
        with suppress(OSError):
            print(f"ridgeline: {note}", file=sys.stderr)


def numbers(option: str, text: str) -> list[int]:
    """The whole numbers of a list like ``1,16``, each once."""
    try:
        return list(dict.fromkeys(int(number) for number in text.split(",")))
    except ValueError:
        raise InputError(f"{option} is {text!r}: give whole numbers, like 1,16") from None


def names(option: str, text: str) -> list[str]:
    """The names of a list like ``h100,a100``, each once."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise InputError(f"{option} {text!r} has an empty name: separate names by single commas")
    return list(dict.fromkeys(found))


def json_text(option: str, file: Path) -> str:
    """What a file holds, which must be JSON."""
    import json

    from ridgeline.analysis.evaluate import read_text

    text = read_text(file)
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{option} {file} is not JSON ({error}): give a file with a JSON schema") from None
    return text


def counted_format(weights: str) -> str | None:
    """The format that --weights asks for, None for the config's. Random or not, the count is the same."""
    return None if weights in ("auto", "random") else weights.removeprefix("random:")


def formats(weights: str, device: str) -> list[str]:
    """The weight formats in a list like ``bf16,int8``, each of which can be run on the device."""
    from ridgeline.loading import FORMATS, GPU_FORMATS

    known = FORMATS if device == "cpu" else (*FORMATS, *GPU_FORMATS)
    formats = [name.strip() for name in weights.split(",")]
    for name in formats:
        if name not in ("auto", *known):
            on_gpu = " on the cpu" if name in GPU_FORMATS else ""
            raise InputError(
                f"--weights {name!r} cannot be evaluated{on_gpu}: choose among auto, {', '.join(known)}"
            )
    return formats


def texts(file: Path | None, heldout: bool) -> tuple[str, list[str]]:
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


def evaluated(model: str, weights: str, texts: list[str], device: str = "cpu"):
    """The evaluation in one format; its weights leave memory before the next one's come."""
    loaded = load(model, weights, device)
    from ridgeline.analysis.evaluate import evaluate as run
    from ridgeline.report.tables import progress

    with progress(errors()) as report:
        return run(loaded, texts, progress=report)


def trace_engine(loaded: Any, computing: int, file: Path, progress: Callable[[str, float], None]) -> None:
    """Watch a small engine run on so many threads, and write its timeline."""
    from ridgeline.analysis.observe import observe
    from ridgeline.hardware.threads import threads
    from ridgeline.report.chrome_trace import write_chrome_trace

    with threads(computing):
        timeline = observe(loaded, progress=progress)
    with file.open("w", encoding="utf-8") as stream:
        write_chrome_trace(timeline, stream)


def refuse_builtin(model: str) -> None:
    from ridgeline.models import builtin_names

    if model.lower() in builtin_names():
        raise InputError(f"{model} is a built-in config without weights: give a folder, a hub id, or demo")


def refuse_given(why: str, options: dict[str, Any]) -> None:
    """Raises InputError for options that are given though they mean nothing to the model."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{why}: it has no {name}, so leave --{name} out")


def prompt(loaded: Any, text: str) -> Any:
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
