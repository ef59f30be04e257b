"""How fast a measured machine's kernels really are, on fixed shapes that know nothing of a model.

A device file of a measured machine carries, beside its rates, a table of linear layers by rows and weight
size for each format of weights, and for every other kind of kernel the time of an empty call and the bytes
a second beyond it. Predictions interpolate in these.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from typing import Any

from ridgeline.errors import InputError
from ridgeline.ops.lowering import CPU, Lowering
from ridgeline.ops.numbers import Number, is_array

#: Inputs for each output, or outputs for each input, of weights that are measured beside square ones, and the
#: rows from which it matters: fewer wait for the weights.
ASPECT, SHAPED_ROWS = 4, 32
#: The key heads that attention is measured with.
KEY_HEADS = 4
#: The readings whose kernels are measured.
LOWERINGS = {CPU.name: CPU}


@dataclass(frozen=True)
class Affine:
    """``overhead`` seconds a call, or ``fresh_overhead`` where weights have passed through the caches since
    the call before, ``row`` seconds a row, then bytes at a rate that falls with the bytes touched since the
    inputs were written: ``throughput`` bytes a second where these are at most the first of ``distances``, and
    ``far`` at each of them."""

    overhead: float
    throughput: float
    fresh_overhead: float | None = None
    distances: tuple[float, ...] = ()
    far: tuple[float, ...] = ()
    row: float = 0.0

    def seconds(
        self, nbytes: Number, *, rows: Number = 0, cached: bool = True, distance: Number = 0.0
    ) -> Number:
        """``cached``: all that a step touches fits the caches. ``distance`` is in bytes."""
        overhead = self.overhead if cached or self.fresh_overhead is None else self.fresh_overhead
        return overhead + rows * self.row + nbytes / self.rate(distance)

    def rate(self, distance: Number) -> Number:
        """Bytes a second of inputs so far away."""
        if not self.distances:
            return self.throughput
        if is_array(distance):
            import numpy

            return numpy.vectorize(self.rate, otypes=[float])(distance)
        return min(interpolate(self.distances, self.far, min(distance, self.distances[-1])), self.throughput)


@dataclass(frozen=True)
class LinearTable:
    """Seconds of x W^T by rows of x (first index) and bytes of a square W (second index).

    ``warm`` finds W in the caches from the call before, ``fresh`` reads it from memory, and ``last`` from the
    last-level cache, where the cores' own have been passed through in between. Many rows take another time
    where W is not square: ``inputs`` times as long with :data:`ASPECT` times as many inputs as outputs,
    ``outputs`` times with as many more outputs, each at the weights of ``shaped_bytes``.
    """

    rows: tuple[int, ...]
    weight_bytes: tuple[float, ...]
    warm: tuple[tuple[float, ...], ...]
    fresh: tuple[tuple[float, ...], ...]
    last: tuple[tuple[float, ...], ...] = ()
    shaped_bytes: tuple[float, ...] = ()
    inputs: tuple[float, ...] = ()
    outputs: tuple[float, ...] = ()

    def shape_factor(self, rows: Number, weight_bytes: Number, aspect: float) -> Number:
        """How many times as long as a square weight one with ``aspect`` times as many inputs as outputs
        takes."""
        if not self.shaped_bytes:
            return 1.0
        if is_array(rows) or is_array(weight_bytes):
            import numpy

            return numpy.vectorize(lambda r, b: self.shape_factor(r, b, aspect), otypes=[float])(
                rows, weight_bytes
            )
        if rows < SHAPED_ROWS:
            return 1.0
        factors = self.inputs if aspect > 1 else self.outputs
        most = interpolate(self.shaped_bytes, factors, min(weight_bytes, self.shaped_bytes[-1]))
        return most ** min(abs(log(aspect)) / log(ASPECT), 1.0)

    def seconds(self, rows: Number, weight_bytes: Number, *, cached: bool, own: bool = False) -> Number:
        """Interpolated log-log; beyond the table time grows with rows, and in proportion to bytes: a call's
        overhead is nothing beside the largest weights. ``cached``: the last-level cache holds all weights of
        a step; ``own``: the cores' own caches do."""
        table = self.fresh if not cached else self.warm if own or not self.last else self.last
        if is_array(rows) or is_array(weight_bytes):
            import numpy

            one = numpy.vectorize(lambda r, b: self._lookup(table, r, b), otypes=[float])
            return one(rows, weight_bytes)
        return self._lookup(table, rows, weight_bytes)

    def _lookup(self, table: tuple[tuple[float, ...], ...], rows: float, weight_bytes: float) -> float:
        largest = self.weight_bytes[-1]
        by_rows = [interpolate(self.weight_bytes, line, min(weight_bytes, largest)) for line in table]
        return max(weight_bytes / largest, 1.0) * interpolate(self.rows, by_rows, rows)


