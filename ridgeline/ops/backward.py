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

from collections.abc import Mapping
from dataclasses import replace

from ridgeline.errors import InputError
from ridgeline.ops import backward_experts, backward_latent
from ridgeline.ops.formats import get_format
from ridgeline.ops.numbers import Number
from ridgeline.ops.trace import Access, Flops, Kernel, Loop, OpCost, Role, Trace, Value, whole

#: Activations whose derivative follows from their result, so that their input need not be kept.
FROM_RESULT = ("relu", "tanh")


def extend(trace: Trace) -> Trace:
    """The trace followed by its backward pass, as ``trace.lowering`` runs it.

    The gradient of the output is given. Each weight's gradient has the format of the weight and
    ``Role.GRADIENT``; gradients that meet are added, a weight's in place. What all iterations of a loop
    read, such as an encoder's output, has a gradient that is filled with zeros before the loop, and that
    every iteration adds to.

    Raises InputError for a trace that has a backward pass already, wants no gradient, or cannot
    be trained: one with a key/value cache, with quantised weights, or with a loop whose entry is read
    after it, too.
    """
    if trace.forward is not None:
        raise InputError("this trace has its backward pass already; extend the forward trace once")
    if not trace.output.needs_grad:
        raise InputError("nothing in this trace needs a gradient; count it with Count(train=True)")
    for value in trace.values:
        if value.role is Role.CACHE:
            raise InputError("a pass with a key/value cache has no gradient; count it without a cache")
        if value.needs_grad and get_format(value.format).is_quantised:
            raise InputError(f"{value.name} is stored as {value.format}; train weights in bf16, fp16 or fp32")
    return _Backward(trace).run()


