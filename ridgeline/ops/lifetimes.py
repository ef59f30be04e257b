"""How much memory a trace needs: what lives from when to when.

Weights, the cache, the weights' gradients and an optimizer's states stay for the whole pass. Everything
else lives from the kernel that writes it (an input from the start) to the last kernel that reads it; the
peak of what lives at once is the activation memory. Nothing is taken to be computed in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

from ridgeline.ops.kernel import Kernel, Role, Value
from ridgeline.ops.numbers import Number, maximum
from ridgeline.ops.trace import Loop, Memory, Trace


@dataclass(frozen=True)
class _Lifetime:
    """Bytes that are held from kernel ``first`` to kernel ``last``, both included."""

    nbytes: Number
    first: int
    last: int


def memory(trace: Trace) -> Memory:
    """The bytes that the trace needs, by use; arrays if the trace's lengths are.

    A view lives in its base. Every iteration of a loop has weights, cache and gradients of its
    own, and keeps what its backward loop reads; the value that it carries on replaces its entry.
    """
    program = _Program(trace)
    return Memory(
        weights=program.staying(Role.WEIGHT),
        cache=program.staying(Role.CACHE),
        activations=_peak(program.lifetimes() + program.kept_by_iterations()),
        gradients=program.staying(Role.GRADIENT),
        states=program.staying(Role.STATE),
    )


def _peak(lifetimes: list[_Lifetime]) -> Number:
    changes: list[Number] = [0] * (2 + max((life.last for life in lifetimes), default=0))
    for life in lifetimes:
        changes[life.first] = changes[life.first] + life.nbytes
        changes[life.last + 1] = changes[life.last + 1] - life.nbytes
    return reduce(maximum, accumulate(changes))


class _Program:
    """The trace as one list of kernels, a loop's body once; values go by the id of their storage."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.kernels: list[Kernel] = []
        self.starts: list[int] = []  # the position of each operator's first kernel, and of the end
        self.copies: dict[int, int] = {}  # of each value: the iterations that have one of their own
        shared = frozenset().union(*(loop.shared for loop in trace.loops))
        for op in trace.ops:
            self.starts.append(len(self.kernels))
            self.kernels += op.kernels(trace.lowering)
            for part in op.parts:
                for i in _read(part) | _written(part):
                    self.copies[i] = 1 if i in shared else op.repeat
        self.starts.append(len(self.kernels))

    def staying(self, role: Role) -> Number:
        """Bytes of all values of a role that stays for the whole pass."""
        values = self.trace.values
        return sum(values[i].nbytes * n for i, n in self.copies.items() if values[i].role is role)

    def lifetimes(self) -> list[_Lifetime]:
        """Of every value that comes and goes, one of each loop's."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for position, kernel in enumerate(self.kernels):
            for i in _read(kernel) | _written(kernel):
                first.setdefault(i, position)
                last[i] = position
        for loop in self.trace.loops:
            for i in self._shared_by_iterations(loop):
                last[i] = max(last[i], self._span(loop).stop - 1)
        output = self.trace.output.storage
        last[output] = max(last[output], self._end_of_output())
        lives = [
            self._carried(loop, entry)
            for loop in self.trace.loops
            for entry in loop.entry
            if self._outlives(last, loop, entry)
        ]
        for i, position in first.items():
            value = self.trace.values[i]
            if value.role in (Role.INPUT, Role.ACTIVATION, Role.SCRATCH):
                lives.append(_Lifetime(value.nbytes, 0 if value.role is Role.INPUT else position, last[i]))
        return lives

    def kept_by_iterations(self) -> list[_Lifetime]:
        """What all iterations of a loop but the last keep for the backward loop."""
        lives = []
        for loop in self.trace.loops:
            if loop.mirrors is not None:
                first, last = self._span(loop.mirrors).start, self._span(loop).stop - 1
                for i in self._kept(loop):
                    nbytes = self.trace.values[i].nbytes * (loop.count - 1)
                    lives.append(_Lifetime(nbytes, first, last))
        return lives

    def _span(self, loop: Loop) -> range:
        return range(self.starts[loop.start], self.starts[loop.stop])

    def _kept(self, backward: Loop) -> set[int]:
        """What a backward loop reads that each iteration of its forward loop made or entered with."""
        forward = backward.mirrors
        made = set().union(*(_written(self.kernels[p]) for p in self._span(forward)))
        kept = (forward.entries | made) & set().union(*(_read(self.kernels[p]) for p in self._span(backward)))
        for entry, exit in zip(forward.entry, forward.exit, strict=True):
            if exit.storage in kept:  # an iteration's entry is the exit before it
                kept.discard(entry.storage)
        return kept

    def _shared_by_iterations(self, loop: Loop) -> set[int]:
        """What every iteration reads from outside, and so lives until the last."""
        kernels = [self.kernels[p] for p in self._span(loop)]
        own = loop.entries.union(*map(_written, kernels))
        if loop.mirrors is not None:
            own |= self._kept(loop)
        return set().union(*map(_read, kernels)) - own

    def _outlives(self, last: dict[int, int], loop: Loop, entry: Value) -> bool:
        """Whether the entry is read after the loop, and so does not make room for what replaces it."""
        return self.trace.forward is None and last[entry.storage] >= self._span(loop).stop

    def _carried(self, loop: Loop, entry: Value) -> _Lifetime:
        """What replaces the entry in all iterations but the first."""
        span = self._span(loop)
        readers = (p for p in span if entry.storage in _read(self.kernels[p]))
        return _Lifetime(self.trace.values[entry.storage].nbytes, span.start, max(readers))

    def _end_of_output(self) -> int:
        """A forward pass hands its output over; a loss reads it and gives its gradient."""
        if self.trace.forward is None:
            return len(self.kernels) - 1
        return self.starts[len(self.trace.forward.ops)]


def _read(kernel: Kernel) -> set[int]:
    return {access.value.storage for access in kernel.reads}


def _written(kernel: Kernel) -> set[int]:
    return {access.value.storage for access in kernel.writes}
