"""The unfused twin of the GPU's mixture of experts: one row and one expert at a time, in plain PyTorch."""

from __future__ import annotations

import torch

from ridgeline.kernels.triton import naive
from ridgeline.kernels.triton.experts import GpuExperts


def mixture(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: GpuExperts,
    down: GpuExperts,
    activation: str,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`ridgeline.kernels.triton.mixture`; on a GPU every choice is waited for."""
    total = torch.zeros_like(x)
    for row, (numbers, shares) in enumerate(zip(experts.tolist(), weights, strict=True)):
        for number, share in zip(numbers, shares, strict=True):
            both = (part[number].unpack().to(x.dtype) for part in (gate_up, down))
            hidden = naive.linear(x[row : row + 1], next(both), None, activation)
            total[row] += share.to(x.dtype) * naive.linear(hidden, next(both))[0]
    return total if residual is None else residual + total
