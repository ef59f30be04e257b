"""Linear layers of the cpu reading, by the format of their weights, rows and weight size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

from ridgeline.hardware.kernels import ASPECT, LinearTable
from ridgeline.hardware.probes.passes import plain, recorded
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import KernelProbe, Timings
from ridgeline.ops.batch import Batch, Span
from ridgeline.ops.formats import get_format, packed_shape
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Weight

#: The weight's number in the pass, after the table's, and its product's, after the embedding.
WEIGHT = PRODUCT = 1
#: Beyond so many rows a product takes as long whichever cache its weight is in.
MOST_ROWS_OF_LAST = 64
#: Inputs of the weight that a whole ring is read as, and outputs that are packed together.
SWEEP_INPUTS, PANEL = 1024, 32


def linear_probes(
    format: str,
    rows: Sequence[int],
    widths: Sequence[int],
    ring: Ring,
    between: Callable[[], Sequence[Any]],
    last: Ring | None = None,
    own: float = inf,
) -> list[KernelProbe]:
    """Square weights; figures ``kernels.linear.FORMAT.warm[ROWS, WIDTH]``, with the same weight at every
    call, ``.fresh[...]``, with one that comes from memory, and ``.last[...]``, with one of the ring ``last``,
    which the last-level cache holds, for few rows and weights of at most the ``own`` bytes of the cores' own
    caches. ``between`` runs before each call."""
    probes = []
    read_last = _Sweep(last).read if last else None
    for width in widths:
        layer = _Layer(format, (width, width), ring, last)
        of_last = [n for n in rows if n <= MOST_ROWS_OF_LAST] if last and layer.bytes <= own else []
        for place, aim, ns in (
            ("warm", layer.stay, rows),
            ("fresh", layer.move, rows),
            ("last", layer.move_near, of_last),
        ):
            for n in ns:

                def prepare(aim: Callable[[], None] = aim, near: bool = place == "last") -> Sequence[Any]:
                    if near and read_last:
                        read_last()
                    aim()
                    return between()

                twin = _figure(format, "warm", n, width) if place == "fresh" else None
                figure, call = _figure(format, place, n, width), partial(layer.seconds, n)
                probes.append(KernelProbe(figure, call, prepare=prepare, twin=twin, memory=layer.bytes))
    return probes


class _Sweep:
    """Reads a whole ring as a weight: then the last-level cache holds it, and the nearer ones only its end.
    Without that, what a few calls of a round leave unread is out of every cache by the next round."""

    def __init__(self, ring: Ring) -> None:
        panel = 2 * PANEL * SWEEP_INPUTS
        self._ring = _Layer("bf16", (ring.memory.numel() // panel * PANEL, SWEEP_INPUTS), ring)
        self._ring.stay()

    def read(self) -> None:
        self._ring.seconds(1)


def shaped_probes(
    format: str, rows: int, widths: Sequence[int], ring: Ring, between: Callable[[], Sequence[Any]]
) -> list[KernelProbe]:
    """Weights of as many elements that are not square, ``rows`` rows of activations; figures
    ``kernels.linear.FORMAT.inputs[WIDTH]`` with more inputs than outputs, ``.outputs[WIDTH]`` the other way
    round, and ``.square[WIDTH]``."""
    probes = []
    for width in widths:
        for name, shape in _shapes(width).items():
            layer = _Layer(format, shape, ring)

            def prepare(layer: _Layer = layer) -> Sequence[Any]:
                layer.move()
                return between()

            figure = f"kernels.linear.{format}.{name}[{width}]"
            probes.append(KernelProbe(figure, partial(layer.seconds, rows), prepare=prepare))
    return probes


def _shapes(width: int) -> dict[str, tuple[int, int]]:
    """Outputs and inputs."""
    side = round(ASPECT**0.5)
    return {
        "inputs": (width // side, width * side),
        "outputs": (width * side, width // side),
        "square": (width, width),
    }


class _Layer:
    """A linear layer whose weight lies in a ring, whatever numbers that holds there."""

    def __init__(self, format: str, shape: tuple[int, int], ring: Ring, last: Ring | None = None) -> None:
        import torch

        from ridgeline.kernels.linear import PackedLinear, packed_bytes

        self.bytes = packed_bytes(shape, format)
        take = ((self.bytes,), torch.uint8)
        self._same, self._take = ring.keep(*take), partial(ring.take, *take)
        self._take_near = partial((last or ring).take, *take)
        table = plain("embedding", 1, shape[1])
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

    def move_near(self) -> None:
        """The next call reads a weight that is in the last-level cache."""
        self._replay.exchange(WEIGHT, self._take_near())

    def seconds(self, rows: int) -> float:
        return self._replay.profile([0] * rows, [Span(rows)], "last")[PRODUCT].total


def read_linear(
    timings: Timings, format: str, rows: Sequence[int], widths: Sequence[int], shaped: Sequence[int] = ()
) -> LinearTable:
    """The table as measured; where the last-level cache was not tried, it is as any other."""

    def cell(place: str, n: int, width: int) -> float:
        warm, figure = _figure(format, "warm", n, width), _figure(format, place, n, width)
        if place != "last":
            return timings.seconds(figure)
        return max(timings.seconds(f) for f in (warm, figure) if f in timings)

    def table(place: str) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(cell(place, n, w) for w in widths) for n in rows)

    def factors(name: str) -> tuple[float, ...]:
        figures = ((f"kernels.linear.{format}.{n}[{w}]" for n in (name, "square")) for w in shaped)
        return tuple(timings.seconds(one) / timings.seconds(square) for one, square in figures)

    return LinearTable(
        tuple(rows),
        tuple(_stored_bytes(format, w) for w in widths),
        table("warm"),
        table("fresh"),
        table("last"),
        tuple(_stored_bytes(format, w) for w in shaped),
        factors("inputs"),
        factors("outputs"),
    )


def _stored_bytes(format: str, width: int) -> float:
    """Of a square weight."""
    return float(get_format(format).nbytes(packed_shape((width, width), format, gated=False)))


def _figure(format: str, place: str, rows: int, width: int) -> str:
    return f"kernels.linear.{format}.{place}[{rows}, {width}]"
