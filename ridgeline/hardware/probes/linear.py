"""Linear layers of the cpu reading, by the format of their weights, rows and weight size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ridgeline.hardware.kernels import LinearTable
from ridgeline.hardware.probes.passes import plain, recorded
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import KernelProbe, Timings
from ridgeline.ops.batch import Batch, Span
from ridgeline.ops.formats import get_format, packed_shape
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Weight

#: The weight's number in the pass, after the table's, and its product's, after the embedding.
WEIGHT = PRODUCT = 1


def linear_probes(
    format: str, rows: Sequence[int], widths: Sequence[int], ring: Ring, between: Callable[[], Sequence[Any]]
) -> list[KernelProbe]:
    """Square weights; figures ``kernels.linear.FORMAT.warm[ROWS, WIDTH]``, with the same weight at every
    call, and ``.fresh[...]``, with one that comes from memory. ``between`` runs before each call."""
    probes = []
    for width in widths:
        layer = _Layer(format, width, ring)
        for place, aim in (("warm", layer.stay), ("fresh", layer.move)):
            for n in rows:

                def prepare(aim: Callable[[], None] = aim) -> Sequence[Any]:
                    aim()
                    return between()

                call = partial(layer.seconds, n)
                probes.append(KernelProbe(_figure(format, place, n, width), call, prepare=prepare))
    return probes


class _Layer:
    """A linear layer whose weight lies in a ring, whatever numbers that holds there."""

    def __init__(self, format: str, width: int, ring: Ring) -> None:
        import torch

        from ridgeline.kernels.linear import PackedLinear, packed_bytes

        shape = (width, width)
        take = ((packed_bytes(shape, format),), torch.uint8)
        self._same, self._take = ring.keep(*take), partial(ring.take, *take)
        table = plain("embedding", 1, width)
        weight = Weight("weight", shape, format, PackedLinear(self._same, shape, format))

        def forward(ops: Ops, batch: Batch) -> Any:
            # The result is no output of the pass: those are new memory at every step.
            return ops.take_rows(ops.linear(ops.embed(batch.ids, table), weight), batch.logit_rows)

        self._replay = recorded(forward)

    def stay(self) -> None:
        """The next call reads the weight of every such call."""
        self._replay.exchange(WEIGHT, self._same)

    def move(self) -> None:
        """The next call reads a weight that is out of every cache."""
        self._replay.exchange(WEIGHT, self._take())

    def seconds(self, rows: int) -> float:
        return self._replay.profile([0] * rows, [Span(rows)], "last")[PRODUCT].total


def read_linear(timings: Timings, format: str, rows: Sequence[int], widths: Sequence[int]) -> LinearTable:
    """The table as measured."""

    def table(place: str) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(timings.seconds(_figure(format, place, n, w)) for w in widths) for n in rows)

    stored = get_format(format)
    weight_bytes = tuple(float(stored.nbytes(packed_shape((w, w), format, gated=False))) for w in widths)
    return LinearTable(tuple(rows), weight_bytes, table("warm"), table("fresh"))


def _figure(format: str, place: str, rows: int, width: int) -> str:
    return f"kernels.linear.{format}.{place}[{rows}, {width}]"
