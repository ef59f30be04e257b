"""Small packed models of every family, whose biases count and whose layers change what they are given."""

from dataclasses import replace

import torch

from ridgeline.models.model import Model
from ridgeline.weights.load import RandomMaker
from ridgeline.weights.pack import build_packed
from tests.ops.small_models import small

FAMILIES = (
    *("llama-3-8b", "smollm2-135m", "qwen2.5-0.5b", "qwen3-0.6b", "mistral-7b"),
    *("phi-4", "gemma-2-2b", "gemma-3-4b", "pythia-1.4b", "gpt2", "opt-125m", "bert-base"),
    *("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite", "deepseek-v3"),
)
VOCAB = 70


class Lively(RandomMaker):
    """Matrices and tables of N(0, 0.2), vectors that lie by as much around their value."""

    def _draw(self, shape):
        return super()._draw(shape) * 10

    def vector(self, name, *sources, fill):
        weight = super().vector(name, *sources, fill=fill)
        weight.data.add_(self._draw(weight.shape))
        return weight


def packed_model(family: str, format: str, plain: str = "fp32", **changes) -> Model:
    """The family's small model, its weights drawn in float32; ``plain`` is the format beside a quantised
    one."""
    config = replace(small(family, layers=2).config, format=plain, **changes)
    return build_packed(config, Lively(torch.float32), format)


def some_ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))
