"""Norms and products whose rows are scaled, shifted and gated by the vectors of their sequences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline import kernels
from ridgeline.errors import InputError

few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FLOATS = st.sampled_from([torch.float32, torch.bfloat16])
EPS = 1e-5


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def numbers(seed: int, rows: int, sequences: int) -> torch.Tensor:
    return torch.randint(sequences, (rows,), generator=torch.Generator().manual_seed(seed))


def norm_twin(x, weight, bias, shift, scale, sequences, kind):
    x = x.double()
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    y = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    y = y if weight is None else y * weight.double()
    y = y if bias is None else y + bias.double()
    return y * (1 + scale.double()[sequences]) + shift.double()[sequences]


@few
@given(
    rows=st.integers(0, 40),
    dim=st.one_of(st.integers(1, 150), st.sampled_from([384, 1152])),
    sequences=st.integers(1, 5),
    kind=st.sampled_from(["layer", "rms"]),
    weighted=st.booleans(),
    biased=st.booleans(),
    dtype=FLOATS,
    out_dtype=FLOATS,
    seed=st.integers(0, 999),
)
def test_a_modulated_norm_is_its_formula(
    isa, rows, dim, sequences, kind, weighted, biased, dtype, out_dtype, seed
):
    x, vectors = draw(seed, rows, dim, dtype=dtype), draw(seed + 1, sequences, 3 * dim)
    shift, scale = vectors[:, 2 * dim :], vectors[:, :dim]  # as views of what one matrix made
    weight = draw(seed + 2, dim) if weighted else None
    bias = draw(seed + 3, dim) if biased else None
    which, out = numbers(seed, rows, sequences), torch.empty(rows, dim, dtype=out_dtype)
    assert kernels.modulated_norm(x, weight, bias, EPS, shift, scale, which, kind=kind, out=out) is out
    expected = norm_twin(x, weight, bias, shift, scale, which, kind)
    # The largest terms of a sum bound its rounding; bf16 rounds the result once.
    size = (expected.abs() + 10 * (1 + scale.double()[which].abs())).float()
    relative = 1e-5 if out_dtype == torch.float32 else 2**-8
    assert bool(((out.double() - expected).abs() <= relative * size).all())


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_nothing_added_and_nothing_scaled_is_the_norm_itself(isa, kind):
    x, weight, zeros = draw(0, 9, 70), draw(1, 70), torch.zeros(2, 70)
    plain = kernels.rms_norm(x, weight, EPS) if kind == "rms" else kernels.layer_norm(x, weight, None, EPS)
    assert torch.equal(
        kernels.modulated_norm(x, weight, None, EPS, zeros, zeros, numbers(0, 9, 2), kind=kind), plain
    )
    ones = torch.ones(70)
    bare = kernels.rms_norm if kind == "rms" else lambda x, w, eps: kernels.layer_norm(x, w, None, eps)
    assert torch.equal(bare(x, None, EPS), bare(x, ones, EPS))


@few
@given(
    format=st.sampled_from(["fp32", "bf16", "int8", "int4-g32"]),
    rows=st.integers(0, 60),
    outputs=st.integers(1, 100),
    sequences=st.integers(1, 4),
    activation=st.sampled_from([None, "gelu_tanh"]),
    seed=st.integers(0, 999),
)
def test_a_gate_multiplies_the_product_before_the_residual(
    isa, format, rows, outputs, sequences, activation, seed
):
    """To the bit: the product itself is held to its twin elsewhere."""
    x, residual = draw(seed, rows, 40), draw(seed + 1, rows, outputs)
    packed = kernels.pack_linear(draw(seed + 2, outputs, 40), format)
    gate, bias = draw(seed + 3, sequences, 2 * outputs)[:, outputs:], draw(seed + 4, outputs)
    which = numbers(seed, rows, sequences)
    product = kernels.linear(x, packed, bias, activation)
    gated = kernels.modulated_linear(x, packed, bias, activation, residual, gate, which)
    assert torch.equal(gated, residual + gate[which] * product)


def test_rows_of_many_blocks_keep_their_own_gates(isa):
    """More rows than are prepared at a time."""
    x, residual = draw(0, 700, 2100), draw(1, 700, 40)
    packed, gate = kernels.pack_linear(draw(2, 40, 2100), "fp32"), draw(3, 3, 40)
    which = numbers(4, 700, 3)
    gated = kernels.modulated_linear(x, packed, None, None, residual, gate, which)
    assert torch.equal(gated, residual + gate[which] * kernels.linear(x, packed))
    row = slice(650, 651)
    alone = kernels.modulated_linear(x[row], packed, None, None, residual[row], gate, which[row])
    assert torch.equal(alone, gated[row])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequences": torch.tensor([0, 2, 0])}, "sequences name rows outside of shift, which has 2"),
        ({"sequences": torch.tensor([0, -1, 0])}, "sequences name rows outside of shift"),
        ({"sequences": torch.tensor([0, 1])}, "sequences has 2 numbers and x 3 rows"),
        ({"shift": torch.zeros(2, 7)}, r"shift is float32 \[2, 7\]"),
        ({"scale": torch.zeros(3, 8)}, r"scale is float32 \[3, 8\]"),
        ({"scale": torch.zeros(2, 8).bfloat16()}, "scale is bfloat16"),
        ({"kind": "batch"}, "kind is 'batch'"),
    ],
)
def test_a_modulation_that_does_not_fit_is_refused(changes, message):
    given = {"shift": torch.zeros(2, 8), "scale": torch.zeros(2, 8), "sequences": torch.tensor([0, 1, 0])}
    with pytest.raises(InputError, match=message):
        kernels.modulated_norm(torch.zeros(3, 8), None, None, EPS, **(given | changes))


@pytest.mark.parametrize(
    ("gate", "sequences", "message"),
    [
        (torch.zeros(2, 7), torch.tensor([0, 1, 0]), r"gate is float32 \[2, 7\]"),
        (torch.zeros(2, 8), torch.tensor([0, 2, 0]), "sequences name rows outside of gate"),
        (torch.zeros(2, 8).double(), torch.tensor([0, 1, 0]), "gate is torch.float64"),
    ],
)
def test_a_gate_that_does_not_fit_is_refused(gate, sequences, message):
    packed = kernels.pack_linear(torch.zeros(8, 8), "fp32")
    x = torch.zeros(3, 8)
    with pytest.raises(InputError, match=message):
        kernels.modulated_linear(x, packed, None, None, x, gate, sequences)
