"""What a mixture of experts costs: the count's ``route`` and ``experts``.

Experts that no row takes are not read; how many that are is the assumption of
:mod:`ridgeline.ops.mixture`. Operations are those of the chosen experts alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ridgeline.ops.count_costs import ACTIVATION_COST
from ridgeline.ops.formats import product_format
from ridgeline.ops.kernel import Access, Comm, Flops, Kernel, Value, whole
from ridgeline.ops.mixture import Experts, Router, touched
from ridgeline.ops.numbers import Number, is_array
from ridgeline.ops.records import Weight

if TYPE_CHECKING:
    from ridgeline.ops.count import Count

#: Vector operations an expert in scoring: as a softmax's, or negate, add and divide of a sigmoid.
SCORE_COST = {"softmax": 4, "sigmoid": 3}
#: Vector operations an expert in choosing: a comparison with the least of the best so far.
CHOOSE_COST = 1


def route(count: Count, x: Value, router: Router) -> Value:
    """The weight of every row for every chosen expert; their numbers go with them."""
    rows, width = x.shape
    experts = router.experts
    matrix = count.weight(router.weight)
    logits = count.scratch(router.weight.name, (rows, experts), x, matrix)
    routes = count.activation("routes", (rows, router.chosen), logits)
    product = Flops(matrix=2 * rows * width * experts)
    compute = x.format if count.lowering.activations is None else product_format(router.weight.format)
    reads = [whole(logits)]
    if router.bias is not None:
        reads.append(whole(count.weight(router.bias)))
    # A bias is one addition an expert; groups are scored by one comparison an expert, as the choice is.
    steps = SCORE_COST[router.scoring] + CHOOSE_COST + (router.bias is not None) + (router.groups > 1)
    after = 2 * rows * router.chosen if router.normalised else 0
    work = Flops(vector=rows * experts * steps + after, exp=rows * experts)
    count.emit(
        router.weight.name,
        "route",
        Kernel("matmul", (whole(x), whole(matrix)), (whole(logits),), product, compute, rows),
        count.part("select", tuple(reads), (whole(routes),), work, rows),
    )
    return routes


def experts(count: Count, x: Value, routes: Value, experts: Experts, residual: Value | None) -> Value:
    """residual + the weighted sum of the chosen experts' outputs, [rows, width].

    Where ranks share the experts, each computes those that it holds for the tokens of all replicas, which are
    sent there and back; where they share every expert's matrices, each computes its part for all its tokens.
    Either way the ranks of a replica add what they have before the residual.
    """
    (rows, width), chosen, shard = x.shape, routes.shape[1], experts.gate_up.shard
    ranks, replicas = (shard.ranks, shard.replicas) if shard and shard.cut == "experts" else (1, 1)
    number = experts.number * ranks
    used = touched(number, chosen, rows * replicas)
    if chosen < number:
        count.assume(_statement(number, chosen, used))
    used = used / ranks
    gate_up, down = count.weight(experts.gate_up), count.weight(experts.down)
    taken = rows * chosen * replicas / ranks if ranks > 1 else rows * chosen
    if replicas > 1:
        x = _exchanged(count, f"{experts.name}.dispatch", x, (taken, width), taken, replicas)
    gathered = count.scratch("gathered", (taken, width), x)
    hidden = count.scratch(experts.gate_up.name, (taken, 2 * experts.intermediate), gathered, gate_up)
    gated = count.scratch(experts.name, (taken, experts.intermediate), hidden)
    make = count.activation if replicas > 1 else count.scratch  # what is sent leaves the operator
    outputs = make(experts.down.name, (taken, width), gated, down)
    vector, exp = ACTIVATION_COST[experts.activation.removesuffix("_gated")]

    def product(kind: str, a: Value, weight: Weight, b: Value) -> Kernel:
        compute = x.format if count.lowering.activations is None else product_format(weight.format)
        stored = count.weight(weight)
        reads = (whole(a), Access(stored, used * (stored.elements / experts.number)))
        work = Flops(matrix=2 * taken * weight.shape[1] * weight.shape[2])
        return Kernel(kind, reads, (whole(b),), work, compute, taken / used, groups=used)

    parts = [
        # A row that several experts take is read once from afar and again from nearby.
        count.part("gather", (whole(x), whole(routes)), (whole(gathered),), Flops(), taken),
        product("matmul", gathered, experts.gate_up, hidden),
        Kernel(
            "activation",
            (whole(hidden),),
            (whole(gated),),
            Flops(vector=gated.elements * (vector + 1), exp=gated.elements * exp),
            count.activations,
            rows,
            experts.activation,
        ),
        product("down", gated, experts.down, outputs),
    ]
    if replicas > 1:
        count.emit(experts.name, "experts", *parts)
        parts = []
        outputs = _exchanged(count, f"{experts.name}.combine", outputs, outputs.shape, taken, replicas)
    reduced = shard is not None and shard.tensor > 1
    added = () if residual is None else (residual,)
    y = count.activation(experts.name, (rows, width), outputs, routes, *(() if reduced else added))
    sums = Flops(vector=2 * outputs.elements + (y.elements if added and not reduced else 0))
    inputs = (outputs, routes, *(() if reduced else added))
    parts.append(count.part("scatter", tuple(map(whole, inputs)), (whole(y),), sums, rows))
    if reduced:
        partial, y = y, count.activation(experts.name, y.shape, y)
        reduction = count.part("all_reduce", (whole(partial),), (whole(y),), Flops(), rows)
        parts.append(replace(reduction, comm=Comm("all_reduce", y.nbytes, shard.tensor, "tensor")))
    if reduced and added:
        summed, y = y, count.activation(experts.name, y.shape, y, residual)
        work = Flops(vector=y.elements)
        parts.append(count.part("residual", (whole(summed), whole(residual)), (whole(y),), work, rows))
    count.emit(experts.name, "experts", *parts)
    return y


def _exchanged(
    count: Count, name: str, x: Value, shape: tuple[Number, ...], taken: Number, replicas: int
) -> Value:
    """The rows of all replicas' tokens where they are wanted: an all-to-all among the replicas."""
    y = count.activation(name, shape, x)
    part = count.part("all_to_all", (whole(x),), (whole(y),), Flops(), taken)
    comm = Comm("all_to_all", y.nbytes, replicas, "expert")
    count.emit(name, "communicate", replace(part, comm=comm))
    return y


def _statement(number: int, chosen: int, used: Number) -> str:
    chance = "experts are chosen uniformly, whatever other tokens choose"
    if is_array(used):
        return f"{chance}, {chosen} of {number} by each"
    return f"{chance}: {_figure(used)} of {number} are touched a layer"


def _figure(n: float) -> str:
    return f"{n:.0f}" if abs(n - round(n)) < 0.05 else f"{n:.1f}"
