"""How fast each level of the memory hierarchy is read, by PyTorch's fastest reading kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ridgeline.hardware.caches import Cache
from ridgeline.hardware.device import Level
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import Probe, Timings

if TYPE_CHECKING:
    import torch

MEMORY = "memory"
#: Bytes that a call reads of a cache, in each thread: enough to hide what the call itself costs.
BYTES_A_CALL = 1 << 23
#: Rows that memory is split into, in each thread.
ROWS_OF_MEMORY = 16


def bandwidth_probes(caches: Sequence[Cache], ring: Ring, threads: int) -> list[Probe]:
    """Reads of every cache and of memory; figures ``levels.NAME`` in bytes.

    Every thread reads half of one instance of a cache over and over, so that a core's own caches
    are read by their core and a shared one by all. Memory is the whole ring, once.
    """
    probes = []
    for cache in caches:
        nbytes = min(cache.size // 2, ring.memory.numel()) // 64 * 64
        repeats = threads * max(BYTES_A_CALL // nbytes, 1)
        probes += _reads(f"levels.{cache.name}", ring.memory[:nbytes].expand(repeats, nbytes))
    rows = threads * ROWS_OF_MEMORY
    columns = ring.memory.numel() // rows // 64 * 64
    probes += _reads(f"levels.{MEMORY}", ring.memory[: rows * columns].view(rows, columns))
    return probes


def _reads(figure: str, rows: torch.Tensor) -> list[Probe]:
    """Reductions of every row of a uint8 matrix, which may repeat one row: its bytes taken as other
    numbers, because how fast PyTorch reduces depends on their type. Rows keep all threads busy."""
    import torch

    floats, integers = rows.view(torch.float32), rows.view(torch.int64)
    kernels = (lambda: floats.sum(1), lambda: integers.sum(1), lambda: integers.amax(1))
    twin = "" if figure == f"levels.{MEMORY}" else None
    return [Probe(figure, kernel, work=rows.numel(), twin=twin) for kernel in kernels]


def read_levels(
    timings: Timings, caches: Sequence[Cache], threads: int, memory_bytes: int
) -> tuple[Level, ...]:
    """The levels as measured. One that is no larger than a nearer one (a last-level cache that holds
    less than the cores' own together) serves nothing of its own and is left out."""
    levels = []
    for cache in caches:
        capacity = cache.capacity(threads)
        if capacity > max((level.capacity for level in levels), default=0):
            levels.append(Level(cache.name, capacity, timings.rate(f"levels.{cache.name}")))
    return growing((*levels, Level(MEMORY, memory_bytes, timings.rate(f"levels.{MEMORY}"))))


def growing(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Each level at least as fast as all farther ones. What holds for a farther level holds for a
    nearer one, so a lower rate says that the measurement was disturbed or its kernel bound."""
    fastest, raised = 0.0, []
    for level in reversed(levels):
        fastest = max(fastest, level.bandwidth)
        raised.append(Level(level.name, level.capacity, fastest))
    return tuple(reversed(raised))
