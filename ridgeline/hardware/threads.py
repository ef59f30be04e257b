"""How many threads compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Inside, PyTorch and the native kernels compute with ``number`` threads each; then as before.

    Raises InputError unless ``number`` is a whole number from 1 to 1024.
    """
    import torch

    from ridgeline import kernels

    before = torch.get_num_threads(), kernels.threads()
    kernels.set_threads(number)
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        kernels.set_threads(before[1])
