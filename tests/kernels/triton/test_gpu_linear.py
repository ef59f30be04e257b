"""Linear layers on a GPU: the integers of the CPU's packed weights, and products against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ridgeline.errors import InputError
from ridgeline.kernels import pack_linear
from ridgeline.kernels import triton as gpu
from ridgeline.kernels.fp8 import FP8_BLOCKS, Fp8Linear
from ridgeline.kernels.linear import FORMATS
from ridgeline.kernels.triton import linear_launch, naive
from ridgeline.kernels.triton.runtime import has_fp8
from tests.kernels.triton.drawing import DTYPES, TOLERANCE, assert_near, draw

QUANTISED = [*(name for name in FORMATS if name.startswith("int")), *FP8_BLOCKS]
PRODUCTS = [gpu.linear, gpu.linear_invariant]


def product(x, weight, bias, activation, residual):
    """In float64."""
    wide = [None if y is None else y.double().cpu() for y in (x, weight, bias, residual)]
    return naive.linear(wide[0], wide[1], wide[2], activation, wide[3])


@settings(max_examples=15)
@given(data=st.data())
def test_any_shape(device, data):
    """Ragged rows, columns and inputs; rows of x with gaps between them; biases of another dtype."""
    format = data.draw(st.sampled_from([*QUANTISED, "fp32"]))
    multiply = data.draw(st.sampled_from(PRODUCTS))
    gated = data.draw(st.booleans())
    outputs = data.draw(st.integers(1, 70)) * (1 + gated)
    rows, inputs = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 150))
    ours = gpu.gpu_linear(draw(1, outputs, inputs), format, gated=gated, device=device)
    gap = data.draw(st.integers(0, 3))
    x = draw(2, rows, inputs + gap, device=device)[:, gap:]
    activation = "silu_gated" if gated else data.draw(st.sampled_from([None, "gelu"]))
    bias = draw(3, outputs, dtype=data.draw(st.sampled_from(DTYPES)), device=device)
    got = multiply(x, ours, bias, activation)
    assert_near(got, product(x, ours.unpack(), bias, activation, None), 2e-5)


@settings(max_examples=8)
@given(data=st.data())
def test_an_invariant_row_has_the_bits_that_it_has_alone(device, sums_by_row, data):
    format = data.draw(st.sampled_from([*QUANTISED, "fp32"]))
    gated, inputs = data.draw(st.booleans()), data.draw(st.integers(33, 150))
    ours = gpu.gpu_linear(draw(1, 80, inputs), format, gated=gated, device=device)
    x = draw(2, data.draw(st.integers(17, 70)), inputs, device=device)
    place = data.draw(st.integers(0, len(x) - 1))
    activation = "silu_gated" if gated else "gelu"
    together, alone = (gpu.linear_invariant(y, ours, None, activation) for y in (x, x[place : place + 1]))
    assert torch.equal(together[place], alone[0])


@pytest.mark.parametrize("format", FP8_BLOCKS)
@pytest.mark.parametrize("gated", [False, True])
def test_many_rows_meet_fp8_weights_in_fp8(device, format, gated):
    """Exactly what FP8 makes of x; and near to x itself. Without the units for it, x keeps its precision."""
    ours = gpu.gpu_linear(draw(1, 150, 140), format, gated=gated, device=device)
    x, bias = draw(2, 70, 140, device=device), draw(3, 150, device=device)
    activation = "silu_gated" if gated else None
    got = gpu.linear(x, ours, bias, activation)
    if has_fp8(device):
        wide = naive.linear_fp8(x.double(), ours.unpack().double(), bias.double(), activation)
        assert_near(got, wide.cpu(), 2e-5)
    exact = product(x, ours.unpack(), bias, activation, None)
    assert_near(got, exact, 0.06)
    few = gpu.linear(x[:5], ours, bias, activation)
    assert_near(few, exact[:5], 2e-5)


def test_without_fp8_units_activations_keep_their_precision(device, monkeypatch):
    monkeypatch.setattr(linear_launch, "has_fp8", lambda device: False)
    ours, x = gpu.gpu_linear(draw(1, 40, 70), "fp8", device=device), draw(2, 70, 70, device=device)
    assert_near(gpu.linear(x, ours), product(x, ours.unpack(), None, None, None), 2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_become_fp8_as_pytorch_rounds_them(device, dtype):
    x = draw(4, 9, 100, dtype=dtype, device=device)
    x[1], x[2] = 0, x[2] * 1e-30
    x[3, ::2] *= 1e-3  # subnormal numbers of FP8
    x[4] = torch.linspace(-1, 1, 100)
    x[5, 7], x[6, 3] = torch.nan, torch.inf
    codes, scales = linear_launch.quantise_rows(x)
    finite = [0, 1, 2, 3, 4, 7, 8]
    want, want_scales = naive.quantise_rows(x[finite])
    assert torch.equal(scales[finite], want_scales)
    assert torch.equal(codes[finite] & 0x7F, want & 0x7F)
    signed = codes[finite].view(torch.float8_e4m3fn).float()
    assert torch.equal(signed, want.view(torch.float8_e4m3fn).float())  # but for the sign of a zero
    assert scales[[5, 6]].isnan().all()


def test_every_fp8_number_is_read_as_it_is(device):
    """All bit patterns but those of NaN."""
    codes = torch.tensor([i for i in range(256) if i & 0x7F != 0x7F], dtype=torch.uint8)
    packed = Fp8Linear(codes[None].contiguous(), torch.ones(1, 1), "fp8")
    ours = gpu.GpuLinear.of(packed, device)
    got = gpu.linear(torch.eye(len(codes), device=device)[:16], ours)
    assert torch.equal(got[:, 0].cpu(), codes.view(torch.float8_e4m3fn).float()[:16])
    assert torch.equal(ours.unpack().cpu()[0], codes.view(torch.float8_e4m3fn).float())
    every = torch.cat([gpu.linear(part, ours) for part in torch.eye(len(codes), device=device).split(16)])
    assert torch.equal(every[:, 0].cpu(), codes.view(torch.float8_e4m3fn).float())


def test_a_call_takes_no_memory_but_its_result_and_its_workspace(device, monkeypatch):
    """And waits for nothing: what a CUDA graph can hold."""
    made = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    launched = []

    class Launch:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **options: launched.append((self.name, grid))

    for name in ("linear", "partial", "finish", "quantise"):
        monkeypatch.setattr(linear_launch.kernels, name, Launch(name))
    ours = gpu.gpu_linear(draw(1, 40, 200), "fp8", device=device)
    x = draw(2, 70, 200, device=device)
    for rows, multiply in ((1, gpu.linear), (70, gpu.linear), (1, gpu.linear_invariant)):
        with Watched():
            multiply(x[:rows], ours)
    assert set(made) <= {"empty", "view", "slice", "alias"}
    assert [name for name, _ in launched] == ["partial", "finish", "quantise", "linear", "partial", "finish"]


def test_grids_hold_more_rows_than_a_second_dimension_has(device, monkeypatch):
    """65,535 programs are the most of a grid's second and third dimension: rows are in the first."""
    grids = []

    class Launch:
        def __getitem__(self, grid):
            return lambda *args, **options: grids.append(grid)

    for name in ("linear", "partial", "finish", "quantise"):
        monkeypatch.setattr(linear_launch.kernels, name, Launch())
    x = torch.zeros(1, 8, device=device).expand(3_000_000, 8)
    for format in ("int8", "fp8"):
        for multiply in PRODUCTS:
            multiply(x, gpu.gpu_linear(torch.ones(2, 8), format, device=device))
    assert max(grid[0] for grid in grids) > 65535
    assert all(size <= 65535 for grid in grids for size in grid[1:])


