"""What is timed on a GPU, and who times it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ridgeline.hardware.timing import Timing

if TYPE_CHECKING:
    import torch

#: ``kernel``: what one more call adds to a CUDA graph. ``issue``: what the host takes to issue a call that
#: the device is done with sooner. ``wall``: from a call to the end of its work, the host waiting.
How = Literal["kernel", "issue", "wall"]


@dataclass(frozen=True)
class Work:
    """Something to time. ``figure`` is a table of :class:`~ridgeline.hardware.gpu_kernels.GpuKernels`, of
    which ``point`` has the sizes, or another figure. ``make`` gives a call on inputs of its own; calls in a
    row take turns with so many that their ``nbytes`` exceed the L2 cache, unless they shall stay in it
    (``stays``)."""

    figure: str
    point: tuple[float, ...]
    make: Callable[[], Callable[[], Any]]
    nbytes: float = 0.0
    how: How = "kernel"
    stays: bool = False

    @property
    def key(self) -> tuple[str, tuple[float, ...]]:
        return self.figure, self.point


@dataclass(frozen=True)
class GpuFacts:
    """What the driver says of a GPU, and the software that drives it. ``l2`` and ``memory`` are bytes,
    ``clock_hz`` is 0 where it is not told."""

    name: str
    units: int
    capability: tuple[int, int]
    memory: float
    l2: float
    clock_hz: float
    driver: str
    cuda: str
    torch: str
    triton: str


class Stopwatch(Protocol):
    """Times work on a ``device``; tests have one that computes."""

    device: torch.device
    facts: GpuFacts

    def time(self, work: Work) -> Timing:
        """Seconds of a call. What cannot run raises."""

    def clock(self) -> float:
        """Seconds that have passed, for budgets."""
