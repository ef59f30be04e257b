"""The backward pass of a trace: a rule for each operator, run over the program in reverse.

A matrix product y = x W^T has two gradients, dX = dY W and dW = dY^T X, each as many operations
as the product itself; one that nobody wants is not computed. Attention whose weights were stored
takes four products (dV, dP, dQ, dK); where a fused kernel kept them on chip they are recomputed
from the log-sum-exp of each row's scores, which makes five (Dao et al. 2022,
https://arxiv.org/abs/2205.14135). An activation or a norm costs twice its forward's vector
operations, once for the derivative and once to apply it; the softmax and a rotation cost as many
as forward.
"""

from __future__ import annotations

from dataclasses import replace

from ridgeline.errors import InputError
from ridgeline.ops.backward_rules import RULES, activation
from ridgeline.ops.formats import get_format
from ridgeline.ops.kernel import Access, Flops, Kernel, Role, Value, whole
from ridgeline.ops.numbers import Number
from ridgeline.ops.recompute import AGAIN, Recompute, copy_of_run, policy_of
from ridgeline.ops.trace import Loop, OpCost, Trace


def extend(trace: Trace, recompute: str = "none") -> Trace:
    """The trace followed by its backward pass, as ``trace.lowering`` runs it.

    ``recompute`` says what is not kept for it and computed again: nothing (none), the scores and weights
    of attention where they are stored (selective), or whole layers, of which only the input is kept
    (full). See :mod:`ridgeline.ops.recompute`.

    The gradient of the output is given. Each weight's gradient has the format of the weight and
    ``Role.GRADIENT``; gradients that meet are added, a weight's in place. What all iterations of a loop
    read, such as an encoder's output, has a gradient that is filled with zeros before the loop, and that
    every iteration adds to.

    Raises InputError for a trace that has a backward pass already, wants no gradient, or cannot
    be trained: one with a key/value cache, with quantised weights, or with a loop whose entry is read
    after it, too. Also for an unknown ``recompute``.
    """
    policy = policy_of(recompute)
    if trace.forward is not None:
        raise InputError("this trace has its backward pass already; extend the forward trace once")
    if not trace.output.needs_grad:
        raise InputError("nothing in this trace needs a gradient; count it with Count(train=True)")
    for value in trace.values:
        if value.role is Role.CACHE:
            raise InputError("a pass with a key/value cache has no gradient; count it without a cache")
        if value.needs_grad and get_format(value.format).is_quantised:
            raise InputError(f"{value.name} is stored as {value.format}; train weights in bf16, fp16 or fp32")
    return Backward(trace, policy).run()


