"""The samples of the model card: what the demo model makes of ten prompts.

Run `python -m training.samples` from the repository's root; it prints Markdown.
"""

from pathlib import Path
from typing import Annotated

import typer

from ridgeline.loading import load
from training.tokenizer import MODEL_FOLDER
from training.train import command

NEW_TOKENS = 80
# Each ends with a word: a line break and the indentation after it are one token, which a prompt would cut.
PROMPTS = (
    "import os\nimport",
    "class Stack:\n    def push(self, item):\n        self",
    'def read_lines(path):\n    """Return the lines of a text file."""\n    with',
    'def is_prime(n):\n    """Return True if n is a prime number."""\n    if',
    'def parse(self, text):\n    """Split the text into tokens."""\n    tokens = []\n    for',
    "class Reader:\n    def __init__(self, stream, size",
    "    @property\n    def name(self):\n        return",
    "    def test_empty(self):\n        with self",
    "    try:\n        value = int(text)\n    except",
    'if __name__ == "__main__":\n    parser',
)


def main(folder: Annotated[Path, typer.Argument(help="Folder of the model.")] = MODEL_FOLDER) -> None:
    """Print the first sample of every prompt at seed 0, sampled as the model's folder suggests."""
    loaded = load(folder)
    results = loaded.generate(PROMPTS, max_tokens=NEW_TOKENS, sampling=loaded.sampling(seed=0))
    for prompt, result in zip(PROMPTS, results, strict=True):
        print(f"Prompt `{prompt!r}`:\n\n```text\n{prompt}{result.text}\n```\n")


if __name__ == "__main__":
    command(main)
