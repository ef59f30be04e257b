"""What parts cost in a large model, where weights pass through the caches before each of them.

Between two norms of a large model lie the weights of several products: by then the caches hold neither the
norm's code nor all that it reads. How fast a part is goes by how much was touched since its input was
written. In a small model all is near (see :mod:`parts`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from ridgeline.hardware.kernels import Affine
from ridgeline.hardware.probes.parts import LARGE, PACKED, SMALL, WIDTH, bytes_by_part, fit, packed_bytes_of
from ridgeline.hardware.probes.passes import FORMAT, plain, recorded
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import KernelProbe, Timings
from ridgeline.ops.batch import Batch, Span
from ridgeline.ops.count import Count
from ridgeline.ops.lowering import CPU
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Norm, Weight

#: Rows, and columns of the product before a part: what it touches is beyond a last-level cache (51 MB), or
#: beyond the cores' own (10 MB).
FAR, NEAR = (256, 16384), (512, 2048)
#: The same for one row: 16 MB of weights, as between the norms of middling models.
ONE = 8192
MODULATED = "norm.modulated"


def _modulated(ops: Ops, x: Any, vector: Weight, batch: Batch) -> Any:
    """As diffusion Transformers have it, each sequence with a shift and a scale of its own."""
    first = ops.take_rows(x, batch.first_rows)
    return ops.norm(x, Norm("layer", vector, 1e-5), shift=first, scale=first, spans=batch.spans)


#: Each part behind a product, as a function of its input, its norm's vector and the batch.
PARTS: Mapping[str, Callable[..., Any]] = {
    "norm": lambda ops, x, vector, batch: ops.norm(x, Norm("rms", vector, 1e-5)),
    "norm.layer": lambda ops, x, vector, batch: ops.norm(x, Norm("layer", vector, 1e-5, vector)),
    MODULATED: _modulated,
    "add": lambda ops, x, vector, batch: ops.add(x, x),
    "activation": lambda ops, x, vector, batch: ops.activate(x, "silu"),
    "gather": lambda ops, x, vector, batch: ops.take_rows(x, batch.logit_rows),
}
#: Tables, whose rows come from memory in any order.
TABLES = ("embed", PACKED)
#: Rows that are looked up at once.
LOOKED_UP = 256
#: Numbers of the product's weight and the norm's vector, after the table's.
_WEIGHT, _VECTOR = 1, 2
#: The part's number in the pass, after the embedding and the product; behind a modulated norm's vectors.
_PART, _BEHIND_VECTORS = 2, 3


def streamed_probes(
    ring: Ring,
    between: Callable[[], Sequence[Any]],
    streamed: Callable[[], Sequence[Any]],
    far: tuple[int, int] = FAR,
    near: tuple[int, int] = NEAR,
    one: int = ONE,
) -> list[KernelProbe]:
    """Figures ``kernels.streamed.PART[ROWS, HIDDEN]`` and ``kernels.streamed.TABLE[ROWS]``. ``between`` runs
    before each call of a part, ``streamed``, with which weights pass through the caches, before tables are
    looked up."""
    probes = []
    for part in PARTS:
        for rows, hidden in ((SMALL, one), near, far):
            layer = _Behind(part, ring, hidden)

            def prepare(layer: _Behind = layer) -> Sequence[Any]:
                layer.move()
                return between()

            figure, call = _figure(part, rows, hidden), partial(layer.seconds, rows)
            twin = f"kernels.simple.{_near(part)}[{LARGE}]" if (rows, hidden) == far else None
            probes.append(KernelProbe(figure, call, prepare=prepare, twin=twin))
    for kind in TABLES:
        table = _Table(kind, ring)
        for rows in (SMALL, LOOKED_UP):
            figure, call = f"kernels.streamed.{kind}[{rows}]", partial(table.seconds, rows)
            probes.append(KernelProbe(figure, call, prepare=streamed))
    return probes


def _near(part: str) -> str:
    """The part whose times without streamed weights hold for this one, too."""
    return "norm.layer" if part == MODULATED else part


def with_streamed(
    parts: Mapping[str, Affine],
    timings: Timings,
    fastest: float,
    far: tuple[int, int] = FAR,
    near: tuple[int, int] = NEAR,
    one: int = ONE,
) -> dict[str, Affine]:
    """The parts with what they cost behind streamed weights, never less than without them."""
    found = {**parts, MODULATED: parts[_near(MODULATED)]}
    for part in PARTS:
        overhead = max(timings.seconds(_figure(part, SMALL, one)), found[part].overhead)
        points = [(_distance_of_chain(), found[part].throughput)]
        for rows, hidden in (near, far):
            seconds = timings.seconds(_figure(part, rows, hidden))
            computing = seconds - rows * found[part].row
            line = fit(0.0, overhead, moved(part, rows), max(computing, seconds / 2), fastest)
            points.append((distance(part, rows, hidden), line.throughput))
        found[part] = _with(found[part], overhead, points)
    for kind in TABLES:
        few, many = (timings.seconds(f"kernels.streamed.{kind}[{n}]") for n in (SMALL, LOOKED_UP))
        nbytes = [_bytes_of_table(kind, n) for n in (SMALL, LOOKED_UP)]
        line = fit(nbytes[0], few, nbytes[1], many, fastest)
        points = [(_distance_of_chain(), parts[kind].throughput), (_MEMORY, line.throughput)]
        found[kind] = _with(parts[kind], max(line.overhead, parts[kind].overhead), points)
    return found


#: From so many bytes on, a table's rows are taken to come from memory.
_MEMORY = 64e6


def _with(known: Affine, overhead: float, points: Sequence[tuple[float, float]]) -> Affine:
    """Farther is never faster."""
    slowest, distances, far = points[0][1], [], []
    for at, rate in points:
        slowest = min(slowest, rate)
        distances.append(float(at))
        far.append(slowest)
    if any(a >= b for a, b in pairwise(distances)):
        raise ValueError(f"the distances of a part do not grow: {distances}")
    return replace(known, fresh_overhead=overhead, distances=tuple(distances), far=tuple(far))


def _bytes_of_table(kind: str, rows: int) -> float:
    return packed_bytes_of(rows) if kind == PACKED else bytes_by_part(rows)[kind]


def behind(part: str, weight: Weight, table: Weight, vector: Weight) -> Callable[[Ops, Batch], Any]:
    """The pass: a product with ``weight``, then the part."""

    def forward(ops: Ops, batch: Batch) -> Any:
        x = ops.linear(ops.embed(batch.ids, table), weight)
        x = PARTS[part](ops, x, vector, batch)
        return x if part == "gather" else ops.take_rows(x, batch.logit_rows)

    return forward


def _traced(part: str, rows: int, hidden: int) -> Any:
    """The pass as the count reading counts it."""
    ops = Count(activations=CPU.activations, lowering=CPU)
    batch = ops.batch([Span(1, count=rows)])  # wanted rows of all sequences: all
    weight = Weight("weight", (WIDTH, hidden), FORMAT)
    table, vector = Weight("embedding", (rows, hidden), FORMAT), Weight("norm", (WIDTH,), FORMAT)
    return ops.trace(behind(part, weight, table, vector)(ops, batch))


def moved(part: str, rows: int) -> float:
    """Bytes that the part moves; the vectors of one sequence are nothing beside its rows."""
    part = _near(part)
    return list(_traced(part, rows, WIDTH).kernels())[_PART][1].bytes


def distance(part: str, rows: int, hidden: int) -> float:
    """Bytes touched since the part's input was written, as a prediction finds them."""
    from ridgeline.predict.residency import input_distances

    part = _near(part)
    return input_distances(_traced(part, rows, hidden))[_PART]


