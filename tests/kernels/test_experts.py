"""Mixtures of experts: choices and sums against plain PyTorch, and to the last bit against rows alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline import kernels
from ridgeline.errors import InputError
from ridgeline.ops.mixture import Router
from ridgeline.ops.records import Weight
from ridgeline.ops.routing import choose

few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@few
@given(
    rows=st.integers(0, 300),
    per_group=st.integers(2, 9),
    groups=st.integers(1, 4),
    scoring=st.sampled_from(["softmax", "sigmoid"]),
    group_score=st.sampled_from(["max", "top2"]),
    normalised=st.booleans(),
    biased=st.booleans(),
    data=st.data(),
)
def test_rows_choose_as_the_reference_does(
    rows, per_group, groups, scoring, group_score, normalised, biased, data
):
    experts, open_groups = per_group * groups, data.draw(st.integers(1, groups))
    chosen = data.draw(st.integers(1, per_group * open_groups))
    options = {"scoring": scoring, "normalised": normalised, "scale": 2.5, "groups": groups}
    options |= {"open_groups": open_groups, "group_score": group_score}
    logits, bias = 3 * draw(rows, rows, experts), draw(1, experts) if biased else None
    numbers, weights = kernels.route(logits, chosen, bias=bias, **options)
    expected = choose(logits, Router(Weight("r", (experts, 1), "fp32"), chosen, **options), bias)
    assert torch.equal(numbers.long(), expected.experts)
    torch.testing.assert_close(weights, expected.weights, rtol=3e-6, atol=1e-7)


def test_ties_go_to_the_lower_number_and_open_groups_to_the_best():
    ties = torch.zeros(2, 8)
    assert kernels.route(ties, 3)[0].tolist() == [[0, 1, 2]] * 2
    assert kernels.route(ties, 3, groups=4, open_groups=2)[0].tolist() == [[0, 1, 2]] * 2
    logits = torch.tensor([[5.0, 0.0, 3.0, 3.0, 4.0, -9.0]])
    by_best = kernels.route(logits, 2, groups=3, open_groups=1)
    by_two = kernels.route(logits, 2, scoring="sigmoid", groups=3, open_groups=1, group_score="top2")
    assert (by_best[0].tolist(), by_two[0].tolist()) == ([[0, 1]], [[2, 3]])


def test_large_logits_of_either_sign_are_scored_and_what_is_no_number_stays_in_its_row():
    logits = torch.tensor([[80.0, -80.0, 0.0], [torch.nan, 1.0, 2.0], [3.0, 1.0, 2.0]])
    for scoring in ("softmax", "sigmoid"):
        numbers, weights = kernels.route(logits, 2, scoring=scoring)
        assert numbers[0].tolist() == [0, 2]
        assert bool(weights[0].isfinite().all())
        assert 0 in numbers[1].tolist()  # as a sort of PyTorch's has it
        alone = kernels.route(logits[2:], 2, scoring=scoring)
        assert torch.equal(weights[2:], alone[1])


def stacked(seed: int, experts: int, outputs: int, inputs: int, format: str, *, gated: bool = False):
    return [kernels.pack_linear(draw(seed + e, outputs, inputs), format, gated=gated) for e in range(experts)]


def mixed(x, numbers, weights, gate_up, down, activation, residual=None):
    """Row by row, expert by expert."""
    rows = []
    for row in range(len(x)):
        total = None
        for number, weight in zip(numbers[row].tolist(), weights[row], strict=True):
            hidden = kernels.linear(x[row : row + 1], gate_up[number], None, activation)
            part = kernels.linear(hidden, down[number]) * weight
            total = part if total is None else total + part
        rows.append(total if residual is None else residual[row] + total)
    return torch.cat(rows) if rows else torch.empty(0, down[0].columns)


@few
@given(
    format=st.sampled_from(["fp32", "bf16", "int8", "int4-g32"]),
    rows=st.integers(0, 40),
    experts=st.integers(1, 6),
    width=st.integers(1, 50),
    inner=st.integers(1, 40),
    activation=st.sampled_from(["silu_gated", "gelu_tanh_gated"]),
    added=st.booleans(),
    data=st.data(),
)
def test_a_mixture_is_the_sum_of_each_rows_own_products(
    isa, format, rows, experts, width, inner, activation, added, data
):
    """To the bit: every product is that of the row alone, and sums have one order."""
    chosen = data.draw(st.integers(1, experts))
    x, residual = draw(0, rows, width + 3)[:, :width], draw(1, rows, width) if added else None
    gate_up = stacked(2, experts, 2 * inner, width, format, gated=True)
    down = stacked(99, experts, width, inner, format)
    routes = kernels.route(draw(3, rows, experts), chosen)
    expected = mixed(x, *routes, gate_up, down, activation, residual)
    assert torch.equal(kernels.mix_experts(x, *routes, gate_up, down, activation, residual), expected)
    if residual is not None:
        kernels.mix_experts(x, *routes, gate_up, down, activation, residual, residual)
        assert torch.equal(residual, expected)


def test_experts_that_nobody_takes_are_not_read():
    gate_up = stacked(0, 3, 16, 8, "fp32", gated=True)
    down = stacked(9, 3, 8, 8, "fp32")
    for unread in (gate_up[1], down[1]):
        unread.data.view(torch.float32).fill_(torch.nan)
    numbers = torch.tensor([[0, 2], [0, 2]], dtype=torch.int32)
    mixture = kernels.mix_experts(draw(1, 2, 8), numbers, torch.ones(2, 2), gate_up, down, "silu_gated")
    assert bool(mixture.isfinite().all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numbers": torch.tensor([[0, 3]], dtype=torch.int32)}, "numbers name experts outside of 0 to 2"),
        ({"numbers": torch.tensor([[-1, 0]], dtype=torch.int32)}, "numbers name experts outside"),
        ({"numbers": torch.tensor([[0, 1]])}, "numbers must be int32"),
        ({"weights": torch.ones(1, 3)}, r"weights is float32 \[1, 3\]"),
        ({"activation": "silu"}, "activation is 'silu'"),
        ({"x": torch.ones(1, 9)}, r"x is float32 \[1, 9\]"),
        ({"x": torch.ones(1, 8).bfloat16()}, "x is torch.bfloat16"),
        ({"residual": torch.ones(1, 9)}, r"residual is float32 \[1, 9\]"),
        ({"down": stacked(9, 2, 8, 8, "fp32")}, "gate_up has 3 of 8 columns, down 2 of 8 inputs"),
        ({"gate_up": stacked(9, 3, 8, 8, "fp32")}, "gate_up must be packed weights of one shape"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    given = {"x": torch.ones(1, 8), "numbers": torch.tensor([[0, 2]], dtype=torch.int32)}
    given |= {"weights": torch.ones(1, 2), "gate_up": stacked(0, 3, 16, 8, "fp32", gated=True)}
    given |= {"down": stacked(9, 3, 8, 8, "fp32"), "activation": "silu_gated"}
    with pytest.raises(InputError, match=message):
        kernels.mix_experts(**(given | changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chosen": 9}, "chosen is 9; give 1 to 8"),
        ({"chosen": 0}, "chosen is 0"),
        ({"chosen": 3, "groups": 4, "open_groups": 1}, "chosen is 3; give 1 to 2"),
        ({"chosen": 1, "groups": 3}, "groups are 3, 1 of them open, for 8 experts"),
        ({"chosen": 1, "scoring": "max"}, "scoring is 'max'"),
        ({"chosen": 1, "bias": torch.zeros(7)}, r"bias is float32 \[7\]"),
        ({"chosen": 1, "scale": float("nan")}, "scale is nan"),
    ],
)
def test_a_router_that_does_not_fit_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        kernels.route(torch.zeros(2, 8), **options)
