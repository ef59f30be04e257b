"""The trace of a forward pass: a small SSA program whose every operator knows its cost.

Values are defined once. An operator is a list of *parts*, the smallest kernels it could run as;
a :class:`Lowering` says which parts a reading merges into one kernel, so the fused and the
unfused cost of the same pass come from the same record. Identical layers appear once, as a
:class:`Loop`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

from ridgeline.errors import InputError
from ridgeline.ops.kernel import Access, Flops, Kernel, Role, Value
from ridgeline.ops.lowering import UNFUSED, Lowering
from ridgeline.ops.numbers import Number, maximum

#: The name of what a softmax leaves to its backward pass: the logarithm of each row's sum of exponentials.
LSE = "lse"
#: The parts whose work is a matrix product.
MATRIX_PARTS = frozenset({"matmul", "down", "expand", "absorb", "project", "scores", "values"})


@dataclass(frozen=True)
class OpCost:
    """One call of an operator, with its parts. ``repeat`` is the count of the loop it is in."""

    name: str
    kind: str
    parts: tuple[Kernel, ...]
    repeat: int = 1

    def kernels(self, lowering: Lowering) -> tuple[Kernel, ...]:
        """The kernels that the parts make when ``lowering`` merges them. Nothing merges with a part that
        communicates: what follows begins when every rank has its result."""
        groups: list[list[Kernel]] = []
        for part in self.parts:
            if groups and groups[-1][-1].comm is None and lowering.merges(self.kind, part.kind):
                groups[-1].append(part)
            else:
                groups.append([part])
        return tuple(self._merge(group, groups) for group in groups)

    @property
    def flops(self) -> Flops:
        return reduce(Flops.__add__, (p.flops for p in self.parts), Flops())

    def _merge(self, group: list[Kernel], groups: list[list[Kernel]]) -> Kernel:
        """One kernel that does what the group's parts do. What they hand to each other stays on
        chip, unless another group reads it too."""
        if len(group) == 1:
            return group[0]
        elsewhere = {a.value.id for other in groups if other is not group for p in other for a in p.reads}
        written = {a.value.id: a.elements for part in group for a in part.writes}

        reads: dict[int, Access] = {}
        for value, elements in ((a.value, a.elements) for part in group for a in part.reads):
            if value.role is Role.CACHE:  # written in part: the rest is read
                elements = maximum(elements - written.get(value.id, 0), 0)
            elif value.id in written:
                continue
            if value.id in reads:
                elements = maximum(elements, reads[value.id].elements)
            reads[value.id] = Access(value, elements)
        writes = tuple(
            a
            for part in group
            for a in part.writes
            if a.value.role is not Role.SCRATCH or a.value.id in elsewhere
        )
        flops = reduce(Flops.__add__, (p.flops for p in group))
        lead = next((p for p in group if p.kind in MATRIX_PARTS), group[0])
        # What is left after a reduction, or a gate.
        epilogue = self.kind == "linear" and lead.kind not in MATRIX_PARTS
        return Kernel(
            lead.kind if epilogue else self.kind,
            tuple(reads.values()),
            writes,
            flops,
            lead.compute,
            lead.rows,
            lead.function,
            sequences=lead.sequences,
            groups=lead.groups,
        )


@dataclass(frozen=True)
class Loop:
    """Operators ``start`` to ``stop`` run ``count`` times; what ``entry`` holds becomes ``exit`` each time.

    A loop of the backward pass ``mirrors`` the forward loop whose iterations it undoes. ``shared`` are the
    ids of weights, and of their gradients, that are the same in every iteration. ``starts`` are the operators
    that the layers of an iteration begin with; a backward loop has none.
    """

    start: int
    stop: int
    count: int
    entry: tuple[Value, ...]
    exit: tuple[Value, ...]
    mirrors: Loop | None = None
    shared: frozenset[int] = frozenset()
    starts: tuple[int, ...] = ()

    @property
    def entries(self) -> set[int]:
        """The storage of what it enters with."""
        return {value.storage for value in self.entry}


def carried(x: Value | tuple[Value, ...]) -> tuple[Value, ...]:
    """What layers hand to each other, one value or several, as a tuple."""
    return x if isinstance(x, tuple) else (x,)


@dataclass(frozen=True)
class Memory:
    """Bytes by use. ``activations`` is the peak of what lives at once, ``states`` what an optimizer keeps."""

    weights: Number
    cache: Number
    activations: Number
    gradients: Number = 0
    states: Number = 0


@dataclass(frozen=True)
class Trace:
    """A forward pass as counted, or a training pass: ``forward`` is what :meth:`backward` extended.

    A value's id is its index in ``values``. ``runs`` are all layers of the forward pass in order, identical
    ones at once; a run that comes only once is among them but makes no loop. ``assumptions`` say in a
    sentence each what the count took to be so because it depends on what is computed. ``recompute`` is the
    policy by which a backward pass was made, ``weight_gradients`` the weights with the gradients that it left
    them.
    """

    ops: tuple[OpCost, ...]
    loops: tuple[Loop, ...]
    values: tuple[Value, ...]
    lowering: Lowering
    output: Value
    forward: Trace | None = None
    assumptions: tuple[str, ...] = ()
    runs: tuple[Loop, ...] = ()
    recompute: str = "none"
    weight_gradients: tuple[tuple[Value, Value], ...] = ()

    def kernels(self) -> Iterator[tuple[OpCost, Kernel]]:
        """Every kernel with its operator, once each; multiply by ``op.repeat``."""
        for op in self.ops:
            for kernel in op.kernels(self.lowering):
                yield op, kernel

    def lowered(self, lowering: Lowering) -> Trace:
        """The same program as another implementation runs it. What a backward pass keeps and what
        it recomputes depends on that, so it is derived anew."""
        if self.forward is not None:
            return self.forward.lowered(lowering).backward(self.recompute)
        return replace(self, lowering=lowering)

    def unfused(self) -> Trace:
        """The same program with every part a kernel of its own: shows what fusion saves."""
        return self.lowered(UNFUSED)

    @property
    def flops(self) -> Flops:
        return reduce(Flops.__add__, (op.flops * op.repeat for op in self.ops), Flops())

    @property
    def bytes(self) -> Number:
        return sum(kernel.bytes * op.repeat for op, kernel in self.kernels())

    @property
    def elements(self) -> Number:
        return sum(kernel.elements * op.repeat for op, kernel in self.kernels())

    def by_class(self) -> dict[str, Flops]:
        """Operations by class of operator (see :func:`op_class`)."""
        sums: dict[str, Flops] = {}
        for op in self.ops:
            name = op_class(op.kind)
            sums[name] = sums.get(name, Flops()) + op.flops * op.repeat
        return sums

    def memory(self) -> Memory:
        """Peak memory by use, from the lifetimes of the values."""
        from ridgeline.ops.lifetimes import memory

        return memory(self)

    def backward(self, recompute: str = "none") -> Trace:
        """The trace extended by its backward pass: see :func:`ridgeline.ops.backward.extend`.

        Raises InputError for a shard: what its backward pass exchanges is not counted.
        """
        if any(part.comm is not None for op in self.ops for part in op.parts):
            raise InputError("the backward pass of a model that is shared among ranks is not counted yet")
        from ridgeline.ops.backward import extend

        return extend(self, recompute)


CLASSES = {
    "linear": "linear",
    "attend": "attention",
    "store": "attention",
    "attend_latent": "attention",
    "route": "experts",
    "experts": "experts",
    "norm": "norm",
    "split": "norm",
    "add": "elementwise",
    "softcap": "elementwise",
    "fill": "elementwise",
    "add_vector": "elementwise",
    "activate": "elementwise",
    "layout": "layout",
    "embed": "embedding",
    "gather": "embedding",
    "communicate": "communication",
}


def op_class(kind: str) -> str:
    """The class that an operator's time is reported under, forward and backward."""
    forward = kind.removesuffix("_backward")
    return CLASSES.get(forward, forward)