def test_a_result_may_not_lie_where_others_still_read(device):
    """Found: a program wrote rows of x that another had not read yet."""
    ours = gpu.gpu_linear(draw(1, 8, 8), "int8", device=device)
    x, residual = draw(2, 4, 8, device=device), draw(3, 5, 8, device=device)
    with pytest.raises(InputError, match="out shares memory with x"):
        gpu.linear(x, ours, out=x)
    with pytest.raises(InputError, match="part of its memory with residual"):
        gpu.linear(x, ours, residual=residual[:4], out=residual[1:])
    with pytest.raises(InputError, match="rows that overlap"):
        gpu.linear(x, ours, out=torch.zeros(1, 8, device=device).expand(4, 8))
    want = gpu.linear(x, ours, residual=residual[:4])
    assert torch.equal(gpu.linear(x, ours, residual=residual[:4], out=residual[:4]), want)


def test_rows_of_bytes_begin_where_threads_copy_from(device):
    for format in ("int8", "fp8"):
        ours = gpu.gpu_linear(draw(1, 5, 37), format, device=device)
        assert ours.data.shape == (5, 48)
        assert not ours.data[:, 37:].any()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("gated", [False, True])
def test_a_packed_weight_stands_for_the_same_numbers_on_a_gpu(device, format, gated):
    packed = pack_linear(draw(0, 70, 100), format, gated=gated)
    ours = gpu.GpuLinear.of(packed, device)
    assert torch.equal(ours.unpack().float().cpu(), packed.unpack())
    assert torch.equal(
        ours.rows(torch.tensor([69, 3], device=device)).float().cpu(), packed.unpack()[[69, 3]]
    )


@pytest.mark.parametrize("format", [*FORMATS, *FP8_BLOCKS])
@pytest.mark.parametrize("multiply", PRODUCTS)
@pytest.mark.parametrize("rows", [1, 21])
def test_products_are_those_of_the_unpacked_weight(device, format, multiply, rows):
    dtype = torch.bfloat16 if format == "bf16" else torch.float32
    ours = gpu.gpu_linear(draw(1, 40, 100), format, device=device)
    x = draw(2, rows, 100, dtype=dtype, device=device)
    want = product(x, ours.unpack(), None, None, None)
    assert_near(multiply(x, ours), want, TOLERANCE[dtype])


@pytest.mark.parametrize("activation", ["silu_gated", "gelu_tanh_gated", "relu", None])
@pytest.mark.parametrize("format", ["int8", "int4-g32-zp", "fp32", "fp8", "fp8-128x128"])
@pytest.mark.parametrize("multiply", PRODUCTS)
def test_bias_activation_and_residual_are_fused(device, format, multiply, activation):
    gated = activation is not None and activation.endswith("_gated")
    ours = gpu.gpu_linear(draw(3, 80, 70), format, gated=gated, device=device)
    x, bias = draw(4, 5, 70, device=device), draw(5, 80, device=device)
    residual = draw(6, 5, ours.columns, device=device)
    out = torch.full((5, ours.columns), torch.nan, device=device)
    got = multiply(x, ours, bias, activation, residual, out)
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
