"""Make the demo pair from nothing: its tokenizer, its four stages of training, its figures.

Run `python -m training.pair` from the repository's root. The same command goes on where a stopped one was;
what the stages write is kept in a cache folder, and only the finished weights go into the package.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from training import evaluate, tokenizer
from training.data import default_cache
from training.stages import STAGES, last_stages
from training.train import command, train


def install(cache: Path) -> None:
    """Put the finished weights of both models beside the package's code."""
    for stage in last_stages():
        shutil.copyfile(cache / stage.name / "model.safetensors", stage.model / "model.safetensors")


def main(
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Folder of tokens and stages.")] = None,
) -> None:
    """Train the demo pair, put it into the package, and print the figures of its model card."""
    torch.set_num_threads(threads)
    cache = cache or default_cache()
    tokenizer.main()
    for stage in STAGES:
        print(json.dumps(asdict(train(stage, cache)), indent=2))
    install(cache)
    evaluate.main()


if __name__ == "__main__":
    command(main)
