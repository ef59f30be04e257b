"""A pass in the making: what the count reading notes of operators, values and runs of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ridgeline.ops.kernel import Access, Flops, Kernel, Role, Value
from ridgeline.ops.layers import Layer
from ridgeline.ops.loops import LONGEST, Run, runs
from ridgeline.ops.lowering import Lowering
from ridgeline.ops.numbers import Number, as_count
from ridgeline.ops.records import Weight
from ridgeline.ops.trace import Loop, OpCost, Trace, carried


class Program:
    """Operators and values in the order in which they are met; :meth:`trace` hands them out.

    ``activations`` is the format of activations, ``train`` says whether weights want gradients.
    """

    def __init__(self, activations: str, lowering: Lowering, train: bool) -> None:
        self.activations = activations
        self.lowering = lowering
        self.train = train
        self._ops: list[OpCost] = []
        self._runs: list[Loop] = []
        self._values: list[Value] = []
        self._weights: dict[int, tuple[Weight, Value]] = {}
        self._repeat = 1
        self._assumed: dict[str, None] = {}  # in order, each once

    def input(self, name: str, shape: tuple[Number, ...], format: str = "int64") -> Value:
        """A value that the pass is given, such as token ids."""
        return self.value(name, tuple(as_count(n) for n in shape), format, Role.INPUT)

    def trace(self, output: Value) -> Trace:
        """The finished program, whose result is ``output``."""
        return Trace(
            tuple(self._ops),
            self._loops,
            tuple(self._values),
            self.lowering,
            output,
            runs=tuple(self._runs),
            assumptions=tuple(self._assumed),
        )

    @property
    def _loops(self) -> tuple[Loop, ...]:
        return tuple(run for run in self._runs if run.count > 1)

    def assume(self, statement: str) -> None:
        """Note what the count takes to be so because it cannot know."""
        self._assumed[statement] = None

    def repeat(self, layers: Sequence[Layer], body: Callable[[Layer, Value], Value], x: Value) -> Value:
        """The layers in turn, each block of alike ones once: see :func:`ridgeline.ops.loops.runs`."""
        if self._repeat > 1:
            raise ValueError("a loop inside the body of a loop is not counted")
        for run in self._divided(layers, carried(x)):
            starts, entry, first = [], carried(x), len(self._values)
            self._repeat = run.count
            block = layers[run.start : run.start + run.length]
            for layer in block:
                starts.append(len(self._ops))
                x = body(layer, x)
            self._repeat = 1
            shared: frozenset[int] = frozenset()
            if run.count > 1:
                following = layers[run.start + run.length : run.start + 2 * run.length]
                shared = self._shared(starts[0], first, block, following)
            stop, exit = len(self._ops), carried(x)
            self._runs.append(
                Loop(starts[0], stop, run.count, entry, exit, shared=shared, starts=tuple(starts))
            )
        return x

    def _divided(self, layers: Sequence[Layer], entry: tuple[Value, ...]) -> list[Run]:
        longest = 1 if self.train else LONGEST  # what is kept for a backward pass is kept by the layer
        if not self.train or all(v.needs_grad for v in entry):
            return runs(layers, longest)
        # The first layer alone has no gradient of its input.
        return [*runs(layers[:1]), *(run._replace(start=run.start + 1) for run in runs(layers[1:], longest))]

    def _shared(
        self, start: int, first: int, block: Sequence[Layer], following: Sequence[Layer]
    ) -> frozenset[int]:
        """The weights that all iterations of a loop, from operator ``start`` on, read: those known before its
        values, from number ``first`` on, and those that its block of layers has in common with the next one.
        """
        used = {a.value.id for op in self._ops[start:] for part in op.parts for a in part.reads}
        common = {i for layer in block for i in layer.weight_ids} & {
            i for layer in following for i in layer.weight_ids
        }
        return frozenset(
            v.id for w, v in self._weights.values() if v.id in used and (v.id < first or id(w) in common)
        )

    def value(
        self,
        name: str,
        shape: tuple[Number, ...],
        format: str,
        role: Role,
        needs_grad: bool = False,
        base: int | None = None,
    ) -> Value:
        """A new value; ``base`` is the storage that it is a view of, if it is one."""
        value = Value(len(self._values), name, shape, format, role, needs_grad, base)
        self._values.append(value)
        return value

    def activation(self, name: str, shape: tuple[Number, ...], *inputs: Value) -> Value:
        """What an operator that reads ``inputs`` hands on."""
        return self.value(name, shape, self.activations, Role.ACTIVATION, _wants_grad(inputs))

    def scratch(self, name: str, shape: tuple[Number, ...], *inputs: Value) -> Value:
        """What one part of an operator hands to the next, made of ``inputs``."""
        return self.value(name, shape, self.activations, Role.SCRATCH, _wants_grad(inputs))

    def dropout_mask(self, y: Value) -> Value:
        """What dropout kept of ``y``, a byte an element."""
        return self.value(f"{y.name}.mask", y.shape, "bool", Role.SCRATCH)

    def view(self, name: str, of: Value, shape: tuple[Number, ...]) -> Value:
        return self.value(name, shape, of.format, of.role, of.needs_grad, of.storage)

    def weight(self, weight: Weight) -> Value:
        """The weight's value, the same one at every use."""
        known = self._weights.get(id(weight))
        if known is None:  # the weight is kept beside its value so that its id stays its own
            shape, wanted = weight.stored or weight.shape, self.train and weight.trained
            known = (weight, self.value(weight.name, shape, weight.format, Role.WEIGHT, wanted))
            self._weights[id(weight)] = known
        return known[1]

    def part(
        self, kind: str, reads: tuple[Access, ...], writes: tuple[Access, ...], flops: Flops, rows: Number
    ) -> Kernel:
        """A kernel that computes in the activations' format."""
        return Kernel(kind, reads, writes, flops, self.activations, rows)

    def emit(self, name: str, kind: str, *parts: Kernel) -> None:
        """Note an operator."""
        self._ops.append(OpCost(name, kind, parts, self._repeat))


def _wants_grad(inputs: tuple[Value, ...]) -> bool:
    return any(v.needs_grad for v in inputs)
