"""Weights that train: the demo model's parameters, made for a family's `build` and saved as a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ridgeline.models.model import Source, matrix_shape, vector_shape
from ridgeline.ops.records import Weight

INITIAL_STD = 0.02


@dataclass(frozen=True)
class Parameter:
    """A float32 tensor that trains, and the checkpoint's tensors that it stacks along its rows."""

    data: torch.nn.Parameter
    sources: tuple[Source, ...]


class Parameters:
    """Makes a model's weights from noise: N(0, 0.02) matrices and tables, constant vectors.

    Matrices and the rest are kept apart because they are optimised differently.
    """

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self.matrices: list[Parameter] = []
        self.tables: list[Parameter] = []
        self.vectors: list[Parameter] = []

    def matrix(self, name: str, *sources: Source, transposed: bool = False) -> Weight:
        return self._weight(self.matrices, name, sources, self._noise(matrix_shape(sources)))

    def table(self, name: str, source: Source) -> Weight:
        return self._weight(self.tables, name, (source,), self._noise(source.shape))

    def vector(self, name: str, *sources: Source, fill: float) -> Weight:
        return self._weight(self.vectors, name, sources, torch.full(vector_shape(sources), fill))

    def all(self) -> list[torch.nn.Parameter]:
        return [parameter.data for parameter in (*self.matrices, *self.tables, *self.vectors)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors by name, float32: views of the parameters' rows."""
        tensors = {}
        for parameter in (*self.tables, *self.matrices, *self.vectors):
            parts = parameter.data.detach().split([source.shape[0] for source in parameter.sources])
            tensors |= {source.name: part for source, part in zip(parameter.sources, parts, strict=True)}
        return tensors

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Overwrite every parameter with the checkpoint's tensors."""
        for name, part in self.tensors().items():
            part.copy_(tensors[name])

    def save(self, folder: Path) -> None:
        """Write model.safetensors in bfloat16."""
        from safetensors.torch import save_file

        rounded = {name: part.to(torch.bfloat16).contiguous() for name, part in self.tensors().items()}
        path = folder / "model.safetensors"
        save_file(rounded, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes the file readable by its owner only

    def _noise(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape).normal_(0.0, INITIAL_STD, generator=self._random)

    def _weight(
        self, group: list[Parameter], name: str, sources: tuple[Source, ...], values: torch.Tensor
    ) -> Weight:
        data = torch.nn.Parameter(values)
        group.append(Parameter(data, sources))
        return Weight(name, tuple(values.shape), "fp32", data)
