"""What the demo pair's model card reports, measured on the held-out files.

Run `python -m training.evaluate` from the repository's root; it takes some minutes.

- `bits_per_byte`: by the definition of `ridgeline eval`, in float32 from the weights as stored.
- `xz_bits_per_byte`: 8 x the size of all held-out files together under `xz -9`, by their own size.
- `accepted_of_4`: the tokens of a proposal of 4 that the target accepts (`training/agreement.py`).
- `bodies_that_parse`: the share of the functions completed by the target that parse (`training/bodies.py`),
  at the sampling that its folder suggests.

The last two run in bfloat16, as the pair ships.
"""

import json
import lzma
from pathlib import Path
from typing import Annotated

import typer

from ridgeline.analysis.evaluate import evaluate
from ridgeline.demo.heldout import held_out_texts
from ridgeline.loading import load
from training.agreement import agreement
from training.bodies import complete_bodies
from training.data import SEPARATOR
from training.tokenizer import DRAFT_FOLDER, MODEL_FOLDER
from training.train import command


def xz_bits_per_byte(texts: list[str]) -> float:
    """What `xz -9` makes of all texts together: compressed bits by bytes."""
    together = "".join(texts).encode()
    return 8 * len(lzma.compress(together, preset=9)) / len(together)


def main(
    target: Annotated[Path, typer.Argument(help="Folder of the target.")] = MODEL_FOLDER,
    draft: Annotated[Path, typer.Argument(help="Folder of the draft.")] = DRAFT_FOLDER,
) -> None:
    """Print the figures of the model card."""
    texts = list(held_out_texts().values())
    bits = {folder: evaluate(load(folder, weights="fp32"), texts).bits_per_byte for folder in (target, draft)}
    xz = xz_bits_per_byte(texts)
    models = load(target), load(draft)
    documents = [[SEPARATOR, *models[0].tokenizer.encode(text)] for text in texts]
    agreed = agreement(*models, documents)
    bodies = complete_bodies(models[0], texts)
    figures = {
        "xz_bits_per_byte": round(xz, 4),
        "target_bits_per_byte": round(bits[target], 4),
        "target_below_xz": f"{1 - bits[target] / xz:.1%}",
        "draft_bits_per_byte": round(bits[draft], 4),
        "draft_above_target": f"{bits[draft] / bits[target] - 1:.1%}",
        f"accepted_of_{agreed.proposal}": round(agreed.accepted, 3),
        "places": agreed.places,
        "bodies": bodies.functions,
        "bodies_that_parse": f"{bodies.share:.1%}",
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    command(main)
