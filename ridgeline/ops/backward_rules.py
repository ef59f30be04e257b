"""A rule for each kind of operator: what its gradients read, write and compute."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ridgeline.ops import backward_experts, backward_latent
from ridgeline.ops.kernel import Access, Flops, Kernel, Role, Value, whole
from ridgeline.ops.recompute import Recompute, attention_again
from ridgeline.ops.trace import LSE, OpCost

if TYPE_CHECKING:
    from ridgeline.ops.backward import Backward

#: Activations whose derivative follows from their result, so that their input need not be kept.
FROM_RESULT = ("relu", "tanh")


def _linear(b: Backward, op: OpCost) -> None:
    parts = {part.kind: part for part in op.parts}
    dy = b.gradients[op.parts[-1].writes[0].value.id]
    if "residual" in parts:
        b.give(parts["residual"].reads[1].value, dy)
    if "dropout" in parts:
        dy = _dropout(b, parts["dropout"], dy)
    if "gate" in parts:
        dy = _gate(b, parts["gate"], dy)
    if "activation" in parts:
        dy = activation(b, parts["activation"], dy)
    product = parts["matmul"]
    x, weight = product.reads
    b.emit("matmul", (whole(dy), weight), b.gradients_for(x), product.flops, product)
    weight_like = replace(product, rows=weight.value.shape[0])
    b.emit("matmul", (whole(dy), x), b.gradients_for(weight), product.flops, weight_like)
    if "bias" in parts:
        sums = b.gradients_for(parts["bias"].reads[1])
        b.emit("bias", (whole(dy),), sums, Flops(vector=dy.elements), parts["bias"])


def _gate(b: Backward, part: Kernel, dy: Value) -> Value:
    """y = gate x, a gate for all rows of a sequence: dX = dY gate, dGate = the sum of dY X over its rows."""
    x, gate = part.reads
    dx = b.gradient_for(x.value)
    writes = (whole(dx), *b.gradients_for(gate))
    b.emit("gate", (whole(dy), b.kept(x), gate), writes, Flops(vector=3 * dy.elements), part)
    return dx


def activation(b: Backward, part: Kernel, dy: Value) -> Value:
    (x,), (y,) = part.reads, part.writes
    from_result = part.function in FROM_RESULT
    dx = b.gradient_for(x.value)
    work = Flops(vector=2 * part.flops.vector, exp=0 if from_result else part.flops.exp)
    b.emit("activation", (whole(dy), b.kept(y if from_result else x)), (whole(dx),), work, part)
    return dx


def _dropout(b: Backward, part: Kernel, dy: Value) -> Value:
    """dX = dY where the mask let X through, scaled as X was."""
    (x,), (_, mask) = part.reads, part.writes
    dx = b.gradient_for(x.value)
    b.emit("dropout", (whole(dy), b.kept(mask)), (whole(dx),), part.flops, part)
    return dx


def _norms(b: Backward, op: OpCost) -> None:
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


def _attend(b: Backward, op: OpCost) -> None:
    before = [part for part in op.parts if part.kind == "rotate"]
    softmax = next(part for part in op.parts if part.kind == "softmax")
    in_memory = {a.value.id for kernel in op.kernels(b.forward.lowering) for a in kernel.writes}
    if softmax.writes[0].value.id in in_memory:
        kept = op
        if b.policy is Recompute.SELECTIVE:
            again, kept = attention_again(b.values, op)
            b.ops.append(again)
            _keep_inputs(b, again)
        _stored_attention(b, kept)
    else:
        _recomputed_attention(b, op, in_memory)
    for rotate in before:
        turned = tuple(whole(b.gradients[a.value.id]) for a in rotate.writes if a.value.needs_grad)
        b.emit("rotate", turned, b.gradients_for(*rotate.reads), rotate.flops, rotate)


def _keep_inputs(b: Backward, again: OpCost) -> None:
    """What the operator reads outlives the forward pass."""
    made = {a.value.id for part in again.parts for a in part.writes}
    for access in (a for part in again.parts for a in part.reads):
        if access.value.id not in made:
            b.kept(access)


def _stored_attention(b: Backward, op: OpCost) -> None:
    """dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(P dP)), dQ = dS K, dK = dS^T Q.

    A bias passes dS on, and its table gets the sums by bucket; a softcap multiplies dS by its derivative,
    which follows from its result."""
    parts = {part.kind: part for part in op.parts}
    scores, softmax, values = parts["scores"], parts["softmax"], parts["values"]
    (q, k), (dropped, v) = scores.reads, values.reads
    p = softmax.writes[0]
    do = whole(b.gradients[values.writes[0].value.id])
    d_dropped = b.gradients_for(dropped)
    b.emit("values", (b.kept(dropped), do), b.gradients_for(v), values.flops, values)
    b.emit("values", (do, v), d_dropped, values.flops, values)
    dp = d_dropped
    if "dropout" in parts and d_dropped:
        dp = (whole(_dropout(b, parts["dropout"], d_dropped[0].value)),)
    ds = b.gradients_for(*softmax.reads)
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


def _recomputed_attention(b: Backward, op: OpCost, in_memory: set[int]) -> None:
    """One kernel that computes P again from the log-sum-exp of each row's scores, then as above; the mask
    of dropout is drawn again from its seed."""
    *before, scores = [part for part in op.parts if part.kind in ("rotate", "scores")]
    (softmax,) = [part for part in op.parts if part.kind == "softmax"]
    others = {part.kind: part for part in op.parts if part.kind in ("dropout", "softcap", "bias")}
    values = op.parts[-1]
    (q, k), (_, v), out = scores.reads, values.reads, values.writes[0]
    heads = softmax.writes[0].value.shape[0]
    lse = whole(b.new(LSE, (out.value.shape[0], heads), "fp32", Role.ACTIVATION))
    saving = replace(values, writes=(out, lse))
    b.ops[b.at] = replace(op, parts=(*op.parts[:-1], saving))
    wanted = b.gradients_for(q, k, v)
    if before and q.value.id not in in_memory:  # the rotation stayed on chip too, so it is repeated
        (rotate,) = before
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
    if "dropout" in others:  # of P, and of its gradient
        work += others["dropout"].flops * 2
    if "softcap" in others:  # again, and its derivative
        work += others["softcap"].flops + Flops(vector=2 * others["softcap"].flops.vector)
    if "bias" in others:  # added again, and summed by bucket
        tables = others["bias"].reads[1:]
        work += others["bias"].flops * 2
    reads = (q, k, v, *tables, out, whole(do), lse)
    b.emit("attend_backward", reads, (*wanted, *b.gradients_for(*tables)), work, scores)


def _softcap(b: Backward, op: OpCost) -> None:
    """The derivative, 1 - (y / cap)^2, follows from the result."""
    (part,) = op.parts
    dy = whole(b.gradients[part.writes[0].value.id])
    work = Flops(vector=2 * part.flops.vector)
    b.emit("softcap", (dy, b.kept(part.writes[0])), b.gradients_for(*part.reads), work, part)


def _add(b: Backward, op: OpCost) -> None:
    dy = b.gradients[op.parts[0].writes[0].value.id]
    for access in op.parts[0].reads:
        b.give(access.value, dy)


def _add_vector(b: Backward, op: OpCost) -> None:
    (part,) = op.parts
    dy = b.gradients[part.writes[0].value.id]
    b.emit("bias", (whole(dy),), b.gradients_for(*part.reads), Flops(vector=2 * dy.elements), part)


def _activate(b: Backward, op: OpCost) -> None:
    (part,) = op.parts
    activation(b, part, b.gradients[part.writes[0].value.id])


def _layout(b: Backward, op: OpCost) -> None:
    """Rows go back to where they came from; a part that nobody has read adds nothing."""
    (part,) = op.parts
    given = tuple(whole(b.gradients[a.value.id]) for a in part.writes if a.value.id in b.gradients)
    indices = tuple(a for a in part.reads if a.value.role is Role.INPUT and not a.value.needs_grad)
    b.emit("gather", (*given, *indices), b.gradients_for(*part.reads), Flops(), part)


def _gather(b: Backward, op: OpCost) -> None:
    (part,) = op.parts
    x, rows = part.reads
    dy = whole(b.gradients[part.writes[0].value.id])
    b.emit("gather", (dy, rows), b.gradients_for(x), Flops(), part)


def _embed(b: Backward, op: OpCost) -> None:
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


def _loss(b: Backward, op: OpCost) -> None:
    """Softmax of the logits, from their log-sum-exp, less one at each target."""
    (part,) = op.parts
    logits, targets = part.reads
    dy = whole(b.gradients[part.writes[0].value.id])
    work = Flops(vector=2 * logits.elements, exp=logits.elements)
    reads = (logits, targets, part.writes[1], dy)
    b.emit("loss", reads, b.gradients_for(logits), work, part)


RULES = {
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
    "loss": _loss,
}
