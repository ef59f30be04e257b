"""Held-out bits per byte of the demo model as it ships, by the definition of `ridgeline eval`.

Run `python -m training.evaluate` from the repository's root.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from ridgeline.analysis.evaluate import evaluate
from ridgeline.demo.heldout import held_out_texts
from ridgeline.loading import load
from training.tokenizer import MODEL_FOLDER
from training.train import command


def main(folder: Annotated[Path, typer.Argument(help="Model folder.")] = MODEL_FOLDER) -> None:
    """Print the held-out bits per byte, computed in float32 from the weights as stored."""
    found = evaluate(load(folder, weights="fp32"), list(held_out_texts().values()))
    figures = {
        "held_out_files": found.documents,
        "held_out_bytes": found.bytes,
        "bytes_per_token": round(found.bytes / found.tokens, 3),
        "bits_per_byte": round(found.bits_per_byte, 4),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    command(main)
