"""What diffusion Transformers add to the readings on PyTorch: modulation, and rows in another order."""

from __future__ import annotations

import torch

from ridgeline.ops.records import Activation, Weight
from ridgeline.ops.torch_batch import ACTIVATIONS, TorchSpans


class DiffusionOperators:
    """The operators that are alike in all these readings, which mix them in."""

    def activate(self, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        return ACTIVATIONS[activation](x)

    def add_vector(self, x: torch.Tensor, vector: Weight) -> torch.Tensor:
        return (x[:, None] + vector.data.to(x.dtype).view(-1, x.shape[1])).flatten(1)

    def columns(self, x: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        return x.chunk(parts, dim=1)

    def stack_columns(self, x: torch.Tensor, parts: int) -> torch.Tensor:
        return x.reshape(len(x) * parts, -1)

    def unstack_rows(self, x: torch.Tensor, parts: int) -> torch.Tensor:
        return x.view(len(x) // parts, -1)

    def join_columns(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a, b], dim=1)

    def permute_rows(self, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        return self.take_rows(x, order)

    def join_rows(
        self, a: torch.Tensor, b: torch.Tensor, *, first: TorchSpans, second: TorchSpans
    ) -> torch.Tensor:
        sequences = zip(first.pieces(), second.pieces(), strict=True)
        return torch.cat([part for s, t in sequences for part in (a[s[1] : s[2]], b[t[1] : t[2]])])

    def split_rows(
        self, x: torch.Tensor, *, first: TorchSpans, second: TorchSpans
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = [span.rows for pair in zip(first, second, strict=True) for span in pair]
        parts = x.split(sizes)
        return torch.cat(parts[::2]), torch.cat(parts[1::2])


def by_sequence(x: torch.Tensor, spans: TorchSpans) -> torch.Tensor | None:
    """[rows, width] as [sequences, rows of each, width], a view; None if they differ in length."""
    lengths = {span.rows for span in spans}
    return x.view(len(spans.items), *lengths, -1) if len(lengths) == 1 else None


def multiply_by_sequence(x: torch.Tensor, factor: torch.Tensor, spans: TorchSpans) -> torch.Tensor:
    """x times its sequence's ``factor`` [sequences, width], in place."""
    stacked = by_sequence(x, spans)
    if stacked is None:
        return x.mul_(spans.spread(factor))
    return stacked.mul_(factor[:, None]).view(x.shape)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, spans: TorchSpans) -> torch.Tensor:
    """x (1 + scale) + shift, with the vectors [sequences, width] of each row's sequence."""
    stacked = by_sequence(x, spans)
    if stacked is None:
        return torch.addcmul(spans.spread(shift), x, spans.spread(1 + scale))
    return torch.addcmul(shift[:, None], stacked, (1 + scale)[:, None]).view(x.shape)
