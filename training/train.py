"""Train one stage of the demo pair (`training/stages.py`); `training.pair` runs them all.

From the repository's root:

    python -m training.train shallow-target

The same command goes on from where a stopped run left its last checkpoint.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from ridgeline.errors import InputError
from ridgeline.models.registry import load_config
from training.corpus import collect
from training.data import default_cache, tokenise
from training.distil import distillation_from
from training.grow import grown
from training.run import Run, follow, next_token
from training.stages import Stage, stage_named

FOLDER_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Figures:
    """What a stage took; `cpu_minutes` are those of its steps."""

    stage: str
    parameters: int
    steps: int
    tokens_seen: int
    tokens_in_library: int
    tokens_in_mixture: int
    cpu_minutes: float


def train(stage: Stage, cache: Path) -> Figures:
    """Run `stage`, or what is left of it, and save its model in the folder of its name in `cache`.

    Raises InputError when a stage that it builds on has not been run.
    """
    from tokenizers import Tokenizer

    folder = _prepare(stage, cache)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library = tokenise(collect(), tokenizer, cache).training
    mixture = tokenise(collect(stage.recipe.packages), tokenizer, cache).training
    run = Run(
        stage.recipe,
        load_config(folder),
        library,
        mixture,
        objective=distillation_from(_done(stage.teacher, cache), stage.truth)
        if stage.teacher
        else next_token,
        start=grown(_done(stage.begins_from, cache), stage.layers) if stage.begins_from else None,
    )
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        run.load(checkpoint)
    follow(run, checkpoint)
    run.parameters.save(folder)
    return Figures(
        stage.name,
        sum(parameter.numel() for parameter in run.parameters.all()),
        run.steps,
        run.tokens,
        len(library),
        len(mixture),
        round(run.seconds / 60, 2),
    )


def _prepare(stage: Stage, cache: Path) -> Path:
    """The stage's folder with all of its model's files but the weights."""
    folder = cache / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in FOLDER_FILES:
        shutil.copyfile(stage.model / name, folder / name)
    config = json.loads((stage.model / "config.json").read_text())
    config["num_hidden_layers"] = stage.layers
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def _done(name: str, cache: Path) -> Path:
    folder = cache / name
    if not (folder / "model.safetensors").exists():
        raise InputError(f"{folder} has no weights yet: run stage {name} first")
    return folder


def main(
    stage: Annotated[str, typer.Argument(help="Its name.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Folder of tokens and stages.")] = None,
) -> None:
    """Train one stage of the demo pair. Example: python -m training.train shallow-target"""
    torch.set_num_threads(threads)
    print(json.dumps(asdict(train(stage_named(stage), cache or default_cache())), indent=2))


def command(function: Callable[..., None]) -> None:
    """Run `function` as a command line; bad input prints its one line and exits with code 2."""
    try:
        typer.run(function)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    command(main)
