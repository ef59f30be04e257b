"""Weights in FP8: scales of rows and of blocks, and numbers as near as the format has them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.kernels import fp8
from ridgeline.ops.formats import get_format


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@settings(max_examples=15)
@given(out=st.integers(1, 300), inputs=st.integers(1, 300), format=st.sampled_from(list(fp8.FP8_BLOCKS)))
def test_numbers_are_as_near_as_their_scale_lets_them_be(out, inputs, format):
    """Half of a step: 2^-4 of a normal number, 2^-10 of the scale below."""
    weight = draw(out, inputs)
    packed = fp8.pack_fp8(weight, format)
    rows, columns = fp8.FP8_BLOCKS[format]
    scales = fp8.spread(packed.scales.T, rows, columns or inputs)[:out, :inputs]
    limit = torch.maximum(weight.abs() / 16, scales / 1024) * 1.00001
    assert ((packed.unpack() - weight).abs() <= limit).all()
    assert packed.shape == (out, inputs)
    for i in range(0, min(out, 3 * rows), rows):
        for j in range(0, inputs, columns or inputs):
            block = weight[i : i + rows, j : j + (columns or inputs)]
            assert packed.scales[j // (columns or inputs), i // rows] == block.abs().max() / 448


@pytest.mark.parametrize("format", fp8.FP8_BLOCKS)
def test_bytes_are_those_of_the_format(format):
    packed = fp8.pack_fp8(draw(256, 384), format)
    assert packed.nbytes == get_format(format).nbytes((256, 384))


def test_zeros_stay_zeros_and_tiny_numbers_finite():
    weight = torch.zeros(3, 8)
    weight[1] = 1e-44
    packed = fp8.pack_fp8(weight, "fp8")
    assert packed.unpack().isfinite().all()
    assert not packed.unpack()[[0, 2]].any()


def test_many_rows_are_packed_in_parts(monkeypatch):
    weight, seen = draw(300, 40), []
    whole = fp8.pack_fp8(weight, "fp8-128x128")
    monkeypatch.setattr(fp8, "_ROWS", 128)
    parts = fp8.pack_fp8(weight, "fp8-128x128", progress=seen.append)
    assert torch.equal(parts.data, whole.data)
    assert torch.equal(parts.scales, whole.scales)
    assert sum(seen) == weight.nbytes


@pytest.mark.parametrize(
    ("weight", "format", "gated", "named"),
    [
        (torch.ones(2, 2), "fp4", False, "format is 'fp4'"),
        (torch.ones(2), "fp8", False, "float matrix"),
        (torch.ones(0, 2), "fp8", False, "float matrix"),
        (torch.ones(3, 2), "fp8", True, "even number"),
        (torch.full((2, 2), torch.nan), "fp8", False, "not finite"),
        (torch.full((2, 2), torch.inf), "fp8-128x128", False, "not finite"),
    ],
)
def test_what_it_cannot_hold_is_named(weight, format, gated, named):
    with pytest.raises(InputError, match=named):
        fp8.pack_fp8(weight, format, gated=gated)
