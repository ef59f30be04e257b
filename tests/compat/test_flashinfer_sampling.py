"""FlashInfer's sampling: the right distribution, the same tokens again, and filters by their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.compat import flashinfer
from ridgeline.compat.flashinfer import (
    min_p_sampling_from_probs,
    sampling_from_logits,
    sampling_from_probs,
    softmax,
    top_k_mask_logits,
    top_k_renorm_probs,
    top_k_sampling_from_probs,
    top_k_top_p_sampling_from_logits,
    top_k_top_p_sampling_from_probs,
    top_p_renorm_probs,
    top_p_sampling_from_probs,
)
from ridgeline.errors import InputError
from tests.compat.chi_square import DRAWS, follows
from tests.compat.tensors import draw, int32

VOCAB = 20
LOGITS = torch.linspace(-2.0, 2.0, VOCAB)[torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))]
PROBS = LOGITS.softmax(0)
#: The one row, for every draw.
ROWS = torch.zeros(DRAWS, dtype=torch.int32)


def likeliest(k: int) -> torch.Tensor:
    """PROBS of its k likeliest tokens alone."""
    kept = torch.zeros(VOCAB).index_fill(0, PROBS.argsort(descending=True)[:k], 1.0)
    return PROBS * kept / (PROBS * kept).sum()


#: Between what 7 and what 8 of the likeliest add up to, so that 8 reach it.
TOP_P = float(PROBS.sort(descending=True).values[:8].sum()) - 1e-3

SAMPLERS = {
    "probs": (lambda **noise: sampling_from_probs(PROBS[None], ROWS, **noise), PROBS),
    "logits": (lambda **noise: sampling_from_logits(LOGITS[None], ROWS, **noise), PROBS),
    "top_k": (lambda **noise: top_k_sampling_from_probs(PROBS[None], 8, ROWS, **noise), likeliest(8)),
    "top_p": (lambda **noise: top_p_sampling_from_probs(PROBS[None], TOP_P, ROWS, **noise), likeliest(8)),
    "min_p": (
        lambda **noise: min_p_sampling_from_probs(
            PROBS[None], float(PROBS.sort().values[-8] / PROBS.max()) * 0.999, ROWS, **noise
        ),
        likeliest(8),
    ),
    # 4 of the 10 likeliest have 0.6 of what these have together; 0.6 of all takes 5.
    "top_k_top_p": (
        lambda **noise: top_k_top_p_sampling_from_probs(PROBS[None], 10, 0.6, ROWS, **noise),
        likeliest(4),
    ),
    "joint": (
        lambda **noise: top_k_top_p_sampling_from_probs(PROBS[None], 10, 0.6, ROWS, "joint", **noise),
        likeliest(5),
    ),
    "top_k_top_p of logits": (
        lambda **noise: top_k_top_p_sampling_from_logits(LOGITS[None], 10, 0.6, ROWS, **noise),
        likeliest(4),
    ),
    "joint of logits": (
        lambda **noise: top_k_top_p_sampling_from_logits(LOGITS[None], 5, TOP_P, ROWS, "joint", **noise),
        likeliest(5),
    ),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_follow_the_filtered_distribution(sampler):
    sample, wanted = SAMPLERS[sampler]
    assert follows(sample(seed=7), wanted)


def test_the_chi_square_test_can_fail():
    """Negative control: draws at a temperature off by 5 %, and of one token too many."""
    assert not follows(sampling_from_logits(LOGITS[None] / 1.05, ROWS, seed=7), PROBS)
    assert not follows(top_k_sampling_from_probs(PROBS[None], 9, ROWS, seed=7), likeliest(8))


@pytest.mark.parametrize("noise", ["offsets", "seeds", "both"])
def test_calls_of_one_row_with_counted_noise_follow_the_distribution_too(noise):
    counted = {"offsets": (0, 1), "seeds": (1, 0), "both": (1, 1)}[noise]
    seed, offset = (torch.arange(DRAWS) * step for step in counted)
    assert follows(sampling_from_probs(PROBS[None], ROWS, seed=seed, offset=offset), PROBS)


def test_neighbouring_rows_and_offsets_are_not_alike():
    """At successive offsets, and in successive rows at one offset, tokens agree as often as chance has it."""
    calls = [sampling_from_probs(PROBS[None], ROWS[:20_000], seed=3, offset=offset) for offset in (0, 1)]
    chance = float((PROBS**2).sum())
    for a, b in ((calls[0], calls[1]), (calls[0][1:], calls[1][:-1]), (calls[0][1:], calls[0][:-1])):
        assert abs(float((a == b).double().mean()) - chance) < 0.01


# -- noise -----------------------------------------------------------------------------------------


def test_a_seed_or_a_generator_gives_the_same_tokens_again():
    probs = draw(0, 50, VOCAB).softmax(-1)
    assert torch.equal(sampling_from_probs(probs, seed=5), sampling_from_probs(probs, seed=5, offset=0))
    assert not torch.equal(sampling_from_probs(probs, seed=5), sampling_from_probs(probs, seed=6))
    assert not torch.equal(sampling_from_probs(probs, seed=5), sampling_from_probs(probs, seed=5, offset=4))
    first, again = (torch.Generator().manual_seed(9) for _ in range(2))
    tokens = [sampling_from_probs(probs, generator=first) for _ in range(2)]
    assert torch.equal(tokens[0], sampling_from_probs(probs, generator=again))
    assert torch.equal(tokens[1], sampling_from_probs(probs, generator=again))
    assert not torch.equal(*tokens)
    torch.manual_seed(4)
    implicit = sampling_from_probs(probs)
    torch.manual_seed(4)
    assert torch.equal(implicit, sampling_from_probs(probs))


def test_a_token_depends_on_its_own_seed_and_place_alone():
    probs, seeds = draw(0, 9, VOCAB).softmax(-1), torch.arange(9)
    tokens = sampling_from_probs(probs, seed=seeds, offset=seeds * 3)
    other = probs.clone()
    other[4:] = probs[4:].flip(0)
    assert torch.equal(sampling_from_probs(other, seed=seeds, offset=seeds * 3)[:4], tokens[:4])
    one_seed = sampling_from_probs(probs, seed=torch.tensor([2]))
    assert torch.equal(one_seed, sampling_from_probs(probs, seed=2))


def test_the_result_has_the_dtype_of_the_indices():
    probs = draw(0, 3, VOCAB).softmax(-1)
    assert sampling_from_probs(probs, seed=0).dtype == torch.int32
    for dtype in (torch.int32, torch.int64):
        indices = torch.tensor([2, 2, 0, 1], dtype=dtype)
        tokens = sampling_from_probs(probs, indices, seed=0)
        assert tokens.dtype == dtype
        assert torch.equal(tokens.int(), sampling_from_probs(probs[indices.long()], seed=0))
        joint = top_k_top_p_sampling_from_probs(probs, 3, 0.9, indices, "joint", seed=0)
        assert joint.dtype == dtype


def test_each_token_may_have_filters_of_its_own():
    probs = PROBS.expand(4, VOCAB)
    order = PROBS.argsort(descending=True).int()
    k = torch.tensor([1, 2, 1, 20])
    for seed in range(20):
        tokens = top_k_sampling_from_probs(probs, k, seed=seed)
        assert tokens[0] == tokens[2] == order[0]
        assert tokens[1] in order[:2]
    p = torch.tensor([1e-6, 1.0, 1e-6, 1.0])
    assert (top_p_sampling_from_probs(probs, p, seed=1)[::2] == order[0]).all()
    assert (min_p_sampling_from_probs(probs, 1 - p.clamp(max=0.5), seed=1)[::2] == order[0]).all()


# -- filters of probabilities and logits -----------------------------------------------------------

rows_of_scores = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, 0.5, 1.0, 2.0, 3.5]), min_size=6, max_size=6), min_size=1, max_size=4
)


@given(rows_of_scores, st.integers(1, 8))
def test_top_k_keeps_exactly_the_first_k_of_a_stable_sort(rows, k):
    logits = torch.tensor(rows)
    masked = top_k_mask_logits(logits, k)
    for row, got in zip(rows, masked.tolist()):
        kept = sorted(range(6), key=lambda i: -row[i])[:k]
        assert got == [row[i] if i in kept else -math.inf for i in range(6)]
    renormalised = top_k_renorm_probs(logits.softmax(-1), k)
    torch.testing.assert_close(renormalised, masked.softmax(-1))


@given(rows_of_scores, st.sampled_from([0.01, 0.3, 0.55, 0.9, 1.0]))
def test_top_p_keeps_the_first_tokens_that_reach_p(rows, p):
    probs = torch.tensor(rows).double().softmax(-1)
    got = top_p_renorm_probs(probs.float(), p)
    for row, out in zip(probs, got):
        order = sorted(range(6), key=lambda i: -float(row[i].float()))
        kept, total = [], 0.0
        for i in order:
            if total < p:
                kept.append(i)
            total += float(row[i].float())
        want = torch.zeros(6, dtype=torch.float64).index_copy(0, torch.tensor(kept), row[kept])
        torch.testing.assert_close(out.double(), want / want.sum(), rtol=1e-5, atol=0)


def test_filters_keep_the_dtype():
    probs = draw(0, 3, VOCAB).softmax(-1).bfloat16()
    for got in (top_k_renorm_probs(probs, 3), top_p_renorm_probs(probs, 0.5), top_k_mask_logits(probs, 3)):
        assert got.dtype == torch.bfloat16
        assert got.shape == probs.shape


@given(rows_of_scores, st.sampled_from([None, 0.5, 2.0, "each"]))
def test_softmax_divides_by_the_temperature(rows, temperature):
    logits = torch.tensor(rows)
    by = torch.linspace(0.5, 2.0, len(rows)) if temperature == "each" else temperature
    want = (logits.double() / (1.0 if by is None else torch.as_tensor(by).double()[..., None])).softmax(-1)
    torch.testing.assert_close(softmax(logits, by).double(), want, rtol=1e-6, atol=1e-7)


# -- refusals --------------------------------------------------------------------------------------

ONE = PROBS[None]


@pytest.mark.parametrize(
    ("named", "call"),
    [
        ("probs", lambda: sampling_from_probs(ONE.double())),
        ("probs", lambda: sampling_from_probs(ONE.bfloat16())),
        ("probs", lambda: sampling_from_probs(PROBS)),
        ("probs", lambda: sampling_from_probs(-ONE)),
        ("probs", lambda: sampling_from_probs(ONE * 0)),
        ("probs", lambda: sampling_from_probs(ONE * math.nan)),
        ("probs", lambda: top_k_renorm_probs(PROBS, 3)),
        ("logits", lambda: sampling_from_logits(ONE * math.nan)),
        ("logits", lambda: top_k_mask_logits(PROBS, 3)),
        ("logits", lambda: softmax(PROBS)),
        ("indices", lambda: sampling_from_probs(ONE, int32(1))),
        ("indices", lambda: sampling_from_probs(ONE, int32(-1))),
        ("indices", lambda: sampling_from_probs(ONE, torch.tensor([0.0]))),
        ("top_k", lambda: top_k_sampling_from_probs(ONE, 0)),
        ("top_k", lambda: top_k_sampling_from_probs(ONE, 2.5)),
        ("top_k", lambda: top_k_sampling_from_probs(ONE, int32(1, 2))),
        ("top_k", lambda: top_k_renorm_probs(ONE, -1)),
        ("top_k", lambda: top_k_renorm_probs(ONE, 2.5)),
        ("top_k", lambda: top_k_mask_logits(ONE, "three")),
        ("probs", lambda: top_p_renorm_probs(ONE * 0, 0.5)),
        ("probs", lambda: top_k_renorm_probs(ONE * math.nan, 3)),
        ("top_k", lambda: top_k_mask_logits(ONE, int32(1, 2))),
        ("top_p", lambda: top_p_sampling_from_probs(ONE, 0.0)),
        ("top_p", lambda: top_p_renorm_probs(ONE, 1.5)),
        ("top_p", lambda: top_k_top_p_sampling_from_probs(ONE, 3, math.nan, filter_apply_order="joint")),
        ("min_p", lambda: min_p_sampling_from_probs(ONE, 1.5)),
        ("temperature", lambda: softmax(ONE, 0.0)),
        ("filter_apply_order", lambda: top_k_top_p_sampling_from_logits(ONE, 3, 0.5, None, "top_p_first")),
        ("seed", lambda: sampling_from_probs(ONE, seed=0.5)),
        ("seed", lambda: sampling_from_probs(ONE, seed=int32(1, 2))),
        ("seed", lambda: sampling_from_probs(ONE, seed=2**63)),
        ("offset", lambda: sampling_from_probs(ONE, seed=1, offset=-1)),
        ("offset", lambda: sampling_from_probs(ONE, seed=1, offset=2**31)),
        ("offset", lambda: sampling_from_probs(ONE, offset=1)),
        ("generator", lambda: sampling_from_probs(ONE, seed=1, generator=torch.Generator())),
    ],
)
def test_what_does_not_fit_is_refused_by_name(named, call):
    with pytest.raises(InputError, match=rf"^{named} "):
        call()


def test_flashinfers_modules_have_the_functions_too():
    for module, name in (("sampling", "softmax"), ("sampling", "chain_speculative_sampling")):
        assert getattr(getattr(flashinfer, module), name) is getattr(flashinfer, name)
