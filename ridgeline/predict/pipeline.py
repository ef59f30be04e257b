"""Pipeline stages: which layers each has, what they take, and how micro-batches pass through them.

Layers are dealt out evenly, the first stages having one more where it does not come out; what comes
before the layers belongs to the first stage, what follows them to the last. The schedule is that of GPipe
(Huang et al., 2019): with m micro-batches through p equal stages of t seconds a pass takes (m + p - 1) t,
of which the share (p - 1) / (m + p - 1) is idle, the bubble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

from ridgeline.errors import InputError
from ridgeline.ops.kernel import Role
from ridgeline.ops.numbers import Number, maximum
from ridgeline.ops.trace import Trace
from ridgeline.predict.prediction import Prediction


@dataclass(frozen=True)
class Cost:
    """Seconds, of which ``communication`` is exchanged among ranks, and bytes of weights that are held."""

    seconds: Number = 0.0
    communication: Number = 0.0
    weights: float = 0.0
    layers: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.communication + other.communication,
            self.weights + other.weights,
            self.layers + other.layers,
        )

    def __mul__(self, n: int) -> Cost:
        return Cost(self.seconds * n, self.communication * n, self.weights * n, self.layers * n)


@dataclass(frozen=True)
class PassCosts:
    """A pass taken apart: what comes ``before`` the layers, runs of identical layers as (how many, cost of
    one), and what comes ``after``. ``tied`` are bytes of weights that both ends use. ``entry_bytes`` pass
    from layer to layer."""

    before: Cost
    runs: tuple[tuple[int, Cost], ...]
    after: Cost
    tied: float
    entry_bytes: Number

    def with_times(self, change: Callable[[Number], Number]) -> PassCosts:
        """The same pass with its seconds changed, such as for their mean over several passes."""

        def changed(cost: Cost) -> Cost:
            return replace(cost, seconds=change(cost.seconds), communication=change(cost.communication))

        return replace(
            self,
            before=changed(self.before),
            runs=tuple((count, changed(cost)) for count, cost in self.runs),
            after=changed(self.after),
            entry_bytes=change(self.entry_bytes),
        )

    @property
    def layers(self) -> int:
        return sum(count for count, _ in self.runs)

    def stages(self, pipeline: int) -> list[Cost]:
        """The cost of each of so many stages, in order. Raises InputError for more stages than layers."""
        if pipeline > self.layers:
            raise InputError(f"{pipeline} stages can't share {self.layers} layers: each needs one")
        if pipeline == 1:
            runs = (cost * count for count, cost in self.runs)
            whole = reduce(Cost.__add__, runs, self.before + self.after)
            return [whole + Cost(weights=-self.tied)]
        found = [reduce(Cost.__add__, part, Cost()) for part in self._dealt(pipeline)]
        found[0] = self.before + found[0]
        found[-1] = found[-1] + self.after
        return found

    def _dealt(self, pipeline: int) -> Iterator[list[Cost]]:
        small, larger = divmod(self.layers, pipeline)
        runs, at, used = self.runs, 0, 0
        for stage in range(pipeline):
            wanted, part = small + (stage < larger), []
            while wanted:
                count, cost = runs[at]
                taken = min(wanted, count - used)
                part.append(cost * taken)
                wanted, used = wanted - taken, used + taken
                if used == count:
                    at, used = at + 1, 0
            yield part


def take_apart(trace: Trace, prediction: Prediction) -> PassCosts:
    """The costs of a pass by layer. What stands between two runs of layers counts as after the first."""
    starts = [run.starts[0] for run in trace.runs]
    following = [*starts[1:], trace.runs[-1].stop]
    runs: list[tuple[int, Cost]] = []
    for run, begins in zip(trace.runs, following, strict=True):
        bounds = pairwise((*run.starts, run.stop))
        block = [replace(_cost(trace, prediction, start, stop), layers=1) for start, stop in bounds]
        runs += [(run.count, block[0])] if len(block) == 1 else [(1, layer) for layer in block] * run.count
        if begins > run.stop:
            count, last = runs.pop()
            between = _cost(trace, prediction, run.stop, begins)
            runs += [(count - 1, last)] * (count > 1) + [(1, last + between)]
    first, last = starts[0], trace.runs[-1].stop
    ends = _weights(trace, 0, first), _weights(trace, last, len(trace.ops))
    tied = sum(size for value, size in ends[0].items() if value in ends[1])
    return PassCosts(
        before=_cost(trace, prediction, 0, first),
        runs=tuple(runs),
        after=_cost(trace, prediction, last, len(trace.ops)),
        tied=tied,
        entry_bytes=reduce(maximum, (sum(v.nbytes for v in run.entry) for run in trace.runs)),
    )


def _cost(trace: Trace, prediction: Prediction, start: int, stop: int) -> Cost:
    """Of these operators once each."""
    seconds: Number = 0.0
    communication: Number = 0.0
    for kernel in prediction.kernels:
        if start <= kernel.op_index < stop:
            seconds = seconds + kernel.seconds
            if kernel.op_kind == "communicate":
                communication = communication + kernel.seconds
    return Cost(seconds, communication, sum(_weights(trace, start, stop).values()))


def _weights(trace: Trace, start: int, stop: int) -> dict[int, float]:
    """Bytes of the weights that these operators read, by the value's id."""
    return {
        access.value.id: access.value.nbytes
        for op in trace.ops[start:stop]
        for part in op.parts
        for access in part.reads
        if access.value.role is Role.WEIGHT
    }
