"""What parts cost where a model's weights pass through the caches before each of them.

Between two norms of a large model lie the weights of several products: by then caches hold neither the
norm's code nor all that it reads. In a small model they do (see :mod:`parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ridgeline.hardware.kernels import Affine
from ridgeline.hardware.probes.parts import LARGE, SMALL, bytes_by_part, fit
from ridgeline.hardware.probes.passes import FORMAT, WIDE, plain, recorded
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import KernelProbe, Timings
from ridgeline.ops.batch import Batch, Span
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Norm, Weight

#: Columns between the two products before a part: their weights are 32 MB, as in middling models.
HIDDEN = 8192
#: The parts in the order of their pass, each after two products.
STREAMED = ("norm", "norm.layer", "add")
_WIDTH = WIDE.query * WIDE.dim


def streamed_probes(
    ring: Ring, between: Callable[[], Sequence[Any]], hidden: int = HIDDEN
) -> list[KernelProbe]:
    """Figures ``kernels.streamed.PART[ROWS]``. ``between`` runs before each call."""
    layer = _Streaming(ring, hidden)

    def prepare() -> Sequence[Any]:
        layer.move()
        return between()

    return [
        KernelProbe(_figure(part, rows), partial(layer.seconds, rows, number), prepare=prepare)
        for rows in (SMALL, LARGE)
        for number, part in enumerate(STREAMED)
    ]


def with_streamed(parts: Mapping[str, Affine], timings: Timings, fastest: float) -> dict[str, Affine]:
    """The parts with what they cost behind streamed weights, never less than without them."""
    small, large = bytes_by_part(SMALL), bytes_by_part(LARGE)
    found = dict(parts)
    for part in STREAMED:
        few, many = (timings.seconds(_figure(part, rows)) for rows in (SMALL, LARGE))
        line = fit(small[part], few, large[part], many, fastest)
        known = parts[part]
        found[part] = replace(
            known,
            fresh_overhead=max(line.overhead, known.overhead),
            fresh_throughput=min(line.throughput, known.throughput),
        )
    return found


def forward_of(weights: Sequence[Weight]) -> Callable[[Ops, Batch], Any]:
    """The pass: after the table's, two products with ``weights`` and a part again and again."""
    vector, table = plain("norm", _WIDTH), plain("embedding", LARGE, _WIDTH)

    def forward(ops: Ops, batch: Batch) -> Any:
        products = iter(weights)

        def streamed(x: Any) -> Any:
            return ops.linear(ops.linear(x, next(products)), next(products))

        x = ops.norm(streamed(ops.embed(batch.ids, table)), Norm("rms", vector, 1e-5))
        x = streamed(ops.norm(streamed(x), Norm("layer", vector, 1e-5, vector)))
        return ops.take_rows(ops.add(x, x), batch.logit_rows)

    return forward


class _Streaming:
    """The pass, whose products read weights that come from memory."""

    def __init__(self, ring: Ring, hidden: int) -> None:
        import torch

        from ridgeline.kernels.linear import PackedLinear, packed_bytes

        shapes = ((hidden, _WIDTH), (_WIDTH, hidden)) * len(STREAMED)
        self._takes = [partial(ring.take, (packed_bytes(s, FORMAT),), torch.uint8) for s in shapes]
        weights = [
            Weight(f"weight{i}", shape, FORMAT, PackedLinear(take(), shape, FORMAT))
            for i, (shape, take) in enumerate(zip(shapes, self._takes, strict=True))
        ]
        self._numbers = [1 + i + (i >= 2) for i in range(len(weights))]  # the norm's vector is met third
        self._replay = recorded(forward_of(weights))

    def move(self) -> None:
        """The next call reads weights that are out of every cache."""
        for number, take in zip(self._numbers, self._takes, strict=True):
            self._replay.exchange(number, take())

    def seconds(self, rows: int, number: int) -> float:
        """Of one part, each of which comes after two products."""
        return self._replay.profile(range(rows), [Span(rows)], range(rows))[3 * (number + 1)].total


def _figure(part: str, rows: int) -> str:
    return f"kernels.streamed.{part}[{rows}]"
