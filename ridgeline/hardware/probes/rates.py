"""How fast this machine computes: matrix products, element-wise work, exponentials, empty calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ridgeline.hardware.timing import Probe
from ridgeline.ops.formats import product_format

if TYPE_CHECKING:
    import torch

#: Width of the products that show what a dtype is worth, and for how long they are tried.
TRIAL_WIDTH, TRIAL_SECONDS = 384, 0.1
#: On a busy machine few calls run undisturbed: so many are tried, within reason.
TRIALS, LONGEST_TRIAL = 40, 0.6
#: Elements of element-wise work: the first size stays in the cores' own caches.
ELEMENTS = (1 << 17, 1 << 20)
#: x * clamp(x + 3, 0, 6) / 6: an addition, two comparisons and two multiplications.
HARDSWISH_OPERATIONS = 5
#: Calls timed together, because one takes hardly longer than reading the clock.
EMPTY_CALLS = 200


def trial_rate(format: str) -> float:
    """FLOP/s of the cpu reading's products with weights in this format, roughly, within a fraction of a
    second on a machine that is any good at it."""
    product, seconds = _product(format, TRIAL_WIDTH), []
    while sum(seconds) < TRIAL_SECONDS or (len(seconds) < TRIALS and sum(seconds) < LONGEST_TRIAL):
        start = perf_counter()
        product()
        seconds.append(perf_counter() - start)
    return 2 * TRIAL_WIDTH**3 / min(seconds)


def matrix_probes(format: str, widths: Sequence[int]) -> list[Probe]:
    """Square products x W^T with weights in ``format``; figure ``matrix.PRODUCT`` in FLOPs, a multiply-add
    being 2, where PRODUCT is what they are multiplied in."""
    figure = f"matrix.{product_format(format)}"
    return [Probe(figure, _product(format, width), work=2 * width**3) for width in widths]


def _product(format: str, width: int) -> Callable[[], Any]:
    import torch

    from ridgeline.kernels import linear, pack_linear

    x, out = torch.rand(width, width), torch.empty(width, width)
    weight = pack_linear(torch.rand(width, width), format)
    return lambda: linear(x, weight, out=out)


def vector_probes(dtype: str) -> list[Probe]:
    """Element-wise work; figure ``vector.DTYPE`` in operations."""
    import torch
    from torch.nn.functional import hardswish

    def probes(count: int) -> list[Probe]:
        x, y, out = (_random((count,), dtype) for _ in range(3))
        kernels = (
            (HARDSWISH_OPERATIONS, lambda: hardswish(x, inplace=True)),
            (2, lambda: torch.addcmul(x, x, y, out=out)),
            (1, lambda: torch.add(x, y, out=out)),
        )
        return [Probe(f"vector.{dtype}", kernel, work=n * count) for n, kernel in kernels]

    return [probe for count in ELEMENTS for probe in probes(count)]


def exp_probes(dtypes: Sequence[str]) -> list[Probe]:
    """Exponentials; figure ``exp_rate``."""
    import torch

    def probe(dtype: str, count: int) -> Probe:
        x, out = _random((count,), dtype), _random((count,), dtype)
        return Probe("exp_rate", lambda: torch.exp(x, out=out), work=count)

    return [probe(dtype, count) for dtype in dtypes for count in ELEMENTS]


def launch_probe() -> Probe:
    """The smallest call of an operator from Python: one element is added; figure ``launch_seconds``."""
    import torch

    x = torch.zeros(1)

    def calls() -> None:
        for _ in repeat(None, EMPTY_CALLS):
            x.add_(x)

    return Probe("launch_seconds", calls, work=EMPTY_CALLS)


def _random(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    import torch

    from ridgeline.ops.torch_batch import TORCH_DTYPE

    return torch.rand(shape).to(TORCH_DTYPE[dtype])
