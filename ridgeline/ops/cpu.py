"""The cpu reading: native kernels on packed weights.

Activations are float32 from operator to operator; weights and cache have formats of their own. A linear
layer is one kernel with its bias, activation and residual. Norms, embeddings of their own and attention are
PyTorch's still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from ridgeline.kernels.linear import PackedLinear, linear
from ridgeline.ops.packed import packed_rows
from ridgeline.ops.protocol import Activation, Layer, Mask, Score, Weight
from ridgeline.ops.torch_cpu import TorchCpu, attention
from ridgeline.ops.trace import CPU


class Cpu(TorchCpu):
    """The operators on the native kernels; weights of linear layers are
    :class:`~ridgeline.kernels.linear.PackedLinear`."""

    lowering = CPU

    def __init__(self) -> None:
        super().__init__(torch.float32)

    def embed(self, ids: torch.Tensor, weight: Weight, *, offset: int = 0) -> torch.Tensor:
        if isinstance(weight.data, PackedLinear):
            return packed_rows(weight.data, ids + offset)
        return super().embed(ids, weight, offset=offset)

    def linear(
        self,
        x: torch.Tensor,
        weight: Weight,
        *,
        bias: Weight | None = None,
        activation: Activation | None = None,
        residual: torch.Tensor | None = None,
        name: str | None = None,
    ) -> torch.Tensor:
        return linear(x, weight.data, None if bias is None else bias.data, activation, residual)

    def repeat(
        self, layers: Sequence[Layer], body: Callable[[Layer, torch.Tensor], torch.Tensor], x: torch.Tensor
    ) -> torch.Tensor:
        with one_torch_thread():
            return super().repeat(layers, body, x)

    def attend_sequence(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask, score: Score
    ) -> torch.Tensor:
        """In the cache's dtype, so that a long cache is not converted."""
        return attention(q.to(keys.dtype), keys, values, mask, score).to(self.dtype)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Inside, PyTorch computes with the caller's thread alone. Its workers spin for milliseconds after an
    operator, on the cores that the native kernels need next: a step would take six times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
