"""Memory that is out of every cache by the time it is used again."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Pieces start on a page.
ALIGNMENT = 4096
#: Values are drawn once for so many elements, then repeated: drawing them all would take seconds.
TILE = 1 << 20


class Ring:
    """``nbytes`` of memory handed out piece by piece, round and round.

    Before a piece comes round again nearly the whole ring has been read, so a ring of several times
    the last-level cache holds what only memory can serve. All its bytes are those of small bfloat16
    numbers, which are ordinary numbers in float16 and float32 too: zeros, denormals and NaNs would
    have times of their own.
    """

    def __init__(self, nbytes: int) -> None:
        import torch

        tile = torch.randn(min(TILE, nbytes // 2)).mul_(0.02).to(torch.bfloat16).view(torch.uint8)
        self.memory = tile.repeat(-(-nbytes // tile.numel()))
        self._next = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The next piece, as a tensor. Raises ValueError if it is larger than the ring."""
        nbytes = prod(shape) * dtype.itemsize
        if nbytes > self.memory.numel():
            raise ValueError(f"a ring of {self.memory.numel()} bytes has no piece of {nbytes}")
        if self._next + nbytes > self.memory.numel():
            self._next = 0
        piece = self.memory[self._next : self._next + nbytes]
        self._next += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return piece.view(dtype).view(shape)

    def keep(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A piece that is always the same one, for what a caller uses again and again."""
        return self.memory[: prod(shape) * dtype.itemsize].view(dtype).view(shape)
