"""Packed linear layers: against float64, against naive twins, and to the last bit against themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline import kernels
from ridgeline.errors import InputError
from ridgeline.kernels import PackedLinear, linear, linear_weight_only, pack_linear
from ridgeline.ops.reference import ACTIVATIONS
from tests.kernels.linear_twin import FORMATS, INT_FORMATS, activations_of, finish

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
inputs = st.integers(1, 400)
outputs = st.integers(1, 130)
rows = st.integers(0, 60)
seeds = st.integers(0, 1000)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(got: torch.Tensor, want: torch.Tensor, size: torch.Tensor, tolerance: float = 2e-6) -> None:
    """Within ``tolerance`` of what the sums would be without cancellation."""
    assert got.shape == want.shape
    assert bool(((got.double() - want).abs() <= tolerance * size + 1e-30).all())


@pytest.mark.parametrize("format", FORMATS)
@few
@given(rows=rows, outputs=outputs, inputs=inputs, seed=seeds)
def test_a_product_is_that_of_the_packed_weight_in_float64(isa, format, rows, outputs, inputs, seed):
    x, packed = draw(seed, rows, inputs), pack_linear(draw(seed + 1, outputs, inputs), format)
    weight, seen = packed.unpack().double(), activations_of(x, format)
    assert_near(linear(x, packed), seen @ weight.T, seen.abs() @ weight.abs().T)


@pytest.mark.parametrize("format", INT_FORMATS)
@few
@given(rows=rows, outputs=outputs, inputs=inputs, seed=seeds)
def test_weight_only_products_keep_activations_in_floating_point(isa, format, rows, outputs, inputs, seed):
    x, packed = draw(seed, rows, inputs), pack_linear(draw(seed + 1, outputs, inputs), format)
    weight, seen = packed.unpack().double(), activations_of(x, format, weight_only=True)
    assert_near(linear_weight_only(x, packed), seen @ weight.T, seen.abs() @ weight.abs().T)


@pytest.mark.parametrize("rows", [300, 777])
@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4-g128"])
def test_hundreds_of_rows_are_multiplied_block_by_block(isa, format, rows):
    x, packed = draw(1, rows, 2100), pack_linear(draw(2, 40, 2100), format)
    weight, seen = packed.unpack().double(), activations_of(x, format)
    assert_near(linear(x, packed), seen @ weight.T, seen.abs() @ weight.abs().T)


@pytest.mark.parametrize("product", [linear, linear_weight_only])
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_gets_the_same_bits_alone_and_in_any_batch(isa, format, product):
    x, packed = draw(3, 75, 260, dtype=torch.bfloat16), pack_linear(draw(4, 70, 260), format)
    whole = product(x, packed, activation="silu")
    for size in (1, 2, 7, 13, 32):
        parts = [product(part, packed, activation="silu") for part in x.split(size)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("product", [linear, linear_weight_only])
@pytest.mark.parametrize("format", FORMATS)
def test_the_number_of_threads_changes_no_bit(isa, format, product):
    x, packed = draw(5, 33, 200), pack_linear(draw(6, 200, 200), format)
    results = []
    for threads in (1, 2, 5):
        kernels.set_threads(threads)
        results.append(product(x, packed))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("format", ["int8", "int4-g32", "int4-g128-zp"])
def test_instruction_sets_agree_on_integer_sums(format):
    """They differ only by whether the scales' multiply-add rounds once or twice."""
    x, packed = draw(7, 5, 300), pack_linear(draw(8, 64, 300), format)
    before = kernels.isa()
    results = []
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        results.append(linear(x, packed))
    kernels.set_isa(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@few
@given(rows=st.integers(1, 20), outputs=outputs, seed=seeds, biased=st.booleans(), added=st.booleans())
def test_the_epilogue_adds_bias_then_activates_then_adds_the_residual(
    isa, activation, dtype, rows, outputs, seed, biased, added
):
    x, packed = draw(seed, rows, 65), pack_linear(draw(seed + 1, outputs, 65), "fp32")
    bias = draw(seed + 2, outputs, dtype=dtype) if biased else None
    residual = draw(seed + 3, rows, outputs, dtype=dtype) if added else None
    out = torch.empty(rows, outputs, dtype=dtype)
    assert linear(x, packed, bias, activation, residual, out) is out
    want = finish(x.double() @ packed.unpack().double().T, bias, activation, residual)
    tolerance = 1e-5 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(out.double(), want, rtol=tolerance, atol=2e-5)


@pytest.mark.parametrize("format", ["fp32", "bf16", "int4-g32"])
@pytest.mark.parametrize("activation", [name + "_gated" for name in ACTIVATIONS])
@few
@given(rows=st.integers(1, 20), half=st.integers(1, 70), seed=seeds)
def test_the_first_half_gates_the_second(isa, format, activation, rows, half, seed):
    x, weight = draw(seed, rows, 40), draw(seed + 1, 2 * half, 40)
    packed, bias = pack_linear(weight, format, gated=True), draw(seed + 2, 2 * half)
    residual = draw(seed + 3, rows, half)
    assert torch.equal(packed.unpack(), pack_linear(weight, format).unpack())
    sums = activations_of(x, format) @ packed.unpack().double().T
    want = finish(sums, bias, activation, residual)
    got = linear(x, packed, bias, activation, residual)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_exact_to_a_few_units_in_the_last_place(isa, activation):
    x = torch.cat(
        [torch.linspace(-12, 12, 4001), torch.logspace(-30, 1.5, 500), -torch.logspace(-30, 1, 500)]
    )
    got = linear(x[:, None], pack_linear(torch.ones(1, 1), "fp32"), activation=activation)[:, 0]
    want = ACTIVATIONS[activation](x.double())
    if activation == "gelu":  # float64 loses the tail to cancellation
        want = 0.5 * x.double() * torch.special.erfc(-x.double() / 2**0.5)
    if activation == "gelu_tanh":
        want = x.double() * torch.sigmoid(
            2 * (2 / torch.pi) ** 0.5 * (x.double() + 0.044715 * x.double() ** 3)
        )
    # A sum's last bit at 12 or an exponent's at -144 is 1e-5 of a tail that is below 1e-30.
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_visible(isa, value, activation):
    x = torch.tensor([[value], [1.0]])
    got = linear(x, pack_linear(torch.ones(1, 1), "fp32"), activation=activation)
    want = finish(x.double(), activation=activation).float()
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_row_spoils_no_other(isa, format, value):
    x, packed = draw(9, 9, 70), pack_linear(draw(10, 40, 70), format)
    x[4, 69] = value
    got = linear(x, packed)
    assert not got[4].isfinite().any()
    good = [r for r in range(9) if r != 4]
    assert torch.equal(got[good], linear(x[good], packed))
    if format in INT_FORMATS:
        assert got[4].isnan().all()


def test_subnormal_numbers_are_multiplied(isa):
    x, packed = torch.full((1, 4), 1e-41), pack_linear(torch.ones(3, 4), "fp32")
    torch.testing.assert_close(linear(x, packed), torch.full((1, 3), 4e-41), rtol=1e-3, atol=0)


@pytest.mark.parametrize("format", INT_FORMATS)
def test_rows_of_zeros_and_of_tiny_values_quantize_to_finite_numbers(isa, format):
    packed = pack_linear(draw(11, 33, 64), format)
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e-44), torch.full((64,), 3e38)])
    got = linear(x, packed)
    assert torch.equal(got[0], torch.zeros(33))
    assert got[1].abs().max() < 1e-35
    assert not got[2].isnan().any()


