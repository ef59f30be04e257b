"""Mixtures of experts: what is counted, what is chosen, and that a row's result is its own."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.models import declare, load_config
from ridgeline.ops.batch import BLOCK_TOKENS, Span
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.kernel import Role
from ridgeline.ops.lowering import UNFUSED
from ridgeline.ops.mixture import Router, touched
from ridgeline.ops.records import Weight
from ridgeline.ops.routing import choose, mix
from tests.ops.packed_models import packed_model, some_ids
from tests.ops.small_models import LOWERINGS, count, small

CPU = Cpu()


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


# -- how many experts are touched -----------------------------------------------------------------


@pytest.mark.parametrize(("experts", "chosen", "rows"), [(4, 2, 3), (5, 1, 4), (6, 5, 2), (3, 3, 2)])
def test_the_expected_number_of_touched_experts_is_that_of_all_choices_written_out(experts, chosen, rows):
    choices = list(combinations(range(experts), chosen))
    sizes = [len(set().union(*taken)) for taken in product(choices, repeat=rows)]
    assert touched(experts, chosen, rows) == pytest.approx(sum(sizes) / len(sizes), rel=1e-12)


@given(st.integers(1, 300), st.data())
def test_one_row_touches_what_it_takes_and_many_touch_all(experts, data):
    chosen = data.draw(st.integers(1, experts))
    assert touched(experts, chosen, 1) == pytest.approx(chosen)
    assert touched(experts, chosen, 10**6) == pytest.approx(experts)
    assert chosen <= touched(experts, chosen, 3) * (1 + 1e-12) <= min(experts, 3 * chosen) * (1 + 1e-9)


# -- what is counted --------------------------------------------------------------------------------


def mixture(trace):
    return [op for op in trace.ops if op.kind == "experts"]


def weights_read(op):
    reads = (a for part in op.parts for a in part.reads if a.value.role is Role.WEIGHT)
    return sum(access.elements for access in reads)


@settings(max_examples=20)
@given(rows=st.integers(1, 30), lowering=st.sampled_from(LOWERINGS))
def test_experts_compute_for_the_chosen_and_read_the_touched(rows, lowering):
    model = small("mixtral-8x7b", layers=2)
    c = model.config
    (op,) = mixture(count(model, rows, lowering=lowering))
    one = 3 * c.width * c.expert_intermediate  # gate, up and down: an MLP with two matrices is another model
    assert op.flops.matrix == rows * c.chosen * 2 * one
    assert weights_read(op) == pytest.approx(touched(c.experts, c.chosen, rows) * one)
    assert op.repeat == 2


def test_a_fused_mixture_keeps_what_it_gathers_and_gates_on_chip():
    model = small("mixtral-8x7b", layers=1)
    c, rows = model.config, 6
    (op,) = mixture(count(model, rows))
    first, down, scatter = op.kernels(count(model, rows).lowering)
    written = [sum(a.elements for a in kernel.writes) for kernel in (first, down, scatter)]
    assert written == [rows * 2 * c.expert_intermediate, rows * 2 * c.width, rows * c.width]
    unfused = sum(a.elements for kernel in op.kernels(UNFUSED) for a in kernel.writes)
    assert unfused - sum(written) == rows * 2 * (c.width + 2 * c.expert_intermediate)


def test_each_touched_expert_multiplies_its_share_of_the_rows():
    (op,) = mixture(count(small("mixtral-8x7b", layers=1), 3))
    product = next(part for part in op.parts if part.kind == "matmul")
    assert product.groups == touched(5, 2, 3)
    assert product.rows * product.groups == pytest.approx(3 * 2)


def test_a_mixture_sweeps_over_arrays():
    model, rows = small("mixtral-8x7b", layers=2), np.array([1, 4, 20])
    swept = count(model, Span(rows))
    single = [count(model, int(n)) for n in rows]
    assert swept.bytes == pytest.approx([t.bytes for t in single])
    assert swept.flops.total == pytest.approx([t.flops.total for t in single])
    assert swept.assumptions == (
        "experts are chosen uniformly, whatever other tokens choose, 2 of 5 by each",
    )


def test_the_trace_says_what_it_assumes():
    assert count(small("gpt2"), 3).assumptions == ()
    model = declare(load_config("qwen3-30b-a3b"))
    (statement,) = count(model, Span(1, 100, count=6), cached=True).assumptions
    assert statement.endswith(": 41.1 of 128 are touched a layer")


def test_all_experts_are_memory_but_only_the_touched_are_read():
    model = small("mixtral-8x7b", layers=2)
    trace = count(model, 1, logits="last")
    assert trace.memory().weights == model.weight_bytes()
    c = model.config
    untouched = (c.experts - c.chosen) * 3 * c.width * c.expert_intermediate * 2
    tables = (c.vocab - 1) * c.width * 2
    read = sum(
        access.bytes * op.repeat
        for op, kernel in trace.kernels()
        for access in kernel.reads
        if access.value.role is Role.WEIGHT
    )
    assert read == pytest.approx(model.weight_bytes() - 2 * untouched - tables)


# -- what is chosen ---------------------------------------------------------------------------------


def router(experts, chosen, **options):
    return Router(Weight("router", (experts, 1), "fp32"), chosen, **options)


def test_a_softmax_router_takes_the_best_and_normalises():
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    scores = torch.softmax(logits, -1)[0]
    routes = choose(logits, router(4, 2), None)
    assert routes.experts.tolist() == [[1, 2]]
    torch.testing.assert_close(routes.weights[0], scores[1:3] / scores[1:3].sum())
    routes = choose(logits, router(4, 2, normalised=False, scale=3.0), None)
    torch.testing.assert_close(routes.weights[0], 3 * scores[1:3])


def test_a_bias_decides_the_choice_but_not_the_weights():
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    bias = torch.tensor([0.0, -10.0, 0.0, 10.0])
    routes = choose(logits, router(4, 2, scoring="sigmoid", normalised=False), bias)
    assert routes.experts.tolist() == [[2, 3]]
    torch.testing.assert_close(routes.weights, torch.sigmoid(logits[:, 2:]))


def test_only_the_open_groups_are_chosen_from():
    logits = torch.tensor([[5.0, 0.0, 3.0, 3.0, 4.0, -9.0]])
    best = choose(logits, router(6, 2, groups=3, open_groups=1), None)
    assert best.experts.tolist() == [[0, 1]]  # the group of the best expert
    two = choose(logits, router(6, 2, groups=3, open_groups=1, group_score="top2", scoring="sigmoid"), None)
    assert two.experts.tolist() == [[2, 3]]  # the group of the best pair


def test_ties_go_to_the_lower_number():
    assert choose(torch.zeros(1, 8), router(8, 3), None).experts.tolist() == [[0, 1, 2]]


@given(st.integers(1, 12), st.integers(1, 6), st.data())
def test_mixing_is_the_sum_over_a_rows_experts(rows, experts, data):
    chosen = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    matrices = torch.randn(experts, 4, 5, generator=generator, dtype=torch.float64)
    routes = choose(torch.randn(rows, experts, generator=generator).double(), router(experts, chosen), None)
    expected = torch.zeros(rows, 4, dtype=torch.float64)
    for row in range(rows):
        for expert, weight in zip(routes.experts[row], routes.weights[row], strict=True):
            expected[row] += weight * (matrices[expert] @ x[row])
    torch.testing.assert_close(mix(x, routes, lambda e, rows: rows @ matrices[e].T), expected)


# -- a row's result is its own --------------------------------------------------------------------


@pytest.mark.parametrize("format", ["fp32", "bf16", "int4-g32"])
@pytest.mark.parametrize("family", ["mixtral-8x7b", "qwen3-30b-a3b"])
def test_a_requests_logits_are_the_same_bits_in_any_chunks_and_any_batch(family, format):
    model = packed_model(family, format, plain="fp32" if format == "fp32" else "bf16")
    spec = model.cache_spec("fp32" if format == "fp32" else "bf16")
    ids, length = some_ids(75).tolist(), 75
    blocks = -(-length // BLOCK_TOKENS)

    def logits(chunks, others=()):
        cache = CPU.alloc_cache(spec, blocks * (1 + len(others)))
        tables = [tuple(range(i * blocks, (i + 1) * blocks)) for i in range(1 + len(others))]
        rows, past = [], 0
        for n in chunks:
            spans = [*(Span(m, 0, table=t) for m, t in zip(others, tables)), Span(n, past, table=tables[-1])]
            batch = [*some_ids(sum(others), seed=past).tolist(), *ids[past : past + n]]
            rows.append(CPU.run(model, batch, spans, logits="all", cache=cache)[sum(others) :])
            past += n
        return torch.cat(rows)

    whole = logits([length])
    assert torch.equal(logits([30, 1, 44]), whole)
    assert torch.equal(logits([1] * 5 + [70], others=(7, 1, 19)), whole)
