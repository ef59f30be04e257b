"""Experts shared among ranks: all ranks together against the whole model, and what they exchange."""

import numpy
import pytest

from ridgeline.analysis.layout_search import Fixed
from ridgeline.analysis.parallel import best_layouts, parallel
from ridgeline.analysis.step import trace_step
from ridgeline.errors import InputError
from ridgeline.hardware.cluster import load_cluster
from ridgeline.models import declare, load_config
from ridgeline.models.sharding import shard
from ridgeline.ops.batch import Span
from ridgeline.ops.mixture import touched
from ridgeline.predict.layout import Layout

MIXTRAL = declare(load_config("mixtral-8x7b"))
EXPERTS, CHOSEN, WIDTH, ROWS = 8, 2, 4096, 48
SHAPES = [(2, 0), (4, 0), (1, 2), (2, 1), (2, 2), (2, 4), (1, 8)]  # tensor ranks, replicas that share experts


def step(model, rows=ROWS):
    return trace_step(model, [Span(rows)])


def of_experts(trace):
    return [op for op in trace.ops if op.name.startswith("mlp.experts")]


def flops(trace):
    return sum(op.flops.matrix * op.repeat for op in of_experts(trace))


@pytest.mark.parametrize(("tensor", "replicas"), SHAPES)
def test_all_ranks_together_compute_all_tokens_experts(tensor, replicas):
    """Each replica has tokens of its own, so replicas that share experts compute their tokens together."""
    ours = step(shard(MIXTRAL, tensor, replicas))
    assert flops(ours) * tensor == pytest.approx(flops(step(MIXTRAL)))


@pytest.mark.parametrize(("tensor", "replicas"), SHAPES)
def test_ranks_hold_every_expert_once(tensor, replicas):
    ranks = tensor * max(replicas, 1)
    whole, ours = (
        sum(w.nbytes for w in model.weights() if w.name.startswith("mlp.experts"))
        for model in (MIXTRAL, shard(MIXTRAL, tensor, replicas))
    )
    assert ours * ranks == whole


@pytest.mark.parametrize(("tensor", "replicas"), [(1, 2), (2, 1), (2, 2), (1, 8)])
def test_together_they_read_the_experts_that_any_of_their_tokens_takes(tensor, replicas):
    model = shard(MIXTRAL, tensor, replicas)
    for rows in (1, 3, ROWS):
        parts = [p for op in of_experts(step(model, rows)) for p in op.parts if p.kind == "matmul"]
        (read,) = [a for a in parts[0].reads if a.value.name == "mlp.experts.gate_up"]
        held = EXPERTS // (tensor * replicas)
        expected = touched(EXPERTS, CHOSEN, rows * replicas) / (tensor * replicas)
        assert read.elements / (read.value.elements / held) == pytest.approx(expected)


@pytest.mark.parametrize(("tensor", "replicas"), SHAPES)
def test_tokens_go_to_their_experts_and_back_and_sums_are_added(tensor, replicas):
    exchanged = [
        p.comm for op in of_experts(step(shard(MIXTRAL, tensor, replicas))) for p in op.parts if p.comm
    ]
    kinds = [(comm.collective, comm.axis, comm.ranks) for comm in exchanged]
    there_and_back = [("all_to_all", "expert", replicas)] * 2 if replicas > 1 else []
    added = [("all_reduce", "tensor", tensor)] if tensor > 1 else []
    assert kinds == there_and_back + added
    for comm in exchanged:
        tokens = ROWS * CHOSEN / tensor if comm.collective == "all_to_all" else ROWS
        assert comm.bytes == tokens * WIDTH * 2


def test_tokens_drawn_at_random_cross_replicas_as_often_as_counted():
    """By drawing: eight experts over four replicas; a copy of a token goes to each of its experts."""
    draw = numpy.random.default_rng(0)
    rows, replicas = 4000, 4
    sent = numpy.zeros((replicas, replicas))
    for origin in range(replicas):
        for _ in range(rows):
            for expert in draw.choice(EXPERTS, CHOSEN, replace=False):
                sent[origin, expert // (EXPERTS // replicas)] += 1
    (dispatch,) = [
        p.comm
        for op in step(shard(MIXTRAL, 1, replicas), rows).ops
        for p in op.parts
        if op.name == "mlp.experts.dispatch"
    ]
    copies = dispatch.bytes / (WIDTH * 2)
    assert sent.sum(axis=1) == pytest.approx([copies] * replicas)
    assert sent.sum(axis=0) == pytest.approx([copies] * replicas, rel=0.05)


def test_a_residual_follows_the_sum_over_ranks():
    (op,) = of_experts(step(shard(MIXTRAL, 2)))
    assert [p.kind for p in op.parts][-3:] == ["scatter", "all_reduce", "residual"]
    assert sum(p.flops.vector for p in op.parts if p.kind == "residual") == ROWS * WIDTH


def test_experts_of_a_layout_lie_in_its_replicas():
    layout = Layout(tensor=2, data=8, expert=8)
    assert layout.expert_replicas == 4
    found = layout.group("expert", 8)
    assert (found.ranks, found.per_node, found.concurrent) == (4, 4, 2)
    assert str(layout) == "tp2 dp8 ep8"


@pytest.mark.parametrize(
    "fields", [{"tensor": 4, "expert": 2}, {"data": 4, "expert": 3}, {"data": 2, "expert": 4}, {"expert": 0}]
)
def test_experts_are_shared_by_whole_replicas(fields):
    with pytest.raises(InputError, match=r"expert"):
        Layout(**fields)


def test_sharing_experts_leaves_room_and_lets_a_search_hold_more_requests():
    alone, shared = (
        parallel("mixtral-8x22b", "h100-sxm:8", Layout(data=8, expert=expert), batch=64).figures
        for expert in (1, 8)
    )
    assert not alone.fits
    assert shared.fits
    (found,) = best_layouts("mixtral-8x22b", "h100-sxm", [8], goal="throughput")
    assert any(f.layout.expert > 1 for f in found.search.candidates)
    best = found.best.figures
    again = parallel("mixtral-8x22b", "h100-sxm:8", best.layout, batch=best.batch).figures
    assert again.tokens_per_second == pytest.approx(best.tokens_per_second)


def test_fixed_expert_ranks_stay_fixed():
    (found,) = best_layouts(
        "mixtral-8x7b", load_cluster("h100-sxm:8"), goal="throughput", fixed=Fixed(expert=4)
    )
    assert {f.layout.expert for f in found.search.candidates} == {4}


@pytest.mark.parametrize(
    ("model", "layout", "batch", "said"),
    [
        ("llama-3.1-8b", Layout(data=2, expert=2), 2, "has no experts to share"),
        ("mixtral-8x7b", Layout(data=4, expert=4), 2, "2 requests are too few"),
        ("mixtral-8x7b", Layout(data=16, expert=16), 16, "16 ranks can't share 8 experts evenly"),
    ],
)
def test_experts_that_cannot_be_shared_are_refused(model, layout, batch, said):
    with pytest.raises(InputError, match=said):
        parallel(model, "h100-sxm:8x2", layout, batch=batch)
