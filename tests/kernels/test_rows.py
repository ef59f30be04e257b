"""Sums, activations, rotations and rows of a table: against plain PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline import kernels
from ridgeline.errors import InputError
from ridgeline.kernels import linear, pack_linear
from ridgeline.ops.reference import ACTIVATIONS, activate
from ridgeline.ops.torch_batch import rotate
from tests.kernels.linear_twin import FORMATS

few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FLOATS = [torch.float32, torch.bfloat16]
floats = st.sampled_from(FLOATS)
rows = st.integers(0, 20)
columns = st.integers(1, 150)
seeds = st.integers(0, 1000)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    relative = 1e-5 if got.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(got.double(), want, rtol=relative, atol=1e-6)


@few
@given(rows, columns, floats, floats, floats, seeds)
def test_a_sum_is_rounded_once(isa, rows, columns, a_dtype, b_dtype, out_dtype, seed):
    a, b = draw(seed, rows, columns, dtype=a_dtype), draw(seed + 1, rows, columns, dtype=b_dtype)
    out = torch.empty(rows, columns, dtype=out_dtype)
    assert torch.equal(kernels.add(a, b, out), (a.float() + b.float()).to(out_dtype))


def test_a_sum_may_take_the_place_of_either_term(isa):
    a, b = draw(1, 3, 50), draw(2, 3, 50)
    want = a + b
    assert torch.equal(kernels.add(a, b.clone(), out=a), want)
    assert torch.equal(kernels.add(want - b, b, out=b), (want - draw(2, 3, 50)) + draw(2, 3, 50))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@few
@given(rows, st.integers(1, 70), floats, floats, seeds)
def test_activations_are_those_of_the_reference(isa, activation, rows, half, dtype, out_dtype, seed):
    x = draw(seed, rows, 2 * half, dtype=dtype) * 3
    for name, columns in ((activation, 2 * half), (activation + "_gated", half)):
        out = torch.empty(rows, columns, dtype=out_dtype)
        assert_near(kernels.activate(x, name, out), activate(x.double(), name))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_of_its_own_has_the_bits_of_a_products_epilogue(isa, activation):
    x, packed = draw(1, 5, 40), pack_linear(draw(2, 64, 40), "fp32")
    assert torch.equal(
        kernels.activate(linear(x, packed), activation), linear(x, packed, activation=activation)
    )


@few
@given(rows, st.integers(1, 4), st.sampled_from([2, 6, 32, 64, 80, 128]), floats, floats, seeds)
def test_rotation_turns_pairs_of_halves(isa, rows, heads, dim, dtype, out_dtype, seed):
    wide = draw(seed, rows, (heads + 1) * dim, dtype=dtype)
    x = wide[:, dim:].unflatten(1, (heads, dim))
    cos, sin = draw(seed + 1, rows, dim), draw(seed + 2, rows, dim)
    want = rotate(x.double(), cos.double()[:, None], sin.double()[:, None])
    out = torch.empty(rows, heads, dim, dtype=out_dtype)
    assert_near(kernels.rotate(x, cos, sin, out=out), want)
    assert torch.equal(kernels.rotate(x, cos, sin, out=x), out.to(dtype) if out_dtype == dtype else x)
    assert_near(x, want)


def test_positions_choose_the_angles(isa):
    x, cos, sin = draw(1, 6, 2, 16), draw(2, 10, 16), draw(3, 10, 16)
    positions = torch.tensor([9, 0, 3, 3, 1, 7])
    got = kernels.rotate(x, cos, sin, positions)
    assert torch.equal(got, kernels.rotate(x, cos[positions], sin[positions]))


@few
@given(rows, columns, floats, floats, st.integers(0, 3), seeds)
def test_embedding_takes_rows_of_the_table(isa, rows, columns, dtype, out_dtype, offset, seed):
    table = draw(seed, 30, columns, dtype=dtype)
    ids = torch.randint(30 - offset, (rows,), generator=torch.Generator().manual_seed(seed))
    out = torch.empty(rows, columns, dtype=out_dtype)
    assert kernels.embed(ids, table, offset=offset, out=out) is out
    assert torch.equal(out, table[ids + offset].to(out_dtype))
    assert torch.equal(kernels.take_rows(table, ids), table[ids])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("format", FORMATS)
@few
@given(st.integers(1, 50), st.integers(1, 300), seeds)
def test_embedding_from_a_packed_weight_takes_rows_of_what_it_stands_for(
    isa, format, gated, half, columns, seed
):
    packed = pack_linear(draw(seed, 2 * half, columns) * 0.02, format, gated=gated)
    ids = torch.randint(2 * half, (9,), generator=torch.Generator().manual_seed(seed))
    want = packed.unpack()[ids]
    assert torch.equal(kernels.embed(ids, packed), want)
    rounded = torch.empty(9, columns, dtype=torch.bfloat16)
    assert torch.equal(kernels.embed(ids, packed, out=rounded), want.bfloat16())


def test_the_number_of_threads_changes_no_bit(isa):
    x, table, ids = draw(1, 64, 1000), draw(2, 50, 1000), torch.arange(64) % 50
    packed = pack_linear(table, "int4-g32")
    results = []
    for threads in (1, 2, 5):
        kernels.set_threads(threads)
        gated = kernels.activate(x, "silu_gated")
        turned = kernels.rotate(x.view(64, 10, 100), x[:, :100], x[:, 100:200])
        results.append((gated, turned, kernels.embed(ids, packed), kernels.add(x, x)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_visible(isa, value):
    x = torch.tensor([[value, 1.0], [1.0, 2.0]])
    for name in ACTIVATIONS:
        want = activate(x.double(), name).float()
        torch.testing.assert_close(kernels.activate(x, name), want, equal_nan=True)
    torch.testing.assert_close(kernels.add(x, x), x + x, equal_nan=True)


IDS = torch.tensor([0, 1])
TABLE = torch.ones(4, 6)
ANGLES = torch.ones(2, 6)
HEADS = torch.ones(2, 3, 6)


@pytest.mark.parametrize("bad", [[0, 4], [-1, 0], [2**62, 0], [-(2**63), 0]])
@pytest.mark.parametrize("table", [TABLE, pack_linear(TABLE, "int8")])
def test_an_id_without_a_row_is_refused_and_nothing_written(bad, table):
    out = torch.zeros(2, 6)
    with pytest.raises(InputError, match=r"^ids holds .* the table has rows for 0 to 3"):
        kernels.embed(torch.tensor(bad), table, out=out)
    assert not out.any()
    with pytest.raises(InputError, match=r"^ids holds 3 at 1"):
        kernels.embed(torch.tensor([0, 3]), table, offset=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_a_softcap_is_its_formula_and_may_be_in_place(isa, dtype, cap):
    x = (40 * torch.randn(5, 37, generator=torch.Generator().manual_seed(0))).to(dtype)
    expected = (cap * (x.double() / cap).tanh()).to(dtype)
    tolerance = 2e-6 * cap if dtype == torch.float32 else 2.0**-8 * cap
    torch.testing.assert_close(kernels.softcap(x, cap), expected, rtol=0, atol=tolerance)
    given = x.clone()
    assert kernels.softcap(given, cap, out=given) is given
    assert torch.equal(given, kernels.softcap(x, cap))


@pytest.mark.parametrize(
    ("named", "function", "arguments"),
    [
        ("ids", kernels.embed, (IDS.int(), TABLE)),
        ("ids", kernels.embed, (IDS[None], TABLE)),
        ("ids", kernels.embed, ([0, 1], TABLE)),
        ("ids", kernels.embed, (torch.arange(4)[::2], TABLE)),
        ("table", kernels.embed, (IDS, TABLE.half())),
        ("table", kernels.embed, (IDS, TABLE.T)),
        ("rows", kernels.take_rows, (TABLE, torch.tensor([4]))),
        ("out", kernels.take_rows, (TABLE, IDS, TABLE[:2])),
        ("b", kernels.add, (TABLE, TABLE[:2])),
        ("a", kernels.add, (TABLE.double(), TABLE)),
        ("out", kernels.add, (TABLE, TABLE, torch.ones(3, 6))),
        ("activation", kernels.activate, (TABLE, "swish")),
        ("activation", kernels.activate, (TABLE, None)),
        ("x", kernels.activate, (torch.ones(2, 5), "silu_gated")),
        ("out", kernels.activate, (TABLE, "silu_gated", TABLE[:, :3])),
        ("x", kernels.softcap, (HEADS, 2.0)),
        ("cap", kernels.softcap, (TABLE, 0.0)),
        ("cap", kernels.softcap, (TABLE, float("inf"))),
        ("out", kernels.softcap, (TABLE, 2.0, TABLE[:, :3])),
        ("x", kernels.rotate, (TABLE, ANGLES, ANGLES)),
        ("x", kernels.rotate, (torch.ones(2, 3, 5), ANGLES, ANGLES)),
        ("cos", kernels.rotate, (HEADS, ANGLES.bfloat16(), ANGLES)),
        ("cos", kernels.rotate, (HEADS, torch.ones(3, 6), torch.ones(3, 6))),
        ("sin", kernels.rotate, (HEADS, ANGLES, torch.ones(3, 6))),
        ("positions", kernels.rotate, (HEADS, ANGLES, ANGLES, torch.tensor([0]))),
        ("positions", kernels.rotate, (HEADS, ANGLES, ANGLES, torch.tensor([0, 2]))),
        ("positions", kernels.rotate, (HEADS, ANGLES, ANGLES, torch.tensor([0, -1]))),
        ("out", kernels.rotate, (HEADS, ANGLES, ANGLES, None, torch.ones(2, 3, 4))),
    ],
)
def test_bad_arguments_are_refused_by_name(named, function, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        function(*arguments)