def _distance_of_chain() -> float:
    """The same of a part behind another one: see :func:`ridgeline.hardware.probes.parts.run_parts`."""
    return bytes_by_part(LARGE)["norm"]


class _Behind:
    """The pass, whose product reads a weight that comes from memory."""

    def __init__(self, part: str, ring: Ring, hidden: int) -> None:
        import torch

        from ridgeline.kernels.linear import PackedLinear, packed_bytes

        shape = (WIDTH, hidden)
        self._take = partial(ring.take, (packed_bytes(shape, FORMAT),), torch.uint8)
        weight = Weight("weight", shape, FORMAT, PackedLinear(self._take(), shape, FORMAT))
        table = plain("embedding", FAR[0], hidden)
        self._replay = recorded(behind(part, weight, table, plain("norm", WIDTH)))
        self._rows = FAR[0]
        self._vector = partial(ring.take, (WIDTH,), torch.bfloat16) if part.startswith("norm") else None
        self._number = _BEHIND_VECTORS if part == MODULATED else _PART

    def move(self) -> None:
        """The next call reads a weight and a norm's vector that are out of every cache."""
        self._replay.exchange(_WEIGHT, self._take())
        if self._vector is not None:
            self._replay.exchange(_VECTOR, self._vector())

    def seconds(self, rows: int) -> float:
        ids = [i % self._rows for i in range(rows)]
        return self._replay.profile(ids, [Span(rows)], range(rows))[self._number].total


class _Table:
    """Rows looked up in a table as large as the ring."""

    def __init__(self, kind: str, ring: Ring) -> None:
        import torch

        from ridgeline.kernels.linear import PackedLinear, packed_bytes

        count = ring.memory.numel() // packed_bytes((32, WIDTH), FORMAT) * 32
        shape = (count, WIDTH)
        if kind == PACKED:
            data: Any = PackedLinear(ring.keep((packed_bytes(shape, FORMAT),), torch.uint8), shape, FORMAT)
        else:
            data = ring.keep(shape, torch.bfloat16)
        table = Weight("embedding", shape, FORMAT, data)
        self._replay = recorded(
            lambda ops, batch: ops.take_rows(ops.embed(batch.ids, table), batch.logit_rows)
        )
        self._random, self._count = random.Random(0), count

    def seconds(self, rows: int) -> float:
        ids = self._random.choices(range(self._count), k=rows)
        return self._replay.profile(ids, [Span(rows)], "last")[0].total


def _figure(part: str, rows: int, hidden: int) -> str:
    return f"kernels.streamed.{part}[{rows}, {hidden}]"
