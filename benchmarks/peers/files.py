"""The model files that contestants share: random weights in TinyLlama-1.1B's shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ridgeline.models.model import Source
    from ridgeline.ops.records import Weight

#: The checkpoint's folder among the model files.
CHECKPOINT = "tinyllama"
#: TinyLlama was trained for 2,048 tokens; this leaves room to generate after 4,096.
WINDOW = 8192
#: What such models are initialised with.
WEIGHT_STD = 0.02


def make_checkpoint(folder: Path) -> Path:
    """A bf16 checkpoint in Hugging Face's format as ``folder``/tinyllama, made if it is not there."""
    from ridgeline.models.registry import config_path

    path = folder / CHECKPOINT
    if not (path / "config.json").is_file():
        tinyllama = json.loads(config_path("tinyllama-1.1b").read_text())
        write_checkpoint({**tinyllama, "max_position_embeddings": WINDOW}, path)
    return path


def write_checkpoint(raw: dict[str, Any], path: Path) -> None:
    """A folder with the config ``raw`` and random bf16 weights for it; the config comes last, as a sign that
    all is there."""
    from safetensors.torch import save_file

    from ridgeline.models import build, read_config

    path.mkdir(parents=True, exist_ok=True)
    tensors = _RandomTensors()
    build(read_config(raw, path.name), tensors)
    save_file(tensors.drawn, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def write_encoder_config(folder: Path) -> Path:
    """``folder``/bert with BERT-base's config, for the model without a language model's head."""
    from ridgeline.models.registry import config_path

    path = folder / "bert"
    path.mkdir(parents=True, exist_ok=True)
    raw = {**json.loads(config_path("bert-base").read_text()), "architectures": ["BertModel"]}
    (path / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    return path


class _RandomTensors:
    """A maker of weights (see ``models.model.WeightMaker``) that draws every tensor of the checkpoint by
    its own name and makes no model of them."""

    def __init__(self) -> None:
        import torch

        self.drawn: dict[str, torch.Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)

    def matrix(self, name: str, *sources: Source, transposed: bool = False) -> Weight:
        import torch

        for source in sources:
            drawn = torch.empty(source.shape).normal_(0.0, WEIGHT_STD, generator=self._generator)
            self.drawn[source.name] = drawn.to(torch.bfloat16)
        return self._nothing(name)

    def table(self, name: str, source: Source) -> Weight:
        return self.matrix(name, source)

    def vector(self, name: str, *sources: Source, fill: float) -> Weight:
        import torch

        for source in sources:
            self.drawn[source.name] = torch.full(source.shape, fill, dtype=torch.bfloat16)
        return self._nothing(name)

    @staticmethod
    def _nothing(name: str) -> Weight:
        from ridgeline.ops.records import Weight

        return Weight(name, (), "bf16")
