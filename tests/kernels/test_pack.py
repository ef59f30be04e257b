"""Packing: each format against its naive twin, bit for bit, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline import kernels
from ridgeline.errors import InputError
from ridgeline.kernels import PackedLinear, pack_linear
from ridgeline.ops.formats import FORMATS as STORAGE_FORMATS
from tests.kernels.linear_twin import (
    FORMATS,
    group_of,
    grouped,
    int4_candidates,
    int4_zero_weight,
    int8_weight,
    rounded,
)

few = settings(max_examples=25, deadline=None)
shapes = st.tuples(st.integers(1, 100), st.integers(1, 300))
seeds = st.integers(0, 1000)


def draw(seed: int, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@few
@given(shape=shapes, seed=seeds)
def test_floats_are_kept_or_rounded_to_nearest(shape, seed):
    weight = draw(seed, shape)
    assert torch.equal(pack_linear(weight, "fp32").unpack(), weight)
    assert torch.equal(pack_linear(weight, "bf16").unpack(), weight.bfloat16().float())
    assert torch.equal(pack_linear(weight.bfloat16(), "bf16").unpack(), weight.bfloat16().float())


@few
@given(shape=shapes, seed=seeds)
def test_int8_rounds_against_one_scale_a_row(shape, seed):
    weight = draw(seed, shape)
    assert torch.equal(pack_linear(weight, "int8").unpack(), int8_weight(weight))


@pytest.mark.parametrize("format", ["int4-g32", "int4-g64", "int4-g128"])
@few
@given(shape=shapes, seed=seeds)
def test_int4_takes_the_scale_with_the_least_squared_error(format, shape, seed):
    weight = draw(seed, shape)
    group = group_of(format, shape[1])
    target = grouped(weight, group)
    got = grouped(pack_linear(weight, format).unpack(), group)
    # A whole number times a scale is exact in float32, so the largest tells the scale but for that number.
    largest = got.abs().amax(-1, keepdim=True)
    scales = [sign * largest / q for sign in (-1, 1) for q in range(1, 9)]
    assert torch.stack([(got == rounded(target, s, -8, 7)).all(-1) for s in scales]).any(0).all()
    errors = (int4_candidates(weight, group) - target).double().square().sum(-1)
    assert bool(((got - target).double().square().sum(-1) <= errors.amin(0) * (1 + 1e-5)).all())


@pytest.mark.parametrize("format", ["int4-g32-zp", "int4-g64-zp", "int4-g128-zp"])
@few
@given(shape=shapes, seed=seeds, shift=st.sampled_from([-0.1, 0.0, 0.1]))
def test_zero_points_cover_the_range_of_a_group(format, shape, seed, shift):
    weight = draw(seed, shape) + shift
    assert torch.equal(
        pack_linear(weight, format).unpack(), int4_zero_weight(weight, group_of(format, shape[1]))
    )


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_of_zeros_stays_zero(format):
    assert torch.equal(pack_linear(torch.zeros(3, 70), format).unpack(), torch.zeros(3, 70))


@pytest.mark.parametrize("format", FORMATS)
def test_the_number_of_threads_changes_no_byte(format):
    weight = draw(1, (200, 130))
    kernels.set_threads(1)
    alone = pack_linear(weight, format)
    kernels.set_threads(3)
    assert torch.equal(pack_linear(weight, format).data, alone.data)


@pytest.mark.parametrize(
    "format", ["fp32", "bf16", "int8", "int4-g32", "int4-g64", "int4-g128", "int4-g128-zp"]
)
def test_a_packed_weight_takes_what_its_format_says(format):
    """Where nothing is padded: whole panels, whole groups, zero points in whole cache lines."""
    assert pack_linear(torch.ones(64, 512), format).nbytes == STORAGE_FORMATS[format].nbytes((64, 512))


def test_progress_sums_to_the_weight():
    weight, seen = torch.ones(4096, 2048), []
    pack_linear(weight, "bf16", progress=seen.append)
    assert len(seen) > 1
    assert sum(seen) == weight.nbytes


def test_rows_may_be_apart():
    wide = draw(2, (40, 100))
    assert torch.equal(
        pack_linear(wide[:, 10:60], "bf16").data, pack_linear(wide[:, 10:60].contiguous(), "bf16").data
    )


@pytest.mark.parametrize("format", ["int8", "int4-g32", "int4-g64-zp"])
@pytest.mark.parametrize(
    ("value", "why"), [(float("nan"), "NaN"), (float("-inf"), "NaN"), (1e30, "too large")]
)
def test_integers_refuse_what_they_cannot_hold(format, value, why):
    weight = torch.ones(5, 40)
    weight[3, 39] = value
    with pytest.raises(InputError, match=f"^weight holds .*{why}"):
        pack_linear(weight, format)


@pytest.mark.parametrize(
    ("named", "weight", "format", "gated"),
    [
        ("weight", torch.ones(4, 4, dtype=torch.float64), "bf16", False),
        ("weight", torch.ones(4), "bf16", False),
        ("weight", torch.ones(4, 4, 4), "bf16", False),
        ("weight", torch.ones(4, 8).T, "bf16", False),
        ("weight", torch.ones(4, 4, device="meta"), "bf16", False),
        ("weight", torch.ones(0, 4), "bf16", False),
        ("weight", torch.ones(4, 0), "int4-g32", False),
        ("weight", torch.ones(5, 4), "bf16", True),
        ("weight", torch.ones(1, 200_000), "int8", False),
        ("format", torch.ones(4, 4), "int3", False),
    ],
)
def test_bad_weights_are_refused_by_name(named, weight, format, gated):
    with pytest.raises(InputError, match=rf"^{named} "):
        pack_linear(weight, format, gated=gated)


def test_data_of_another_length_is_refused():
    packed = pack_linear(torch.ones(4, 8), "int8")
    with pytest.raises(InputError, match=r"^data is uint8"):
        PackedLinear(packed.data[:-1], (4, 8), "int8")
    with pytest.raises(InputError, match=r"^data is float32"):
        PackedLinear(torch.ones(4, 8), (4, 8), "int8")


def test_data_with_gaps_or_between_words_is_refused():
    packed = pack_linear(torch.ones(4, 8), "int8")
    wide = packed.data.repeat_interleave(2)
    with pytest.raises(InputError, match=r"^data has gaps"):
        PackedLinear(wide[::2], (4, 8), "int8")
    with pytest.raises(InputError, match=r"^data begins at an address"):
        PackedLinear(wide[1 : 1 + packed.nbytes], (4, 8), "int8")
