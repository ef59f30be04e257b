"""The count of the operators that diffusion Transformers add: modulation, and rows in another order.

A modulation's vectors belong to a sequence, not to a row, so they are read once a sequence. Cutting columns
makes views. Joining, splitting and permuting rows move every row once, as the field's implementations do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ridgeline.ops.batch import Span
from ridgeline.ops.numbers import Number
from ridgeline.ops.records import Activation, Norm, Weight
from ridgeline.ops.trace import Flops, Kernel, Value, whole

if TYPE_CHECKING:
    from ridgeline.ops.count import Count

#: Vector operations an element that is modulated: times 1 + scale, plus shift.
MODULATE_COST = 2


def modulated_norm(
    count: Count, x: Value, norm: Norm, shift: Value, scale: Value, weights: list[Value]
) -> Value:
    """norm(x) (1 + scale) + shift, with the vectors of each row's sequence."""
    normed = count._scratch(norm.name, x.shape, x, *weights)
    y = count._activation(norm.name, x.shape, normed, shift, scale)
    work = Flops(vector=MODULATE_COST * x.elements + scale.elements)
    reads = (whole(normed), whole(shift), whole(scale))
    modulate = count._part("modulate", reads, (whole(y),), work, x.shape[0])
    count._emit(norm.name, "norm", count._norm_part(x, normed, norm), modulate)
    return y


def activate(count: Count, x: Value, activation: Activation) -> Value:
    from ridgeline.ops.count import ACTIVATION_COST

    vector, exp = ACTIVATION_COST[activation]
    y = count._activation(activation, x.shape, x)
    work = Flops(vector=vector * x.elements, exp=exp * x.elements)
    reads, writes = (whole(x),), (whole(y),)
    count._emit(
        activation,
        "activate",
        Kernel("activation", reads, writes, work, count.activations, x.shape[0], activation),
    )
    return y


def add_vector(count: Count, x: Value, vector: Weight) -> Value:
    added = count._weight(vector)
    y = count._activation(vector.name, (x.shape[0], vector.shape[0]), x, added)
    part = count._part("add", (whole(x), whole(added)), (whole(y),), Flops(vector=y.elements), x.shape[0])
    count._emit(vector.name, "add_vector", part)
    return y


def columns(count: Count, x: Value, parts: int) -> tuple[Value, ...]:
    rows, width = x.shape
    count._emit("columns", "split")
    return tuple(count._view("columns", x, (rows, width // parts)) for _ in range(parts))


def stack_columns(count: Count, x: Value, parts: int) -> Value:
    rows, width = x.shape
    count._emit("stack_columns", "split")
    return count._view("stack_columns", x, (rows * parts, width // parts))


def unstack_rows(count: Count, x: Value, parts: int) -> Value:
    rows, width = x.shape
    count._emit("unstack_rows", "split")
    return count._view("unstack_rows", x, (rows // parts, width * parts))


def join_columns(count: Count, a: Value, b: Value) -> Value:
    rows = a.shape[0]
    y = count._activation("join_columns", (rows, a.shape[1] + b.shape[1]), a, b)
    part = count._part("gather", (whole(a), whole(b)), (whole(y),), Flops(), rows)
    count._emit("join_columns", "layout", part)
    return y


def permute_rows(count: Count, x: Value, order: Value) -> Value:
    y = count._activation("permute_rows", x.shape, x)
    part = count._part("gather", (whole(x), whole(order)), (whole(y),), Flops(), x.shape[0])
    count._emit("permute_rows", "layout", part)
    return y


def join_rows(count: Count, a: Value, b: Value) -> Value:
    rows = a.shape[0] + b.shape[0]
    y = count._activation("join_rows", (rows, *a.shape[1:]), a, b)
    part = count._part("gather", (whole(a), whole(b)), (whole(y),), Flops(), rows)
    count._emit("join_rows", "layout", part)
    return y


def split_rows(count: Count, x: Value, first: Iterable[Span], second: Iterable[Span]) -> tuple[Value, Value]:
    a, b = (count._activation("split_rows", (_rows(spans), *x.shape[1:]), x) for spans in (first, second))
    part = count._part("gather", (whole(x),), (whole(a), whole(b)), Flops(), x.shape[0])
    count._emit("split_rows", "layout", part)
    return a, b


def _rows(spans: Iterable[Span]) -> Number:
    return sum(span.rows * span.count for span in spans)
