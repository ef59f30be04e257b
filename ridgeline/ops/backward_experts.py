"""The backward rules of a mixture of experts: those of its products, its sum and its choice.

Each product has two gradients, as a linear layer's. A row's gradient goes to the experts that it took, times
their weights; the weights' own is the product of that gradient with what the expert put out. The choice
itself has none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ridgeline.ops.kernel import Flops, Kernel, whole
from ridgeline.ops.trace import OpCost

if TYPE_CHECKING:
    from ridgeline.ops.backward import Backward


def route(b: Backward, op: OpCost) -> None:
    product, select = op.parts
    scores = (a for a in select.reads if a.value is product.writes[0].value)
    given = (whole(b.gradients[select.writes[0].value.id]), *map(b.kept, scores))
    # A softmax's gradient is p (g - sum(p g)), a sigmoid's p (1 - p) g: as many steps as forward at most.
    b.emit("select", given, b.gradients_for(*product.writes), Flops(vector=select.flops.vector), select)
    matrix_gradients(b, product)


def experts(b: Backward, op: OpCost) -> None:
    gather, gate_up, activation, down, scatter = op.parts
    outputs, routes, *residual = scatter.reads
    dy = b.gradients[scatter.writes[0].value.id]
    for access in residual:
        b.give(access.value, dy)
    reads = (whole(dy), b.kept(outputs), routes)
    work = Flops(vector=3 * outputs.elements)  # times the weight, and a product to sum for the weight's own
    b.emit("scatter", reads, b.gradients_for(outputs, routes), work, scatter)
    matrix_gradients(b, down)
    b.activation(activation)
    matrix_gradients(b, gate_up)
    given = tuple(whole(b.gradients[a.value.id]) for a in gather.writes if a.value.id in b.gradients)
    if given:
        x, routes = gather.reads
        b.emit("gather", (*given, routes), b.gradients_for(x), Flops(vector=given[0].elements), gather)


def matrix_gradients(b: Backward, product: Kernel) -> None:
    """dX = dY W and dW = dY^T X of a product Y = X W^T, each as many operations as the product."""
    x, weight = product.reads
    dy = whole(b.gradients[product.writes[0].value.id])
    b.emit(product.kind, (dy, weight), b.gradients_for(x), product.flops, product)
    weight_like = replace(product, rows=weight.value.shape[-2])
    b.emit(product.kind, (dy, b.kept(x)), b.gradients_for(weight), product.flops, weight_like)


RULES = {"route": route, "experts": experts}
