"""Random tensors for the tests of GPU kernels, and how results are held to what they should be."""

from __future__ import annotations

import torch

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: Errors of results of N(0, 1) inputs, of the largest element: sums are float32, results rounded once.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def draw(
    seed: int, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def assert_near(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Within ``tolerance`` of the largest element of ``want``, float64 on the CPU."""
    assert got.shape == want.shape
    if want.numel():
        most = tolerance * want.abs().max().item() + 1e-30
        torch.testing.assert_close(got.cpu().double(), want.double(), rtol=0, atol=most)
