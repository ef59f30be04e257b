"""The optimizer's step, counted: one element-wise kernel a weight, after the backward pass.

A state is a tensor of the weight's shape that stays from step to step. In mixed precision a copy of the
weights in float32, the master weights, is a state too: the update is made to it and rounded into the
weights (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ridgeline.errors import InputError
from ridgeline.ops.kernel import Access, Flops, Kernel, Role, Value
from ridgeline.ops.trace import OpCost, Trace


@dataclass(frozen=True)
class Optimizer:
    """``states`` are tensors of the weight's shape that it keeps, ``work`` its vector operations an
    element. One that is ``factored`` keeps the sums of a matrix's rows and of its columns instead, and
    reads the gradient twice; of a vector it keeps all. ``format`` is that of the states, None for that
    of the weights they belong to, or of the master weights where there are some.
    """

    name: str
    states: int
    work: int
    factored: bool = False
    format: str | None = None


#: Operations counted from the update rules: a multiplication, an addition, a division or a root each.
OPTIMIZERS: dict[str, Optimizer] = {
    o.name: o
    for o in (
        Optimizer("sgd", 0, 2),
        Optimizer("sgd-momentum", 1, 4),
        Optimizer("adam", 2, 12),
        Optimizer("adamw", 2, 13),
        # Dettmers et al. 2022, arXiv:2110.02861: blocks of 256 with a scale each; both states are expanded,
        # updated and rounded again.
        Optimizer("adamw-8bit", 2, 21, format="int8-g256"),
        # Shazeer and Stern 2018, arXiv:1804.04235, without a first moment.
        Optimizer("adafactor", 1, 12, factored=True, format="fp32"),
    )
}


def get_optimizer(name: str) -> Optimizer:
    """The optimizer of that name; InputError lists them."""
    try:
        return OPTIMIZERS[name]
    except KeyError:
        raise InputError(f"optimizer is {name!r}; choose one of: {', '.join(OPTIMIZERS)}") from None


def step(trace: Trace, optimizer: Optimizer, *, master: str | None = None, shards: int = 1) -> Trace:
    """The trace of forward and backward pass followed by the optimizer's step.

    ``master`` is the format of the master weights, None where the weights themselves are updated. Of
    ``shards`` devices that share the states (ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054) this one
    updates its part; the states' values keep their whole shape.

    Raises InputError for a trace without a backward pass.
    """
    if trace.forward is None:
        raise InputError("an optimizer needs gradients: extend the trace by its backward pass first")
    values, ops = list(trace.values), list(trace.ops)
    repeats = {a.value.id: op.repeat for op in trace.forward.ops for part in op.parts for a in part.reads}
    for loop in trace.forward.loops:  # what all iterations share is one weight, and has one update
        repeats |= dict.fromkeys(loop.shared, 1)
    for weight, gradient in trace.weight_gradients:
        states = _states(values, weight, optimizer, master)
        reads = [gradient] * (2 if optimizer.factored else 1) + (states if master else [weight, *states])
        writes = [weight, *states]
        share = tuple(tuple(Access(v, v.elements / shards) for v in side) for side in (reads, writes))
        work = Flops(vector=optimizer.work * weight.elements / shards)
        kernel = Kernel("optimizer", *share, work, "fp32", weight.shape[0], optimizer.name)
        ops.append(OpCost(f"{weight.name}.update", "optimizer", (kernel,), repeats[weight.id]))
    return replace(trace, ops=tuple(ops), values=tuple(values))


def _states(values: list[Value], weight: Value, optimizer: Optimizer, master: str | None) -> list[Value]:
    """Appends the weight's states to ``values``; the master weights come first."""
    format = optimizer.format or master or weight.format
    shapes = [(f"state {i}", weight.shape) for i in range(optimizer.states)]
    if optimizer.factored and len(weight.shape) > 1:
        shapes = [("rows", weight.shape[:-1]), ("columns", (*weight.shape[:-2], weight.shape[-1]))]
    wanted = [("master", weight.shape, master)] if master else []
    wanted += [(name, shape, format) for name, shape in shapes]
    states = []
    for name, shape, stored in wanted:
        states.append(Value(len(values), f"{weight.name}.{name}", shape, stored, Role.STATE))
        values.append(states[-1])
    return states