class _Backward:
    """Walks a forward trace in reverse and appends what each operator's gradient takes."""

    def __init__(self, forward: Trace) -> None:
        self.forward = forward
        self.values = list(forward.values)
        self.ops = list(forward.ops)
        self.loops = list(forward.loops)
        self.gradients: dict[int, Value] = {}  # by the id of the value
        self.at = 0  # the index of the forward operator at hand
        self.parts: list[Kernel] = []  # of its backward
        self.second: list[tuple[Value, Value]] = []  # gradients to be added to one that is there
        self.summed: set[int] = set()  # values whose gradient is summed in place over a loop's iterations

    def run(self) -> Trace:
        output = self.forward.output
        self.gradients[output.id] = self.new_like(output, Role.ACTIVATION)
        loops = {loop.stop: loop for loop in self.forward.loops}
        stop = len(self.forward.ops)
        while stop > 0:
            if stop in loops:
                self._loop(loops[stop])
                stop = loops[stop].start
            else:
                stop -= 1
                self._op(stop)
        return replace(
            self.forward,
            ops=tuple(_with_roles_of(self.values, op) for op in self.ops),
            loops=tuple(self.loops),
            values=tuple(self.values),
            forward=self.forward,
        )

    def _loop(self, loop: Loop) -> None:
        if not any(value.id in self.gradients for value in loop.exit):
            return
        for value in loop.entry:
            if value.id in self.gradients:
                raise InputError(f"'{value.name}' is read after the layers too: its gradient is not counted")
        read_by_all = self._read_by_all(loop)
        for value in (*loop.exit, *read_by_all):
            if value.id not in self.gradients:
                self._zero(value)
        self.summed.update(value.id for value in read_by_all)
        tables = frozenset(
            self.gradients[value.id].storage for value in read_by_all if value.role is Role.WEIGHT
        )
        start, given = len(self.ops), tuple(self.gradients[value.id] for value in loop.exit)
        for index in reversed(range(loop.start, loop.stop)):
            self._op(index)
        passed_on = tuple(self.gradients[value.id] for value in loop.entry)
        self.loops.append(
            Loop(start, len(self.ops), loop.count, given, passed_on, mirrors=loop, shared=tables)
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
        op = self.forward.ops[index]
        self.at, self.parts, self.second = index, [], []
        if any(a.value.id in self.gradients for part in op.parts for a in part.writes):
            _RULES[op.kind](self, op)
        if self.parts:
            name, kind = f"{op.name}.backward", f"{op.kind}_backward"
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
        _activation(self, part, self.gradients[part.writes[0].value.id])


def _with_roles_of(values: list[Value], op: OpCost) -> OpCost:
    """The operator, with the role that each of its values has now."""
    accesses = [a for part in op.parts for a in (*part.reads, *part.writes)]
    if all(values[a.value.id].role is a.value.role for a in accesses):
        return op

    def now(accesses: tuple[Access, ...]) -> tuple[Access, ...]:
        return tuple(Access(values[a.value.id], a.elements) for a in accesses)

    return replace(op, parts=tuple(replace(p, reads=now(p.reads), writes=now(p.writes)) for p in op.parts))


# -- the rules ------------------------------------------------------------------------------------


def _linear(b: _Backward, op: OpCost) -> None:
    parts = {part.kind: part for part in op.parts}
    dy = b.gradients[op.parts[-1].writes[0].value.id]
    if "residual" in parts:
        b.give(parts["residual"].reads[1].value, dy)
    if "gate" in parts:
        dy = _gate(b, parts["gate"], dy)
    if "activation" in parts:
        dy = _activation(b, parts["activation"], dy)
    product = parts["matmul"]
    x, weight = product.reads
    b.emit("matmul", (whole(dy), weight), b.gradients_for(x), product.flops, product)
    weight_like = replace(product, rows=weight.value.shape[0])
    b.emit("matmul", (whole(dy), x), b.gradients_for(weight), product.flops, weight_like)
    if "bias" in parts:
        sums = b.gradients_for(parts["bias"].reads[1])
        b.emit("bias", (whole(dy),), sums, Flops(vector=dy.elements), parts["bias"])


def _gate(b: _Backward, part: Kernel, dy: Value) -> Value:
    """y = gate x, a gate for all rows of a sequence: dX = dY gate, dGate = the sum of dY X over its rows."""
    x, gate = part.reads
    dx = b.gradient_for(x.value)
    writes = (whole(dx), *b.gradients_for(gate))
    b.emit("gate", (whole(dy), b.kept(x), gate), writes, Flops(vector=3 * dy.elements), part)
    return dx


def _activation(b: _Backward, part: Kernel, dy: Value) -> Value:
    (x,), (y,) = part.reads, part.writes
    from_result = part.function in FROM_RESULT
    dx = b.gradient_for(x.value)
    work = Flops(vector=2 * part.flops.vector, exp=0 if from_result else part.flops.exp)
    b.emit("activation", (whole(dy), b.kept(y if from_result else x)), (whole(dx),), work, part)
    return dx


def _norms(b: _Backward, op: OpCost) -> None:
    """A norm and what modulates it, or those of the query and key heads."""
    for part in reversed(op.parts):
        dy = whole(b.gradients[part.writes[0].value.id])
        if part.kind == "modulate":  # dX = dY (1 + scale), dShift = sum dY, dScale = sum dY X
            x, _, scale = part.reads
            work = Flops(vector=4 * x.elements + scale.elements)
            b.emit("modulate", (dy, b.kept(x), scale), b.gradients_for(*part.reads), work, part)
            continue
        x, *weight = part.reads
        b.emit("norm", (dy, x, *weight[:1]), b.gradients_for(*part.reads), part.flops * 2, part)


def _attend(b: _Backward, op: OpCost) -> None:
    parts = {part.kind: part for part in op.parts}
    in_memory = {a.value.id for kernel in op.kernels(b.forward.lowering) for a in kernel.writes}
    if parts["softmax"].writes[0].value.id in in_memory:
        _stored_attention(b, parts)
    else:
        _recomputed_attention(b, op, parts, in_memory)
    if "rotate" in parts:
        rotate = parts["rotate"]
        turned = tuple(whole(b.gradients[a.value.id]) for a in rotate.writes if a.value.needs_grad)
        b.emit("rotate", turned, b.gradients_for(*rotate.reads), rotate.flops, rotate)


def _stored_attention(b: _Backward, parts: Mapping[str, Kernel]) -> None:
    """dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(P dP)), dQ = dS K, dK = dS^T Q.

    A bias passes dS on, and its table gets the sums by bucket; a softcap multiplies dS by its derivative,
    which follows from its result."""
    scores, softmax, values = parts["scores"], parts["softmax"], parts["values"]
    (q, k), (p, v) = scores.reads, values.reads
    do = whole(b.gradients[values.writes[0].value.id])
    dp, ds = b.gradients_for(p), b.gradients_for(*softmax.reads)
    b.emit("values", (b.kept(p), do), b.gradients_for(v), values.flops, values)
    b.emit("values", (do, v), dp, values.flops, values)
    b.emit("softmax", (b.kept(p), *dp), ds, Flops(vector=softmax.flops.vector), softmax)
    if "bias" in parts:
        before, table = parts["bias"].reads
        b.emit("bias", ds, b.gradients_for(table), parts["bias"].flops, parts["bias"])
        b.give(before.value, ds[0].value)
    if "softcap" in parts:
        (before,), (capped,) = parts["softcap"].reads, parts["softcap"].writes
        ds = b.gradients_for(before)
        given = whole(b.gradients[capped.value.id])
        work = Flops(vector=2 * parts["softcap"].flops.vector)
        b.emit("softcap", (given, b.kept(capped)), ds, work, parts["softcap"])
    b.emit("scores", (*ds, b.kept(k)), b.gradients_for(q), scores.flops, scores)
    b.emit("scores", (*ds, b.kept(q)), b.gradients_for(k), scores.flops, scores)


def _recomputed_attention(b: _Backward, op: OpCost, parts: Mapping[str, Kernel], in_memory: set[int]) -> None:
    """One kernel that computes P again from the log-sum-exp of each row's scores, then as above."""
    scores, softmax, values = parts["scores"], parts["softmax"], parts["values"]
    (q, k), (_, v), out = scores.reads, values.reads, values.writes[0]
    heads = softmax.writes[0].value.shape[0]
    lse = whole(b.new("lse", (out.value.shape[0], heads), "fp32", Role.ACTIVATION))
    saving = replace(values, writes=(out, lse))
    b.ops[b.at] = replace(op, parts=(*op.parts[:-1], saving))
    wanted = b.gradients_for(q, k, v)
    if "rotate" in parts and q.value.id not in in_memory:  # it stayed on chip too, so it is repeated
        rotate = parts["rotate"]
        turned = tuple(
            whole(b.new(a.value.name, a.value.shape, a.value.format, Role.SCRATCH)) for a in rotate.writes
        )
        b.emit("rotate", rotate.reads, turned, rotate.flops, rotate)
        q, k = Access(turned[0].value, q.elements), Access(turned[1].value, k.elements)
    else:
        q, k = b.kept(q), b.kept(k)
    do = b.gradients[out.value.id]
    softened = softmax.flops + Flops(vector=softmax.flops.vector + 2 * do.elements)  # and rowsum(dO O)
    work = scores.flops * (2 + len(wanted)) + softened
    tables: tuple[Access, ...] = ()
    if "softcap" in parts:  # again, and its derivative
        work += parts["softcap"].flops + Flops(vector=2 * parts["softcap"].flops.vector)
    if "bias" in parts:  # added again, and summed by bucket
        tables = parts["bias"].reads[1:]
        work += parts["bias"].flops * 2
    reads = (q, k, v, *tables, out, whole(do), lse)
    b.emit("attend_backward", reads, (*wanted, *b.gradients_for(*tables)), work, scores)


def _softcap(b: _Backward, op: OpCost) -> None:
    """The derivative, 1 - (y / cap)^2, follows from the result."""
    (part,) = op.parts
    dy = whole(b.gradients[part.writes[0].value.id])
    work = Flops(vector=2 * part.flops.vector)
    b.emit("softcap", (dy, b.kept(part.writes[0])), b.gradients_for(*part.reads), work, part)


def _add(b: _Backward, op: OpCost) -> None:
    dy = b.gradients[op.parts[0].writes[0].value.id]
    for access in op.parts[0].reads:
        b.give(access.value, dy)


def _add_vector(b: _Backward, op: OpCost) -> None:
    (part,) = op.parts
    dy = b.gradients[part.writes[0].value.id]
    b.emit("bias", (whole(dy),), b.gradients_for(*part.reads), Flops(vector=2 * dy.elements), part)


def _activate(b: _Backward, op: OpCost) -> None:
    (part,) = op.parts
    _activation(b, part, b.gradients[part.writes[0].value.id])


def _layout(b: _Backward, op: OpCost) -> None:
    """Rows go back to where they came from; a part that nobody has read adds nothing."""
    (part,) = op.parts
    given = tuple(whole(b.gradients[a.value.id]) for a in part.writes if a.value.id in b.gradients)
    indices = tuple(a for a in part.reads if a.value.role is Role.INPUT and not a.value.needs_grad)
    b.emit("gather", (*given, *indices), b.gradients_for(*part.reads), Flops(), part)


def _gather(b: _Backward, op: OpCost) -> None:
    (part,) = op.parts
    x, rows = part.reads
    dy = whole(b.gradients[part.writes[0].value.id])
    b.emit("gather", (dy, rows), b.gradients_for(x), Flops(), part)


def _embed(b: _Backward, op: OpCost) -> None:
    """Adds each row of dY to the row of the table's gradient that it was read from."""
    (part,) = op.parts
    ids, table = part.reads
    dy = b.gradients[part.writes[0].value.id]
    if table.value.id not in b.gradients:
        b.emit("fill", (), b.gradients_for(table), Flops(), part)
    before = b.gradients[table.value.id]
    after = b.gradients[table.value.id] = b.view(before)
    reads, writes = (ids, whole(dy), Access(before, table.elements)), (Access(after, table.elements),)
    b.emit("embed", reads, writes, Flops(vector=dy.elements), part)


_RULES = {
    **backward_experts.RULES,
    **backward_latent.RULES,
    "linear": _linear,
    "norm": _norms,
    "split": _norms,
    "attend": _attend,
    "add": _add,
    "softcap": _softcap,
    "add_vector": _add_vector,
    "activate": _activate,
    "layout": _layout,
    "gather": _gather,
    "embed": _embed,
}
