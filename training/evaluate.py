"""Held-out bits per byte of the demo model as it ships.

Run `python -m training.evaluate` from the repository's root.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from ridgeline.models.model import Model
from ridgeline.models.registry import load_config
from ridgeline.ops.reference import Reference
from training.corpus import collect
from training.data import default_cache, scored_windows, tokenise
from training.tokenizer import MODEL_FOLDER
from training.train import command, losses


def bits_per_byte(model: Model, files: Sequence[np.ndarray], text_bytes: int) -> float:
    """Bits that the model needs for the files' tokens, divided by the bytes of their text.

    files: [tokens] each, the separator first, which is given and not scored. Long files are read in windows
    of the model's length that overlap by half.
    """
    ops = Reference()
    nats = 0.0
    with torch.inference_mode():
        for tokens in files:
            for window, first in scored_windows(tokens, model.config.window):
                nats += losses(model, ops, torch.from_numpy(window[None]))[0, first - 1 :].sum().item()
    return nats / math.log(2) / text_bytes


def main(
    folder: Annotated[Path, typer.Argument(help="Model folder.")] = MODEL_FOLDER,
    cache: Annotated[Path | None, typer.Option(help="Folder of tokens.")] = None,
) -> None:
    """Print the held-out bits per byte, computed in float32 from the weights as stored."""
    from tokenizers import Tokenizer

    from ridgeline.weights.load import load_model

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    corpus = tokenise(collect(), tokenizer, cache or default_cache())
    model = load_model(load_config(folder), folder, "fp32")
    tokens = sum(len(file) - 1 for file in corpus.held_out)
    figures = {
        "held_out_files": len(corpus.held_out),
        "held_out_bytes": corpus.held_out_bytes,
        "bytes_per_token": round(corpus.held_out_bytes / tokens, 3),
        "bits_per_byte": round(bits_per_byte(model, corpus.held_out, corpus.held_out_bytes), 4),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    command(main)
