"""Mixtures of experts on a GPU: choices are the project's, and products those of one row at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.kernels import pack_linear
from ridgeline.kernels import triton as gpu
from ridgeline.kernels.fp8 import pack_fp8
from ridgeline.kernels.triton import experts as module
from ridgeline.kernels.triton.experts import GpuExperts
from ridgeline.kernels.triton.naive_experts import mixture as naive_mixture
from ridgeline.ops.mixture import Router
from ridgeline.ops.records import Weight
from ridgeline.ops.routing import choose
from tests.kernels.triton.drawing import TOLERANCE, assert_near, draw

few_examples = settings(max_examples=3)
slow = pytest.mark.slow


# -- choosing -------------------------------------------------------------------------------------


@st.composite
def routers(draw_from):
    groups = draw_from(st.sampled_from([1, 1, 2, 3, 4]))
    size = draw_from(st.integers(2, 6))
    opened = draw_from(st.integers(1, groups))
    return {
        "experts": groups * size,
        "chosen": draw_from(st.integers(1, opened * size)),
        "groups": groups,
        "open_groups": opened,
        "scoring": draw_from(st.sampled_from(["softmax", "sigmoid"])),
        "group_score": draw_from(st.sampled_from(["max", "top2"])),
        "normalised": draw_from(st.booleans()),
        "scale": draw_from(st.sampled_from([1.0, 2.5])),
        "biased": draw_from(st.booleans()),
    }


@settings(max_examples=8)
@given(routers(), st.integers(0, 5), st.integers(0, 99), st.booleans())
def test_choices_and_weights_are_the_projects(device, router, rows, seed, tied):
    """With ``tied`` scores only a few values are drawn, so that the lower number decides."""
    router = dict(router)
    experts, biased = router.pop("experts"), router.pop("biased")
    logits = draw(seed, rows, experts)
    logits = (logits * 2).round() if tied else logits
    bias = draw(seed + 1, experts).div(4) if biased else None
    if tied and biased:
        bias = bias.round()
    options = {name: value for name, value in router.items() if name != "chosen"}
    twin = Router(Weight("w", (experts, 1), "fp32"), router["chosen"], **options)
    want = choose(logits, twin, bias)
    moved = None if bias is None else bias.to(device)
    found, weights = gpu.route(logits.to(device), router["chosen"], bias=moved, **options)
    assert torch.equal(found.cpu().long(), want.experts)
    torch.testing.assert_close(weights.cpu(), want.weights.float(), rtol=3e-6, atol=1e-7)


def test_whatever_comes_in_different_experts_are_chosen(device):
    """Of a NaN or an infinity, too: the numbers are addresses of weights."""
    logits = torch.full((3, 6), torch.nan)
    logits[1, 2], logits[2] = 1.0, -torch.inf
    found, weights = gpu.route(logits.to(device), 3, groups=3, open_groups=2)
    assert found.cpu().tolist() == [[0, 1, 2]] * 3
    assert weights.isnan().all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"logits": torch.zeros(4)}, "logits"),
        ({"chosen": 7}, "chosen"),
        ({"groups": 4}, "groups"),
        ({"scoring": "max"}, "scoring"),
        ({"group_score": "sum"}, "group_score"),
        ({"bias": torch.zeros(5)}, "bias"),
    ],
)
def test_bad_arguments_of_a_choice_are_named(device, arguments, named):
    given = {"logits": torch.zeros(2, 6), "chosen": 2} | arguments
    given = {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in given.items()}
    with pytest.raises(InputError, match=named):
        gpu.route(**given)


# -- products ---------------------------------------------------------------------------------------


def weights_of(format, experts, inner, width, dtype, device, seed=0):
    """Random weights in a format, "" for floats of ``dtype``."""
    shapes = ((experts, 2 * inner, width), True), ((experts, width, inner), False)
    made = []
    for number, (size, gated) in enumerate(shapes):
        weight = draw(seed + number, *size) / 4
        if format:
            packed = tuple(pack_linear(one, format, gated=gated) for one in weight)
            made.append(GpuExperts.of(packed, device))
        else:
            made.append(GpuExperts.plain(weight.to(dtype).to(device), gated=gated))
    return made


def exact(x, experts, weights, gate_up, down, activation, residual):
    """In float64 on the CPU."""

    def wide(part):
        unpacked = torch.stack([part[i].unpack().double().cpu() for i in range(part.shape[0])])
        return GpuExperts.plain(unpacked, gated=part.gated)

    added = None if residual is None else residual.double().cpu()
    moved = x.double().cpu(), experts.cpu(), weights.double().cpu()
    return naive_mixture(*moved, wide(gate_up), wide(down), activation, added)


def loads(kind, rows, experts, chosen, seed):
    """Which experts rows take: at random, all the same ones, or each the next, so that many are left out."""
    if kind == "same":
        return torch.arange(chosen).repeat(rows, 1)
    if kind == "next":
        first = torch.arange(rows) % (experts - chosen + 1)
        return first[:, None] + torch.arange(chosen)
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.randperm(experts, generator=generator)[:chosen].sort().values for _ in range(rows)]
    )


@pytest.mark.parametrize(
    "format", ["", pytest.param("int8", marks=slow), pytest.param("int4-g32", marks=slow), "int4-g32-zp"]
)
@few_examples
@example(rows=40, experts=7, chosen=2, kind="same", added=True, seed=0)
@example(rows=3, experts=9, chosen=1, kind="next", added=False, seed=1)
@example(rows=1, experts=4, chosen=4, kind="random", added=True, seed=2)
@given(
    rows=st.integers(1, 20),
    experts=st.integers(1, 9),
    chosen=st.integers(1, 4),
    kind=st.sampled_from(["random", "same", "next"]),
    added=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_mixture_is_the_sum_over_each_rows_experts(
    device, format, rows, experts, chosen, kind, added, seed
):
    """Uneven loads and experts without rows; inner sizes that are no whole tiles or groups."""
    chosen = min(chosen, experts)
    inner, width = 24, 40
    parts = weights_of(format, experts, inner, width, torch.float32, device, seed)
    x, residual = draw(seed + 2, rows, width, device=device), draw(seed + 3, rows, width, device=device)
    taken = loads(kind, rows, experts, chosen, seed).int().to(device)
    shares = draw(seed + 4, rows, chosen, device=device)
    out = torch.full((rows, width), torch.nan, device=device)
    given = (x, taken, shares, *parts, "silu_gated", residual if added else None)
    assert gpu.mixture(*given, out) is out
    assert_near(out, exact(*given), 2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("format", ["", "int4-g32"])
def test_16_bit_rows_err_by_their_roundings(device, dtype, format):
    parts = weights_of(format, 5, 32, 48, dtype, device)
    x, taken = draw(2, 9, 48, dtype=dtype, device=device), loads("random", 9, 5, 2, 0).int().to(device)
    given = (x, taken, draw(3, 9, 2, device=device), *parts, "gelu_tanh_gated", x)
    assert_near(gpu.mixture(*given), exact(*given), 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("format", ["", "int8", "int4-g32-zp"])
def test_a_rows_bits_are_its_own(device, format, monkeypatch):
    """Sorted or not, alone or among others, wherever it stands. BLAS, which multiplies tiles where they are
    interpreted, sums a row by where it stands, so it is left out."""
    monkeypatch.setattr(np, "matmul", lambda a, b, **_: np.stack([(row[:, None] * b).sum(0) for row in a]))
    parts = weights_of(format, 5, 24, 40, torch.float32, device)
    x, shares = draw(2, 11, 40, device=device), draw(3, 11, 2, device=device)
    taken = loads("random", 11, 5, 2, 0).int().to(device)
    whole = gpu.mixture(x, taken, shares, *parts, "silu_gated")
    for rows in ([4], [7, 3, 4, 4]):
        for alone in (True, False):
            monkeypatch.setattr(module, "_alone", lambda *sizes, alone=alone: alone)
            found = gpu.mixture(x[rows], taken[rows], shares[rows], *parts, "silu_gated")
            assert torch.equal(found, whole[rows])


@pytest.mark.parametrize("format", ["", "int8", "int4-g32-zp"])
def test_an_invariant_row_has_the_bits_that_it_has_alone(device, sums_by_row, format):
    """Beside few and many others; alone, its choices are not sorted."""
    parts = weights_of(format, 5, 24, 40, torch.float32, device)
    x, shares = draw(2, 90, 40, device=device), draw(3, 90, 2, device=device)
    taken = loads("random", 90, 5, 2, 0).int().to(device)
    whole = gpu.mixture(x, taken, shares, *parts, "silu_gated", x, invariant=True)
    assert_near(whole, exact(x, taken, shares, *parts, "silu_gated", x), 2e-5)
    for rows in (slice(70, 71), slice(3, 12)):
        given = x[rows], taken[rows], shares[rows]
        alone = gpu.mixture(*given, *parts, "silu_gated", x[rows], invariant=True)
        assert torch.equal(alone, whole[rows])


def test_experts_in_fp8_are_refused(device):
    packed = [pack_fp8(draw(0, 32, 16), "fp8")] * 2
    with pytest.raises(InputError, match="experts can't be kept as fp8; choose one of"):
        GpuExperts.of(packed, device)


@few_examples
@given(count=st.integers(1, 300), experts=st.integers(1, 40), seed=st.integers(0, 99))
def test_blocks_hold_every_place_once_in_order(device, count, experts, seed):
    """Whatever was chosen there are no more blocks than their memory has places for."""
    named = torch.randint(experts, (count, 1), generator=torch.Generator().manual_seed(seed))
    if seed % 3 == 0:
        named[:] = experts - 1
    places, blocks = module._sorted(named.int().to(device), experts, module.Tiles(16, 16, 1, 1))
    assert torch.equal(places.cpu(), named.flatten().sort(stable=True).indices.int())
    listed, first = blocks.cpu().tolist(), 0
    used = [block for block in listed if block[0] >= 0]
    assert listed[: len(used)] == used
    for expert, start, rows in used:
        assert (start, 0 < rows <= 16) == (first, True)
        assert (named.flatten()[places.cpu()[start : start + rows].long()] == expert).all()
        first += rows
    assert first == count


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4-g64", "int4-g32-zp"])
def test_stacked_weights_stand_for_the_same_numbers(device, format):
    packed = tuple(pack_linear(draw(i, 12, 70), format, gated=True) for i in range(3))
    stacked = GpuExperts.of(packed, device)
    assert (stacked.shape, stacked.gated) == ((3, 12, 70), True)
    for one, theirs in enumerate(packed):
        assert torch.equal(stacked[one].unpack().float().cpu(), theirs.unpack())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"x": torch.zeros(2, 9)}, "x is"),
        ({"experts": torch.zeros(2, 2, dtype=torch.int64)}, "experts is"),
        ({"weights": torch.zeros(2, 3)}, "weights"),
        ({"activation": "silu"}, "activation"),
        ({"residual": torch.zeros(1, 8)}, "residual"),
        ({"down": GpuExperts.plain(torch.zeros(3, 8, 5))}, "down"),
        ({"down": GpuExperts.plain(torch.zeros(3, 8, 4, dtype=torch.float16))}, "down"),
    ],
)
def test_bad_arguments_of_a_mixture_are_named(device, arguments, named):
    given = {
        "x": torch.zeros(2, 8),
        "experts": torch.zeros(2, 2, dtype=torch.int32),
        "weights": torch.zeros(2, 2),
        "gate_up": GpuExperts.plain(torch.zeros(3, 8, 8), gated=True),
        "down": GpuExperts.plain(torch.zeros(3, 8, 4)),
        "activation": "silu_gated",
    } | arguments
    for name, x in given.items():
        if isinstance(x, GpuExperts):
            given[name] = GpuExperts.plain(x.data.to(device), gated=x.gated)
        elif isinstance(x, torch.Tensor):
            given[name] = x.to(device)
    with pytest.raises(InputError, match=named):
        gpu.mixture(**given)
