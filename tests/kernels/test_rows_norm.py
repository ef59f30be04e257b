"""Norms: against float64, against themselves to the last bit, fused with the sum before them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline import kernels
from ridgeline.errors import InputError

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FLOATS = [torch.float32, torch.bfloat16]
EPS = 1e-5
floats = st.sampled_from(FLOATS)
rows = st.integers(0, 9)
dims = st.one_of(st.integers(1, 300), st.sampled_from([768, 2048, 2050]))
seeds = st.integers(0, 1000)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms_twin(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x, weight = x.double(), weight.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def layer_twin(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    x = x.double() - x.double().mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double() + bias.double()


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    """Float32 to 1e-5 of an element or of the row's bias and spread, bf16 to its own rounding."""
    relative = 1e-5 if got.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(got.double(), want, rtol=relative, atol=3e-6)


@few
@given(rows, dims, floats, floats, floats, seeds)
def test_rms_norm_is_its_formula(isa, rows, dim, dtype, weight_dtype, out_dtype, seed):
    x, weight = draw(seed, rows, dim, dtype=dtype), draw(seed + 1, dim, dtype=weight_dtype)
    out = torch.empty(rows, dim, dtype=out_dtype)
    assert kernels.rms_norm(x, weight, EPS, out) is out
    assert_near(out, rms_twin(x, weight))


@few
@given(rows, dims, floats, floats, floats, st.sampled_from([0.0, 3.0]), seeds)
def test_layer_norm_is_its_formula(isa, rows, dim, dtype, weight_dtype, out_dtype, mean, seed):
    x = (draw(seed, rows, dim) + mean).to(dtype)
    weight, bias = (draw(seed + i, dim, dtype=weight_dtype) for i in (1, 2))
    out = torch.empty(rows, dim, dtype=out_dtype)
    assert kernels.layer_norm(x, weight, bias, EPS, out) is out
    assert_near(out, layer_twin(x, weight, bias))


def test_a_mean_far_above_the_spread_costs_no_accuracy(isa):
    x, weight = draw(1, 3, 1000) + 1000.0, torch.ones(1000)
    assert_near(kernels.layer_norm(x, weight, None, EPS), layer_twin(x, weight, torch.zeros(1000)))


def test_a_new_result_has_the_dtype_of_the_input():
    for dtype in FLOATS:
        assert kernels.rms_norm(draw(1, 2, 8, dtype=dtype), torch.ones(8), EPS).dtype == dtype


@few
@given(rows, st.integers(1, 5), st.sampled_from([1, 16, 64, 80, 128]), floats, seeds)
def test_heads_inside_wider_rows_are_normalised_one_by_one_and_in_place(isa, rows, heads, dim, dtype, seed):
    wide = draw(seed, rows, (heads + 2) * dim, dtype=dtype)
    before, weight = wide.clone(), draw(seed + 1, dim)
    x = wide[:, dim : (heads + 1) * dim].unflatten(1, (heads, dim))
    want = kernels.rms_norm(x.reshape(-1, dim), weight, EPS).view(x.shape)
    assert_near(want, rms_twin(x, weight))
    kernels.rms_norm(x, weight, EPS, out=x)
    assert torch.equal(x, want)
    assert torch.equal(wide[:, :dim], before[:, :dim])
    assert torch.equal(wide[:, -dim:], before[:, -dim:])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stream", FLOATS)
@pytest.mark.parametrize("dim", [7, 100, 2048])
def test_a_norm_with_the_sum_before_it_has_the_bits_of_the_two(isa, dtype, stream, dim):
    x, residual, weight = draw(1, 5, dim, dtype=dtype), draw(2, 5, dim, dtype=stream), draw(3, dim)
    bias = draw(4, dim)
    total = kernels.add(residual, x)
    for fused, plain in (
        (lambda r: kernels.add_rms_norm(x, r, weight, EPS), kernels.rms_norm(total, weight, EPS)),
        (
            lambda r: kernels.add_layer_norm(x, r, weight, bias, EPS),
            kernels.layer_norm(total, weight, bias, EPS),
        ),
    ):
        written = residual.clone()
        assert torch.equal(fused(written), plain)
        assert torch.equal(written, total)


