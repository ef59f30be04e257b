"""What the tests of both libraries' shims draw, and how near is near enough."""

from __future__ import annotations

import torch

from tests.kernels import attention_twin

#: Pairs of query and key lengths, and head sizes, from FlashAttention's own tests; the last are ours.
LENGTHS = [(1, 239), (3, 799), (113, 203), (128, 64), (255, 256), (256, 255), (5, 0), (0, 5)]
DIMS = [32, 40, 59, 64, 96, 111, 128, 192, 256]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def int32(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def near(got: torch.Tensor, want: torch.Tensor) -> None:
    """1e-5 of the largest element for float32; for bfloat16 what rounding weights and result costs."""
    assert got.shape == want.shape
    tolerance = 1e-5 if got.dtype == torch.float32 else 1e-2
    largest = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=tolerance * largest + 1e-30)


def attention_each(
    queries: list[torch.Tensor], keys: list[torch.Tensor], values: list[torch.Tensor], **options
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """float64 outputs [rows, heads, dim] and natural LSE [heads, rows] of sequences, one by one."""
    slopes = options.pop("alibi_slopes", None)
    results = []
    for i, tensors in enumerate(zip(queries, keys, values)):
        own = slopes if slopes is None or slopes.dim() == 1 else slopes[i]
        results.append(attention_twin.attention(*tensors, alibi_slopes=own, **options))
    return [out for out, _ in results], [lse for _, lse in results]
