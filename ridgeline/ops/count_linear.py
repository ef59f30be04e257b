"""What a linear layer with its epilogue costs, and the exchange of a weight that ranks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ridgeline.ops.count_costs import ACTIVATION_COST, DROPOUT_COST
from ridgeline.ops.formats import product_format
from ridgeline.ops.kernel import Comm, Flops, Kernel, Value, whole
from ridgeline.ops.records import Activation, Weight

if TYPE_CHECKING:
    from ridgeline.ops.count import Count

#: What ranks that share a weight do together in the operators here.
COLLECTIVES = frozenset({"all_reduce", "all_gather"})


def linear(
    count: Count,
    x: Value,
    weight: Weight,
    bias: Weight | None,
    activation: Activation | None,
    residual: Value | None,
    name: str | None,
    gate: Value | None,
) -> Value:
    """residual + gate * act(x W^T + bias), each step a part: [rows, out]."""
    rows, (out, width) = x.shape[0], weight.shape
    matrix = count.weight(weight)
    # Where activations have a format of their own, they are converted to the weights' as they are read.
    compute = x.format if count.lowering.activations is None else product_format(weight.format)
    steps = [("matmul", out, (matrix,), Flops(matrix=2 * rows * width * out))]
    shard = weight.shard
    if shard is not None and shard.cut == "inputs":
        steps.append(("all_reduce", out, (), Flops()))
    if bias is not None:
        steps.append(("bias", out, (count.weight(bias),), Flops(vector=rows * out)))
    if activation is not None:
        gated = activation.endswith("_gated")
        vector, exp = ACTIVATION_COST[activation.removesuffix("_gated")]
        out = out // 2 if gated else out
        work = Flops(vector=rows * out * (vector + gated), exp=rows * out * exp)
        steps.append(("activation", out, (), work))
    if gate is not None:
        steps.append(("gate", out, (gate,), Flops(vector=rows * out)))
    if residual is not None and count.dropout:
        steps.append(("dropout", out, (), Flops(vector=DROPOUT_COST * rows * out)))
    if residual is not None:
        steps.append(("residual", out, (residual,), Flops(vector=rows * out)))
    if shard is not None and shard.cut == "vocab":
        steps.append(("all_gather", out * shard.ranks, (), Flops()))
    parts, y = [], x
    for kind, columns, others, work in steps:
        inputs, last = (y, *others), len(parts) == len(steps) - 1
        make = count.activation if last else count.scratch
        y = make(weight.name, (rows, columns), *inputs)
        function = activation if kind == "activation" else ""
        reads = tuple(whole(v) for v in inputs)
        writes = (whole(y), whole(count.dropout_mask(y))) if kind == "dropout" else (whole(y),)
        comm = Comm(kind, y.nbytes, shard.ranks, "tensor") if kind in COLLECTIVES else None
        parts.append(Kernel(kind, reads, writes, work, compute, rows, function, comm=comm))
    count.emit(name or weight.name, "linear", *parts)
    return y