class Backward:
    """Walks a forward trace in reverse and appends what each operator's gradient takes."""

    def __init__(self, forward: Trace, policy: Recompute) -> None:
        self.forward = forward
        self.policy = policy
        self.values = list(forward.values)
        self.ops = list(forward.ops)
        self.loops = list(forward.loops)
        self.gradients: dict[int, Value] = {}  # by the id of the value
        self.at = 0  # the index of the forward operator at hand, or of its copy that computes it again
        self.parts: list[Kernel] = []  # of its backward
        self.second: list[tuple[Value, Value]] = []  # gradients to be added to one that is there
        self.summed: set[int] = set()  # values whose gradient is summed in place over a loop's iterations

    def run(self) -> Trace:
        output = self.forward.output
        self.gradients[output.id] = self.new_like(output, Role.ACTIVATION)
        whole_layers = self.policy is Recompute.FULL
        runs = self.forward.runs if whole_layers else self.forward.loops
        run_ending = {run.stop: run for run in runs}
        stop = len(self.forward.ops)
        while stop > 0:
            if stop in run_ending:
                self._run_of_layers(run_ending[stop])
                stop = run_ending[stop].start
            else:
                stop -= 1
                self._op(stop)
        gradients = self.gradients
        return replace(
            self.forward,
            ops=tuple(_with_roles_of(self.values, op) for op in self.ops),
            loops=tuple(self.loops),
            values=tuple(self.values),
            forward=self.forward,
            recompute=str(self.policy),
            weight_gradients=tuple(
                (v, gradients[v.id]) for v in self.values if v.role is Role.WEIGHT and v.id in gradients
            ),
        )

    def _run_of_layers(self, run: Loop) -> None:
        if not any(value.id in self.gradients for value in run.exit):
            return
        tables = self._prepare_loop(run) if run.count > 1 else frozenset()
        start, given = len(self.ops), tuple(self.gradients.get(value.id) for value in run.exit)
        indices = range(run.start, run.stop)
        if self.policy is Recompute.FULL:
            copies, exit = copy_of_run(self.values, self.forward, run)
            for value, gradient in zip(exit, given, strict=True):
                if gradient is not None:
                    self.gradients[value.id] = gradient
            indices = range(start, start + len(copies))
            self.ops += copies
        for index in reversed(indices):
            self._op(index)
        if run.count > 1:
            passed_on = tuple(self.gradients[value.id] for value in run.entry)
            stop = len(self.ops)
            self.loops.append(Loop(start, stop, run.count, given, passed_on, mirrors=run, shared=tables))

    def _prepare_loop(self, loop: Loop) -> frozenset[int]:
        """Zeros where a gradient is summed over the iterations; returns the gradients of the weights that all
        of them read."""
        for value in loop.entry:
            if value.id in self.gradients:
                raise InputError(f"'{value.name}' is read after the layers too: its gradient is not counted")
        read_by_all = self._read_by_all(loop)
        for value in (*loop.exit, *read_by_all):
            if value.id not in self.gradients:
                self._zero(value)
        self.summed.update(value.id for value in read_by_all)
        return frozenset(
            self.gradients[value.id].storage for value in read_by_all if value.role is Role.WEIGHT
        )

    def _read_by_all(self, loop: Loop) -> list[Value]:
        """What every iteration reads from outside and wants a gradient, which is summed over them."""
        parts = [part for op in self.forward.ops[loop.start : loop.stop] for part in op.parts]
        own = loop.entries | {a.value.storage for part in parts for a in part.writes}
        read = {a.value.id: a.value for part in parts for a in part.reads if a.value.needs_grad}
        return [
            value
            for value in read.values()
            if (value.id in loop.shared if value.role is Role.WEIGHT else value.storage not in own)
        ]

    def _zero(self, value: Value) -> None:
        """Begin the gradient of a value with zeros."""
        role = Role.GRADIENT if value.role is Role.WEIGHT else Role.ACTIVATION
        gradient = self.gradients[value.id] = self.new_like(value, role)
        part = Kernel("fill", (), (whole(gradient),), Flops(), gradient.format, gradient.shape[0])
        self.ops.append(OpCost(f"{value.name}.fill", "fill", (part,)))

    def _op(self, index: int) -> None:
        op = self.ops[index]
        self.at, self.parts, self.second = index, [], []
        if any(a.value.id in self.gradients for part in op.parts for a in part.writes):
            if op.kind not in RULES:
                raise InputError(f"training is not counted for {op.name}: {op.kind} has no backward rule yet")
            RULES[op.kind](self, op)
        if self.parts:
            name, kind = f"{op.name.removesuffix(AGAIN)}.backward", f"{op.kind}_backward"
            self.ops.append(OpCost(name, kind, tuple(self.parts), op.repeat))
        for value, gradient in self.second:
            self._add(value, gradient, op.repeat)

    def _add(self, value: Value, second: Value, repeat: int) -> None:
        first = self.gradients[value.id]
        in_place = value.role is Role.WEIGHT or value.base is not None or value.id in self.summed
        total = self.view(first) if in_place else self.new_like(value, Role.ACTIVATION)
        self.gradients[value.id] = total
        work = Flops(vector=total.elements)
        reads, writes = (whole(first), whole(second)), (whole(total),)
        part = Kernel("add", reads, writes, work, total.format, total.shape[0])
        self.ops.append(OpCost("add.backward", "add", (part,), repeat))

    # -- what the rules use ------------------------------------------------------------------

    def new(self, name: str, shape: tuple[Number, ...], format: str, role: Role) -> Value:
        value = Value(len(self.values), name, shape, format, role)
        self.values.append(value)
        return value

    def new_like(self, value: Value, role: Role) -> Value:
        return self.new(f"{value.name}.grad", value.shape, value.format, role)

    def view(self, of: Value, shape: tuple[Number, ...] | None = None) -> Value:
        """The same memory under a new id: a slice, or the same after an update in place."""
        value = replace(of, id=len(self.values), shape=shape or of.shape, base=of.storage)
        self.values.append(value)
        return value

    def give(self, value: Value, gradient: Value) -> None:
        """Let ``gradient`` be that of ``value``, or be added to the one it has."""
        if not value.needs_grad:
            return
        if value.id in self.gradients:
            self.second.append((value, gradient))
        else:
            self.gradients[value.id] = gradient

    def gradient_for(self, value: Value) -> Value:
        """A tensor for a rule to write the gradient of ``value`` to; a view's lies in its base's."""
        if value.id in self.gradients:
            gradient = self.new_like(value, Role.ACTIVATION)
        elif value.base is not None:
            base = self.values[value.base]
            if base.id not in self.gradients:
                self.gradients[base.id] = self.new_like(base, base.role)
            gradient = self.view(self.gradients[base.id], value.shape)
        else:
            role = Role.GRADIENT if value.role is Role.WEIGHT else value.role
            gradient = self.new_like(value, role)
        self.give(value, gradient)
        return gradient

    def gradients_for(self, *accesses: Access) -> tuple[Access, ...]:
        """Tensors for the gradients of those of the values that want one."""
        return tuple(whole(self.gradient_for(a.value)) for a in accesses if a.value.needs_grad)

    def kept(self, access: Access) -> Access:
        """An access to a forward value, which no kernel may keep on chip any more."""
        value = access.value
        if value.role is Role.SCRATCH:
            value = self.values[value.id] = replace(value, role=Role.ACTIVATION)
        return Access(value, access.elements)

    def emit(
        self, kind: str, reads: tuple[Access, ...], writes: tuple[Access, ...], flops: Flops, like: Kernel
    ) -> None:
        """Append a part that computes as ``like`` does, if anyone wants what it writes."""
        if writes:
            part = Kernel(kind, reads, writes, flops, like.compute, like.rows, groups=like.groups)
            self.parts.append(part)

    def activation(self, part: Kernel) -> None:
        """Append the gradient of an activation whose result's gradient is there."""
        activation(self, part, self.gradients[part.writes[0].value.id])


def _with_roles_of(values: list[Value], op: OpCost) -> OpCost:
    """The operator, with the role that each of its values has now."""
    accesses = [a for part in op.parts for a in (*part.reads, *part.writes)]
    if all(values[a.value.id].role is a.value.role for a in accesses):
        return op

    def now(accesses: tuple[Access, ...]) -> tuple[Access, ...]:
        return tuple(Access(values[a.value.id], a.elements) for a in accesses)

    return replace(op, parts=tuple(replace(p, reads=now(p.reads), writes=now(p.writes)) for p in op.parts))
