"""Matrix products as the cpu reading calls them, by rows and weight size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ridgeline.hardware.kernels import LinearTable
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import Probe, Timings
from ridgeline.ops.formats import get_format
from ridgeline.ops.protocol import Weight


def linear_probes(
    dtype: str, rows: Sequence[int], widths: Sequence[int], ring: Ring, prepare: Callable[[], tuple[()]]
) -> list[Probe]:
    """Square weights; figures ``kernels.linear.DTYPE.warm[ROWS, WIDTH]``, with the same weight at every
    call, and ``.fresh[...]``, with one that comes from memory."""
    import torch

    from ridgeline.ops.cpu import Cpu
    from ridgeline.ops.torch_batch import TORCH_DTYPE

    ops = Cpu(TORCH_DTYPE[dtype])

    def probe(place: str, n: int, width: int, piece: Callable[..., torch.Tensor]) -> Probe:
        x, shape = torch.rand(n, width).to(ops.dtype), (width, width)

        def weight() -> tuple[Weight]:
            prepare()
            return (Weight("weight", shape, dtype, piece(shape, ops.dtype)),)

        def product(weight: Weight) -> torch.Tensor:
            return ops.linear(x, weight)

        return Probe(_figure(dtype, place, n, width), product, prepare=weight)

    places = (("warm", ring.keep), ("fresh", ring.take))
    return [probe(place, n, w, piece) for place, piece in places for w in widths for n in rows]


def read_linear(timings: Timings, dtype: str, rows: Sequence[int], widths: Sequence[int]) -> LinearTable:
    """The table as measured."""

    def table(place: str) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(timings.seconds(_figure(dtype, place, n, w)) for w in widths) for n in rows)

    weight_bytes = tuple(float(get_format(dtype).nbytes((w, w))) for w in widths)
    return LinearTable(tuple(rows), weight_bytes, table("warm"), table("fresh"))


def _figure(dtype: str, place: str, rows: int, width: int) -> str:
    return f"kernels.linear.{dtype}.{place}[{rows}, {width}]"