def test_the_result_may_take_the_place_of_what_was_added(isa):
    x, residual, weight = draw(1, 4, 33), draw(2, 4, 33), draw(3, 33)
    want = kernels.add_rms_norm(x, residual.clone(), weight, EPS)
    assert torch.equal(kernels.add_rms_norm(x, residual, weight, EPS, out=x), want)


@pytest.mark.parametrize("dim", [50, 768])
def test_a_row_gets_the_same_bits_alone_in_a_batch_and_with_any_threads(isa, dim):
    x, weight, bias = draw(1, 64, dim), draw(2, dim), draw(3, dim)
    results = []
    for threads in (1, 2, 5):
        kernels.set_threads(threads)
        results.append(kernels.rms_norm(x, weight, EPS))
        results.append(torch.cat([kernels.rms_norm(row, weight, EPS) for row in x.split(1)]))
    assert all(torch.equal(result, results[0]) for result in results)
    alone = torch.cat([kernels.layer_norm(row, weight, bias, EPS) for row in x.split(7)])
    assert torch.equal(alone, kernels.layer_norm(x, weight, bias, EPS))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_row_spoils_no_other(isa, value):
    x, weight = draw(1, 3, 40), torch.ones(40)
    x[1, 39] = value
    got = kernels.rms_norm(x, weight, EPS)
    torch.testing.assert_close(got[1].double(), rms_twin(x, weight)[1], equal_nan=True)
    assert got[1].isnan().any()
    assert torch.equal(got[[0, 2]], kernels.rms_norm(x[[0, 2]], weight, EPS))
    assert kernels.layer_norm(x, weight, None, EPS)[1].isnan().all()


def test_rows_of_zeros_stay_zero_and_subnormal_ones_stay_finite(isa):
    x = torch.stack([torch.zeros(40), torch.full((40,), 1e-41)])
    assert torch.equal(kernels.rms_norm(x, torch.ones(40), EPS)[0], torch.zeros(40))
    assert kernels.rms_norm(x, torch.ones(40), EPS).isfinite().all()


X, W = torch.ones(2, 8), torch.ones(8)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("x", {"x": X.double()}),
        ("x", {"x": W}),
        ("x", {"x": torch.ones(2, 0)}),
        ("x", {"x": torch.ones(8, 2).T}),
        ("x", {"x": X.to("meta")}),
        ("x", {"x": [[1.0] * 8]}),
        ("x", {"x": torch.ones(2, 8, requires_grad=True)}),
        ("weight", {"weight": torch.ones(7)}),
        ("weight", {"weight": torch.ones(16)[::2]}),
        ("bias", {"bias": torch.ones(7)}),
        ("bias", {"bias": W.bfloat16()}),
        ("eps", {"eps": -1e-5}),
        ("eps", {"eps": float("nan")}),
        ("eps", {"eps": "small"}),
        ("residual", {"residual": torch.ones(3, 8)}),
        ("residual", {"residual": torch.ones(1, 8).expand(2, 8)}),
        ("residual", {"residual": X}),
        ("out", {"out": torch.empty(2, 7)}),
        ("out", {"out": torch.empty(2, 8, dtype=torch.float16)}),
        ("out", {"out": torch.empty(1, 8).expand(2, 8)}),
        ("out", {"out": X.flatten()[4:12].expand(2, 8)}),
    ],
)
def test_bad_arguments_are_refused_by_name(named, arguments):
    call = {"x": X, "residual": torch.ones(2, 8), "weight": W, "bias": W, "eps": EPS, **arguments}
    with pytest.raises(InputError, match=rf"^{named} "):
        kernels.add_layer_norm(**call)


def test_a_result_may_not_lie_across_its_input():
    memory = torch.ones(20)
    with pytest.raises(InputError, match=r"^out shares part of its memory with x"):
        kernels.rms_norm(memory[:16].view(2, 8), W, EPS, out=memory[4:].view(2, 8))
