"""Gradients of attention on a GPU against those that PyTorch derives from the formula in float64."""

from __future__ import annotations

import math

import pytest
import torch

from ridgeline.errors import InputError
from ridgeline.kernels import triton as gpu
from tests.kernels import attention_twin as twin
from tests.kernels.triton.drawing import assert_near, draw
from tests.kernels.triton.test_gpu_attention import MASKS, SCORES, case

full = pytest.mark.slow
_BITS = 0xFFFFFFFF


def philox(seed, *counter):
    """The first word of Philox4x32-10 (Salmon et al. 2011), whole numbers."""
    c, k = list(counter), [seed & _BITS, seed >> 32 & _BITS]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & _BITS, first >> 32 ^ c[3] ^ k[1], first & _BITS]
        k = [k[0] + 0x9E3779B9 & _BITS, k[1] + 0xBB67AE85 & _BITS]
    return c[0]


def kept(seed, batch, heads, rows, keys, dropout):
    """bool [heads, rows, keys]."""
    counters = torch.cartesian_prod(*map(torch.arange, (heads, rows, keys))).tolist()
    draws = [(philox(seed, j, i, h, batch) >> 8) / 2**24 >= dropout for h, i, j in counters]
    return torch.tensor(draws).view(heads, rows, keys)


def plain(q, k, v, batch=0, dropout=0.0, seed=0, **options):
    """The formula, differentiable, in float64: the twin's scores with dropout on their softmax."""
    if not dropout:
        return twin.attention(q, k, v, **options)[0]
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    wide_k, wide_v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q.double(), wide_k) / math.sqrt(q.shape[2])
    seen = twin.visible(rows, len(k), **options)
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    weights = weights * kept(seed, batch, heads, rows, len(k), dropout) / (1 - dropout)
    return torch.einsum("hij,jhd->ihd", weights, wide_v)


def check(device, q, k, v, tolerance=3e-5, **options):
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    ours = [x.to(device).requires_grad_() for x in (q, k, v)]
    given, wanted = dict(options), dict(options)
    for name in ("alibi_slopes", "sink_logits"):
        if name in options:
            given[name] = options[name].clone().to(device)
    if "sink_logits" in options:
        wanted["sink_logits"] = options["sink_logits"].double().requires_grad_()
        given["sink_logits"].requires_grad_()
    grad = draw(99, *q.shape[:2], v.shape[2], dtype=q.dtype)
    want = plain(*leaves, **wanted)
    want.backward(grad.double())
    got = gpu.attention_with_gradient(*(x[None] for x in ours), **given)
    got.backward(grad[None].to(device))
    assert_near(got[0].detach(), want.detach(), tolerance)
    for a, b in zip(ours, leaves):
        assert_near(a.grad, b.grad, tolerance)
    if "sink_logits" in options:
        assert_near(given["sink_logits"].grad, wanted["sink_logits"].grad.nan_to_num(), tolerance)


@pytest.mark.parametrize("mask", ["all", "causal", "window", "sinks", "many sinks"])
def test_gradients_under_every_mask(device, mask):
    check(device, *case(0, 5, 40, dim=16), **MASKS[mask])


@pytest.mark.parametrize("score", ["softcap", "alibi", "sink", "together"])
def test_gradients_of_every_score(device, score):
    check(device, *case(3, 5, 20, dim=16), causal=True, **SCORES[score])


@pytest.mark.parametrize("rows", [3, 20])
def test_gradients_where_rows_see_nothing(device, rows):
    check(device, *case(6, rows, 9, 2, 1, 16, value_dim=24), causal=True)


def test_16_bit_gradients_err_by_their_rounding(device):
    check(device, *case(9, 7, 33, 2, 1, 32, torch.float16), tolerance=5e-3, causal=True)


def test_gradients_of_values_of_twice_the_size(device):
    """As differential attention has them."""
    check(device, *case(10, 5, 40, dim=20, value_dim=40), causal=True)


@full
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("dim", "value_dim"),
    [(32, 64), (40, 40), (59, 118), (80, 80), (96, 192), (111, 111), (128, 256), (160, 160), (256, 256)],
)
def test_gradients_of_all_head_sizes(device, dim, value_dim, dtype):
    tolerance = 3e-5 if dtype == torch.float32 else 5e-3
    check(device, *case(11, 19, 45, 4, 2, dim, dtype, value_dim), tolerance=tolerance, causal=True)


@full
@pytest.mark.parametrize("score", [name for name in SCORES if name != "distance"])
@pytest.mark.parametrize("mask", MASKS)
def test_gradients_of_policies_together(device, mask, score):
    check(device, *case(12, 37, 70, dim=24), **{**MASKS[mask], **SCORES[score]})


def test_dropout_is_philox_of_sequence_head_query_and_key(device):
    check(device, *case(15, 4, 10, dim=16), causal=True, dropout=0.3, seed=(5 << 32) + 7)


def test_dropouts_pattern_depends_on_no_length(device):
    """Values that are the identity show the weights: they are the same however many rows there are."""
    q, k, _ = case(18, 6, 40, 1, 1, 16)
    v = torch.eye(40)[:, None]
    given = [x[None].to(device) for x in (q, k, v)]
    whole = gpu.attention_with_gradient(*given, dropout=0.5, seed=3)
    part = gpu.attention_with_gradient(given[0][:, :2], *given[1:], dropout=0.5, seed=3)
    assert torch.equal(whole[:, :2] == 0, part == 0)
    share = (whole == 0).float().mean().item()
    assert 0.35 < share < 0.65
    other = gpu.attention_with_gradient(*given, dropout=0.5, seed=4)
    assert not torch.equal(whole == 0, other == 0)


def test_packed_sequences_have_gradients_of_their_own(device):
    rows, keys = [3, 0, 6], [8, 5, 6]
    q, k, v = draw(20, 9, 4, 16), draw(21, 19, 2, 16), draw(22, 19, 2, 16)
    cu = [torch.tensor([0, *n]).cumsum(0) for n in (rows, keys)]
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    ours = [x.to(device).requires_grad_() for x in (q, k, v)]
    grad = draw(23, 9, 4, 16)
    out = gpu.attention_with_gradient(*ours, *cu, causal=True)
    out.backward(grad.to(device))
    parts = zip(leaves[0].split(rows), leaves[1].split(keys), leaves[2].split(keys))
    want = torch.cat([plain(*part, causal=True) for part in parts])
    want.backward(grad.double())
    assert_near(out.detach(), want.detach(), 3e-5)
    for a, b in zip(ours, leaves):
        assert_near(a.grad, b.grad, 3e-5)


def test_the_same_gradients_every_time(device):
    def gradients():
        ours = [x[None].to(device).requires_grad_() for x in case(25, 20, 40, dim=16)]
        gpu.attention_with_gradient(*ours, causal=True).sum().backward()
        return [x.grad for x in ours]

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients()))


def test_bad_arguments_are_named(device):
    q = torch.zeros(1, 2, 2, 8, device=device)
    with pytest.raises(InputError, match="dropout is 1"):
        gpu.attention_with_gradient(q, q, q, dropout=1)
    with pytest.raises(InputError, match="cu_seqlens_k"):
        gpu.attention_with_gradient(q[0], q[0], q[0], torch.tensor([0, 2]))