def test_rows_may_be_apart_and_results_go_where_they_are_asked_to(isa):
    wide, packed = draw(12, 6, 100), pack_linear(draw(13, 40, 50), "bf16")
    buffer = torch.full((6, 64), 7.0)
    linear(wide[:, 25:75], packed, out=buffer[:, 10:50])
    assert torch.equal(buffer[:, 10:50], linear(wide[:, 25:75].contiguous(), packed))
    assert bool((buffer[:, :10] == 7).all())
    assert bool((buffer[:, 50:] == 7).all())


def test_the_residual_may_be_the_result(isa):
    x, packed, stream = draw(14, 5, 64), pack_linear(draw(15, 64, 64), "int4-g32"), draw(16, 5, 64)
    want = linear(x, packed, residual=stream.clone())
    assert torch.equal(linear(x, packed, residual=stream, out=stream), want)


def test_no_rows_give_no_rows(isa):
    assert linear(torch.empty(0, 8), pack_linear(draw(17, 5, 8), "bf16")).shape == (0, 5)


def test_a_packed_weight_is_bytes_that_can_be_stored(isa):
    packed, x = pack_linear(draw(18, 96, 128), "int4-g128-zp"), draw(19, 3, 128)
    stored = packed.data.numpy().tobytes()
    again = PackedLinear(
        torch.frombuffer(bytearray(b"head" + stored), dtype=torch.uint8)[4:], (96, 128), "int4-g128-zp"
    )
    assert torch.equal(linear(x, again), linear(x, packed))


PACKED = pack_linear(torch.ones(6, 8), "fp32")
X = torch.ones(2, 8)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("x", {"x": X.double()}),
        ("x", {"x": X[0]}),
        ("x", {"x": torch.ones(2, 9)}),
        ("x", {"x": torch.ones(8, 2).T}),
        ("x", {"x": X.to("meta")}),
        ("x", {"x": [[1.0] * 8]}),
        ("x", {"x": torch.ones(2, 8, requires_grad=True)}),
        ("packed", {"packed": torch.ones(6, 8)}),
        ("bias", {"bias": torch.ones(5)}),
        ("bias", {"bias": torch.ones(6, dtype=torch.float16)}),
        ("bias", {"bias": torch.ones(12)[::2]}),
        ("activation", {"activation": "swish"}),
        ("activation", {"activation": "silu_gated"}),
        ("activation", {"packed": pack_linear(torch.ones(6, 8), "fp32", gated=True)}),
        ("activation", {"packed": pack_linear(torch.ones(6, 8), "fp32", gated=True), "activation": "silu"}),
        ("residual", {"residual": torch.ones(2, 5)}),
        ("residual", {"residual": torch.ones(2, 6, dtype=torch.bfloat16)}),
        ("out", {"out": torch.empty(3, 6)}),
        ("out", {"out": torch.empty(2, 6, dtype=torch.int32)}),
        ("out", {"out": torch.empty(1, 6).expand(2, 6)}),
        ("out", {"out": X[:, :6]}),
    ],
)
@pytest.mark.parametrize("product", [linear, linear_weight_only])
def test_bad_arguments_are_refused_by_name(product, named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        product(**{"x": X, "packed": PACKED, **arguments})


def test_a_result_may_not_lie_across_its_residual():
    memory = torch.ones(20)
    with pytest.raises(InputError, match=r"^out shares part of its memory with residual"):
        linear(X, PACKED, residual=memory[:12].view(2, 6), out=memory[6:18].view(2, 6))
