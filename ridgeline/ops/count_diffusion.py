"""The count of the operators that diffusion Transformers add: modulation, and rows in another order.

A modulation's vectors belong to a sequence, not to a row, so they are read once a sequence. Cutting columns
makes views. Joining, splitting and permuting rows move every row once, as the field's implementations do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ridgeline.ops.batch import Span
from ridgeline.ops.count_costs import ACTIVATION_COST
from ridgeline.ops.kernel import Flops, Kernel, Value, whole
from ridgeline.ops.numbers import Number
from ridgeline.ops.records import Activation, Norm, Weight

if TYPE_CHECKING:
    from ridgeline.ops.count import Count

#: Vector operations an element that is modulated: times 1 + scale, plus shift.
MODULATE_COST = 2


def modulated_norm(
    count: Count, x: Value, norm: Norm, shift: Value, scale: Value, weights: list[Value]
) -> Value:
    """norm(x) (1 + scale) + shift, with the vectors of each row's sequence."""
    normed = count.scratch(norm.name, x.shape, x, *weights)
    y = count.activation(norm.name, x.shape, normed, shift, scale)
    work = Flops(vector=MODULATE_COST * x.elements + scale.elements)
    reads = (whole(normed), whole(shift), whole(scale))
    modulate = count.part("modulate", reads, (whole(y),), work, x.shape[0])
    count.emit(norm.name, "norm", count.norm_part(x, normed, norm), modulate)
    return y


def activate(count: Count, x: Value, activation: Activation) -> Value:
    vector, exp = ACTIVATION_COST[activation]
    y = count.activation(activation, x.shape, x)
    work = Flops(vector=vector * x.elements, exp=exp * x.elements)
    reads, writes = (whole(x),), (whole(y),)
    count.emit(
        activation,
        "activate",
        Kernel("activation", reads, writes, work, count.activations, x.shape[0], activation),
    )
    return y


def add_vector(count: Count, x: Value, vector: Weight) -> Value:
    added = count.weight(vector)
    y = count.activation(vector.name, (x.shape[0], vector.shape[0]), x, added)
    part = count.part("add", (whole(x), whole(added)), (whole(y),), Flops(vector=y.elements), x.shape[0])
    count.emit(vector.name, "add_vector", part)
    return y


def columns(count: Count, x: Value, parts: int) -> tuple[Value, ...]:
    rows, width = x.shape
    count.emit("columns", "split")
    return tuple(count.view("columns", x, (rows, width // parts)) for _ in range(parts))


def stack_columns(count: Count, x: Value, parts: int) -> Value:
    rows, width = x.shape
    count.emit("stack_columns", "split")
    return count.view("stack_columns", x, (rows * parts, width // parts))


def unstack_rows(count: Count, x: Value, parts: int) -> Value:
    rows, width = x.shape
    count.emit("unstack_rows", "split")
    return count.view("unstack_rows", x, (rows // parts, width * parts))


def join_columns(count: Count, a: Value, b: Value) -> Value:
    rows = a.shape[0]
    y = count.activation("join_columns", (rows, a.shape[1] + b.shape[1]), a, b)
    part = count.part("gather", (whole(a), whole(b)), (whole(y),), Flops(), rows)
    count.emit("join_columns", "layout", part)
    return y


def permute_rows(count: Count, x: Value, order: Value) -> Value:
    y = count.activation("permute_rows", x.shape, x)
    part = count.part("gather", (whole(x), whole(order)), (whole(y),), Flops(), x.shape[0])
    count.emit("permute_rows", "layout", part)
    return y


def join_rows(count: Count, a: Value, b: Value) -> Value:
    rows = a.shape[0] + b.shape[0]
    y = count.activation("join_rows", (rows, *a.shape[1:]), a, b)
    part = count.part("gather", (whole(a), whole(b)), (whole(y),), Flops(), rows)
    count.emit("join_rows", "layout", part)
    return y


def split_rows(count: Count, x: Value, first: Iterable[Span], second: Iterable[Span]) -> tuple[Value, Value]:
    a, b = (count.activation("split_rows", (_rows(spans), *x.shape[1:]), x) for spans in (first, second))
    part = count.part("gather", (whole(x),), (whole(a), whole(b)), Flops(), x.shape[0])
    count.emit("split_rows", "layout", part)
    return a, b


def _rows(spans: Iterable[Span]) -> Number:
    return sum(span.rows * span.count for span in spans)
