"""The backward rule of multi-head latent attention, which trains in the expanded form.

Attention's own products are as for other heads (see :mod:`ridgeline.ops.backward`), with keys and values of
different sizes; the gradients of every head's keys and values go back through the product that made them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ridgeline.ops.backward_experts import matrix_gradients
from ridgeline.ops.kernel import Flops, Kernel, Role, whole
from ridgeline.ops.trace import OpCost

if TYPE_CHECKING:
    from ridgeline.ops.backward import Backward


def attend_latent(b: Backward, op: OpCost) -> None:
    norm, *rotate, expand, scores, softmax, values = op.parts
    in_memory = {a.value.id for kernel in op.kernels(b.forward.lowering) for a in kernel.writes}
    if softmax.writes[0].value.id in in_memory:
        _stored(b, scores, softmax, values)
    else:
        _recomputed(b, op, scores, softmax, values)
    for part in rotate:
        turned = tuple(whole(b.gradients[a.value.id]) for a in part.writes if a.value.needs_grad)
        b.emit("rotate", turned, b.gradients_for(*part.reads), part.flops, part)
    matrix_gradients(b, expand)
    x, weight = norm.reads
    reads = (whole(b.gradients[norm.writes[0].value.id]), x, weight)
    b.emit("norm", reads, b.gradients_for(x, weight), norm.flops * 2, norm)


def _stored(b: Backward, scores: Kernel, softmax: Kernel, values: Kernel) -> None:
    content, rotated, k, shared = scores.reads
    p, v = values.reads
    do = whole(b.gradients[values.writes[0].value.id])
    dp, ds = b.gradients_for(p), b.gradients_for(*softmax.reads)
    b.emit("values", (b.kept(p), do), b.gradients_for(v), values.flops, values)
    b.emit("values", (do, b.kept(v)), dp, values.flops, values)
    b.emit("softmax", (b.kept(p), *dp), ds, Flops(vector=softmax.flops.vector), softmax)
    keys, queries = (b.kept(k), b.kept(shared)), (b.kept(content), b.kept(rotated))
    b.emit("scores", (*ds, *keys), b.gradients_for(content, rotated), scores.flops, scores)
    b.emit("scores", (*ds, *queries), b.gradients_for(k, shared), scores.flops, scores)


def _recomputed(b: Backward, op: OpCost, scores: Kernel, softmax: Kernel, values: Kernel) -> None:
    """One kernel: scores again, then the four gradients' products."""
    (_, v), out = values.reads, values.writes[0]
    heads = softmax.writes[0].value.shape[0]
    lse = whole(b.new("lse", (out.value.shape[0], heads), "fp32", Role.ACTIVATION))
    saving = replace(values, writes=(out, lse))
    b.ops[b.at] = replace(op, parts=tuple(saving if part is values else part for part in op.parts))
    wanted = b.gradients_for(*scores.reads, v)
    do = b.gradients[out.value.id]
    softened = softmax.flops + Flops(vector=softmax.flops.vector + 2 * do.elements)  # and rowsum(dO O)
    work = scores.flops * 3 + values.flops * 2 + softened
    reads = (*map(b.kept, scores.reads), b.kept(v), out, whole(do), lse)
    b.emit("attend_latent_backward", reads, wanted, work, scores)


RULES = {"attend_latent": attend_latent}