@dataclass(frozen=True)
class AttendCurve:
    """Attention of the cpu reading, one sequence after another. Each takes its ``overhead``, or
    ``fresh_overhead`` if its keys come from memory. One query row reads keys at ``warm`` or ``fresh`` bytes a
    second and computes at ``row_rate`` FLOP/s, one after the other; keys from memory take ``head`` seconds
    more for each key head beyond :data:`KEY_HEADS`, since they lie apart. Several rows compute at
    ``flops_per_second`` by rows under a causal mask, visible pairs counted, and at ``whole`` where every row
    sees every key; the keys and values that they bring are stored at ``append`` bytes a second first."""

    overhead: float
    fresh_overhead: float
    warm: float
    fresh: float
    row_rate: float
    rows: tuple[int, ...]
    flops_per_second: tuple[float, ...]
    whole: tuple[float, ...] = ()
    append: float | None = None
    head: float = 0.0

    def seconds(
        self,
        rows: Number,
        flops: Number,
        nbytes: Number,
        visible: Number = 0.5,
        stored: Number = 0.0,
        heads: Number = KEY_HEADS,
        *,
        cached: bool,
    ) -> Number:
        """What a sequence takes, of which every row sees the share ``visible`` of the keys on average, and
        whose own keys and values are ``stored`` bytes of ``heads`` key heads."""
        values = (rows, flops, nbytes, visible, stored, heads)
        if any(is_array(x) for x in values):
            import numpy

            return numpy.vectorize(lambda *one: self._seconds(*one, cached), otypes=[float])(*values)
        return self._seconds(*values, cached)

    def _seconds(
        self,
        rows: float,
        flops: float,
        nbytes: float,
        visible: float,
        stored: float,
        heads: float,
        cached: bool,
    ) -> float:
        if rows <= 1:
            overhead, bandwidth = (self.overhead, self.warm) if cached else (self.fresh_overhead, self.fresh)
            more = 0.0 if cached else max(heads - KEY_HEADS, 0.0) * self.head
            return overhead + more + nbytes / bandwidth + flops / self.row_rate
        measured = min(rows, self.rows[-1])  # a rate grows to a limit: it is not carried on beyond
        each = 1 / interpolate(self.rows, self.flops_per_second, measured)
        if self.whole:  # masked pairs in tiles that are computed anyway become fewer
            share = min(max(2 * visible - 1, 0.0), 1.0)
            each += share * (1 / interpolate(self.rows, self.whole, measured) - each)
        storing = stored / self.append if self.append else 0.0
        return self.overhead + flops * each + storing


@dataclass(frozen=True)
class EngineTimes:
    """Seconds of an engine's step beside the model's pass: ``step`` for any, ``sequence`` for each that gets
    a token, ``logit`` for each of the logits that it is chosen from, greedily."""

    step: float
    sequence: float
    logit: float

    def seconds(self, sequences: int, vocab: int) -> float:
        return self.step + sequences * (self.sequence + vocab * self.logit)


@dataclass(frozen=True)
class Kernels:
    """All measured kernels of one ``reading`` (its lowering's name), run with ``threads`` and with the
    instruction set ``isa``.

    ``step`` is what a step costs beside its kernels. ``linear`` is by the format of the weights, ``attend``
    by that of the cache. ``simple`` holds the other kinds by the format of the activations, a norm as
    ``kind.function``. ``engine`` is what surrounds the steps of an engine. ``memory`` is the rate of memory,
    bytes/s, that the times hold at (see :mod:`ridgeline.hardware.drift`), 0 if it was not read.
    """

    reading: str
    isa: str
    threads: int
    step: float
    linear: Mapping[str, LinearTable]
    attend: Mapping[str, AttendCurve]
    simple: Mapping[str, Mapping[str, Affine]]
    engine: EngineTimes
    memory: float = 0.0

    @property
    def lowering(self) -> Lowering:
        """Which parts of an operator the reading runs as one kernel."""
        return LOWERINGS[self.reading]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the device file's ``kernels`` table: tables and lists."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Kernels:
        """Raises InputError if the table was written by another version or holds an impossible value."""
        try:
            kernels = cls(
                raw["reading"],
                raw["isa"],
                raw["threads"],
                raw["step"],
                {d: LinearTable(**_tuples(t)) for d, t in raw["linear"].items()},
                {d: AttendCurve(**_tuples(t)) for d, t in raw["attend"].items()},
                {
                    d: {k: Affine(**_tuples(a)) for k, a in kinds.items()}
                    for d, kinds in raw["simple"].items()
                },
                EngineTimes(**raw["engine"]),
                raw.get("memory", 0.0),
            )
            _check(kernels)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"the machine's kernel table can't be used ({error}): run `ridgeline measure` again"
            ) from None
        return kernels


def interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """y at x, both logarithmic. Beyond the last point y keeps growing along the last two points'
    slope, but no faster than x: a kernel's time grows with its work at most, and a noisy last point
    must not say otherwise. Before the first point y stays at the first."""
    if x <= xs[0] or len(xs) == 1:
        return ys[0]
    i = min(bisect_right(xs, x), len(xs) - 1)
    slope = log(ys[i] / ys[i - 1]) / log(xs[i] / xs[i - 1])
    if x > xs[-1]:
        return ys[-1] * exp(min(slope, 1.0) * log(x / xs[-1]))
    return exp(log(ys[i - 1]) + slope * log(x / xs[i - 1]))


def _check(kernels: Kernels) -> None:
    """Raises ValueError that names what cannot be: axes must grow, times and rates be positive."""
    if kernels.reading not in LOWERINGS:
        raise ValueError(f"reading is {kernels.reading!r}")
    if not isinstance(kernels.threads, int) or kernels.threads < 1:
        raise ValueError(f"threads is {kernels.threads!r}")
    for dtype, table in kernels.linear.items():
        _check_axis(f"linear.{dtype}.rows", table.rows)
        _check_axis(f"linear.{dtype}.weight_bytes", table.weight_bytes)
        for name in ("warm", "fresh", *(("last",) if table.last else ())):
            lines = getattr(table, name)
            if [len(line) for line in lines] != [len(table.weight_bytes)] * len(table.rows):
                raise ValueError(f"linear.{dtype}.{name} has not a time for every cell")
            _check_positive(f"linear.{dtype}.{name}", (seconds for line in lines for seconds in line))
        if table.shaped_bytes:
            _check_axis(f"linear.{dtype}.shaped_bytes", table.shaped_bytes)
        if not len(table.inputs) == len(table.outputs) == len(table.shaped_bytes):
            raise ValueError(f"linear.{dtype} has not a factor for every shape")
        _check_positive(f"linear.{dtype}.inputs and outputs", (*table.inputs, *table.outputs))
    for dtype, curve in kernels.attend.items():
        _check_axis(f"attend.{dtype}.rows", curve.rows)
        if len(curve.flops_per_second) != len(curve.rows):
            raise ValueError(f"attend.{dtype}.flops_per_second has not a rate for every row")
        if curve.whole and len(curve.whole) != len(curve.rows):
            raise ValueError(f"attend.{dtype}.whole has not a rate for every row")
        _check_positive(f"attend.{dtype}", (curve.warm, curve.fresh, curve.row_rate, *curve.flops_per_second))
        _check_positive(f"attend.{dtype}", (*curve.whole, *(() if curve.append is None else (curve.append,))))
    if min(asdict(kernels.engine).values()) < 0:
        raise ValueError("engine holds a negative time")
    if not isinstance(kernels.memory, int | float) or kernels.memory < 0:
        raise ValueError(f"memory is {kernels.memory!r}")
    for dtype, kinds in kernels.simple.items():
        for kind, affine in kinds.items():
            _check_positive(f"simple.{dtype}.{kind}", (affine.throughput, *affine.far))
            if affine.distances or affine.far:
                _check_axis(f"simple.{dtype}.{kind}.distances", affine.distances)
            if len(affine.distances) != len(affine.far):
                raise ValueError(f"simple.{dtype}.{kind}.far has not a rate for every distance")


def _check_axis(name: str, points: Sequence[float]) -> None:
    _check_positive(name, points)
    if not points or list(points) != sorted(set(points)):
        raise ValueError(f"{name} does not grow")


def _check_positive(name: str, values: Iterable[float]) -> None:
    if not all(isinstance(v, int | float) and v > 0 for v in values):
        raise ValueError(f"{name} holds a value that is not positive")


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {key: _plain(value) for key, value in x.items() if value is not None}
    return [_plain(value) for value in x] if isinstance(x, list | tuple) else x


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    def frozen(x: Any) -> Any:
        return tuple(frozen(i) for i in x) if isinstance(x, list | tuple) else x

    return {key: frozen(value) for key, value in table.items()}
