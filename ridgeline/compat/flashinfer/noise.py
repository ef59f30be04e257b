"""Drawing tokens with counted noise, from FlashInfer's ``generator``, ``seed`` and ``offset``."""

from __future__ import annotations

import torch

from ridgeline import kernels
from ridgeline.errors import InputError
from ridgeline.kernels.checks import describe

#: Rows and offsets share an int64: an offset counts in its upper half.
_ROWS = 1 << 32
MOST_OFFSET = (1 << 31) - 1

Seed = int | torch.Tensor


def draw(
    logits: torch.Tensor,
    generator: torch.Generator | None,
    seed: Seed | None,
    offset: Seed | None,
    **filters: object,
) -> torch.Tensor:
    """A token for each row of float32 ``logits`` [rows, vocab], -inf where there is none: int64 [rows].

    ``filters`` are top_k, top_p and min_p of :func:`ridgeline.kernels.sample`.
    """
    seeds, positions = counters(len(logits), generator, seed, offset)
    return kernels.sample(logits.contiguous(), 1.0, seeds.flatten(), positions.flatten(), **filters)


def counters(
    rows: int, generator: torch.Generator | None, seed: Seed | None, offset: Seed | None, draws: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the noise of each row's draws is a function of: (seeds, positions), int64 [rows, draws] each.

    A position is (offset, number of the draw in the call). Without a ``seed`` one is taken from
    ``generator``, or PyTorch's own.
    """
    if seed is None:
        if offset is not None:
            raise InputError("offset is given without a seed; give both, or a generator")
        seed = torch.randint((1 << 63) - 1, (), generator=generator)
    elif generator is not None:
        raise InputError("generator is given with a seed; give one of the two")
    seeds, offsets = _each("seed", seed, rows), _each("offset", 0 if offset is None else offset, rows)
    if rows and not 0 <= int(offsets.min()) <= int(offsets.max()) <= MOST_OFFSET:
        raise InputError(f"offset is {offset}; give numbers from 0 to {MOST_OFFSET}")
    numbers = torch.arange(rows * draws).view(rows, draws)
    return seeds[:, None].expand(rows, draws), offsets[:, None] * _ROWS + numbers


def _each(name: str, value: Seed, rows: int) -> torch.Tensor:
    """int64 [rows] from a number, or [1] or [rows] of them."""
    if not isinstance(value, torch.Tensor):
        if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
            raise InputError(f"{name} is {value!r}; give an int of 64 bits or a tensor of them")
        return torch.full((rows,), value)
    whole = value.dtype in (torch.int32, torch.int64, torch.uint64)
    if not whole or value.shape not in ((), (1,), (rows,)) or value.device.type != "cpu":
        raise InputError(f"{name} is {describe(value)}; give int64 [1] or [{rows}] on the CPU")
    return value.to(torch.int64).expand(rows)
