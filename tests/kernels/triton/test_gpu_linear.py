"""Linear layers on a GPU: the integers of the CPU's packed weights, and products against float64."""

from __future__ import annotations

import pytest
import torch

from ridgeline.errors import InputError
from ridgeline.kernels import pack_linear
from ridgeline.kernels import triton as gpu
from ridgeline.kernels.linear import FORMATS
from ridgeline.kernels.triton import naive
from tests.kernels.triton.drawing import TOLERANCE, assert_near, draw

INTEGERS = [name for name in FORMATS if name.startswith("int")]


def product(x, weight, bias, activation, residual):
    """In float64."""
    wide = [None if y is None else y.double().cpu() for y in (x, weight, bias, residual)]
    return naive.linear(wide[0], wide[1], wide[2], activation, wide[3])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("gated", [False, True])
def test_a_packed_weight_stands_for_the_same_numbers_on_a_gpu(device, format, gated):
    packed = pack_linear(draw(0, 70, 100), format, gated=gated)
    ours = gpu.GpuLinear.of(packed, device)
    assert torch.equal(ours.unpack().float().cpu(), packed.unpack())
    assert torch.equal(
        ours.rows(torch.tensor([69, 3], device=device)).float().cpu(), packed.unpack()[[69, 3]]
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [1, 21])
def test_products_are_those_of_the_unpacked_weight(device, format, rows):
    dtype = torch.bfloat16 if format == "bf16" else torch.float32
    ours = gpu.gpu_linear(draw(1, 40, 100), format, device=device)
    x = draw(2, rows, 100, dtype=dtype, device=device)
    want = product(x, ours.unpack(), None, None, None)
    assert_near(gpu.linear(x, ours), want, TOLERANCE[dtype])


@pytest.mark.parametrize("activation", ["silu_gated", "gelu_tanh_gated", "relu", None])
@pytest.mark.parametrize("format", ["int8", "int4-g32-zp", "fp32"])
def test_bias_activation_and_residual_are_fused(device, format, activation):
    gated = activation is not None and activation.endswith("_gated")
    ours = gpu.gpu_linear(draw(3, 80, 70), format, gated=gated, device=device)
    x, bias = draw(4, 5, 70, device=device), draw(5, 80, device=device)
    residual = draw(6, 5, ours.columns, device=device)
    out = torch.full((5, ours.columns), torch.nan, device=device)
    got = gpu.linear(x, ours, bias, activation, residual, out)
    assert got is out
    assert_near(got, product(x, ours.unpack(), bias, activation, residual), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_inputs_meet_integers_exactly(device, dtype):
    ours = gpu.gpu_linear(draw(7, 33, 96), "int4-g32", device=device)
    x = draw(8, 3, 96, dtype=dtype, device=device)
    assert_near(gpu.linear(x, ours), product(x, ours.unpack(), None, None, None), TOLERANCE[dtype])


def test_bytes_are_those_of_the_format(device):
    ours = gpu.gpu_linear(draw(9, 64, 256), "int4-g128", device=device)
    assert ours.nbytes == 64 * 256 // 2 + 64 * 2 * 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"x": torch.zeros(2, 9)}, "x is"),
        ({"bias": torch.zeros(3)}, "bias"),
        ({"activation": "silu_gated"}, "activation"),
        ({"residual": torch.zeros(1, 8)}, "residual"),
        ({"packed": torch.zeros(8, 8)}, "packed"),
    ],
)
def test_bad_arguments_are_named(device, arguments, named):
    given = {"x": torch.zeros(2, 8), "packed": gpu.gpu_linear(torch.ones(8, 8), "int8", device=device)}
    given |= arguments
    given = {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in given.items()}
    with pytest.raises(InputError, match=named):
        gpu.linear(**given)
