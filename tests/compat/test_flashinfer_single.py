"""FlashInfer's attention of one sequence against float64, in both layouts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.compat.flashinfer import single_decode_with_kv_cache, single_prefill_with_kv_cache
from ridgeline.errors import InputError
from tests.compat.flashinfer_twin import hnd, options, wanted
from tests.compat.tensors import DIMS, LENGTHS, draw, near

few = settings(max_examples=100, deadline=None)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rows", "keys"), LENGTHS)
def test_a_prefill_is_that_of_float64_in_either_layout(rows, keys, causal):
    q, k, v = draw(0, rows, 4, 64), draw(1, keys, 2, 64), draw(2, keys, 2, 64)
    out, lse = single_prefill_with_kv_cache(q, k, v, causal=causal, return_lse=True)
    want, want_lse = wanted([q], [k], [v], causal=causal)
    near(out, want)
    near(lse, want_lse)
    other = single_prefill_with_kv_cache(q, hnd(k), hnd(v), causal=causal, kv_layout="HND")
    assert torch.equal(other, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", DIMS)
def test_every_head_size_will_do(dim, dtype):
    q, k, v = draw(0, 7, 4, dim, dtype=dtype), *(draw(i, 50, 2, dim, dtype=dtype) for i in (1, 2))
    near(single_prefill_with_kv_cache(q, k, v, causal=True), wanted([q], [k], [v], causal=True)[0])
    near(single_decode_with_kv_cache(q[0], k, v), wanted([q[:1]], [k], [v])[0][0])


@few
@given(options, st.booleans(), st.integers(0, 12), st.integers(0, 30))
def test_masks_and_scores_of_a_prefill_are_those_of_float64(options, causal, rows, keys):
    q, k, v = draw(0, rows, 4, 16), draw(1, keys, 2, 16), draw(2, keys, 2, 24)
    out, lse = single_prefill_with_kv_cache(q, k, v, causal=causal, return_lse=True, **options)
    want, want_lse = wanted([q], [k], [v], causal=causal, **options)
    near(out, want)
    near(lse, want_lse)


@few
@given(options, st.sampled_from(["NHD", "HND"]), st.integers(0, 40))
def test_a_decode_is_a_prefill_of_the_last_token(options, layout, keys):
    q, k, v = draw(0, 4, 16), draw(1, keys, 2, 16), draw(2, keys, 2, 16)
    given_k, given_v = (hnd(k), hnd(v)) if layout == "HND" else (k, v)
    out, lse = single_decode_with_kv_cache(q, given_k, given_v, layout, return_lse=True, **options)
    want, want_lse = wanted([q[None]], [k], [v], causal=True, **options)
    near(out, want[0])
    near(lse, want_lse[0])
    assert torch.equal(single_decode_with_kv_cache(q, given_k, given_v, layout, **options), out)


def test_calibration_scales_multiply_the_scores_and_the_output():
    q, k, v = draw(0, 4, 16), draw(1, 9, 2, 16), draw(2, 9, 2, 16)
    out = single_decode_with_kv_cache(q, k, v, q_scale=0.5, k_scale=3.0, v_scale=2.0)
    near(out, 2 * wanted([q[None]], [k], [v], sm_scale=1.5 / 4)[0][0])
    prefill = single_prefill_with_kv_cache(q[None], k, v, k_scale=1.5, v_scale=2.0)
    assert torch.equal(prefill[0], out)


def test_a_prefill_may_round_its_result_to_another_dtype():
    q, k, v = draw(0, 3, 4, 16), draw(1, 9, 2, 16), draw(2, 9, 2, 16)
    out = single_prefill_with_kv_cache(q, k, v, o_dtype=torch.bfloat16)
    assert torch.equal(out, single_prefill_with_kv_cache(q, k, v).bfloat16())


# -- refusals --------------------------------------------------------------------------------------

SINGLE = {"q": draw(0, 3, 4, 16), "k": draw(1, 9, 2, 16), "v": draw(2, 9, 2, 16)}


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("pos_encoding_mode", {"pos_encoding_mode": "ROPE_LLAMA"}),
        ("pos_encoding_mode", {"pos_encoding_mode": "ALIBI"}),
        ("kv_layout", {"kv_layout": "NDH"}),
        ("custom_mask", {"custom_mask": torch.ones(3, 9)}),
        ("packed_custom_mask", {"packed_custom_mask": torch.ones(4)}),
        ("scale_q", {"scale_q": torch.ones(4)}),
        ("use_fp16_qk_reduction", {"use_fp16_qk_reduction": True}),
        ("kv_cache_sf", {"kv_cache_sf": (torch.ones(1), torch.ones(1))}),
        ("o_dtype", {"o_dtype": torch.float16}),
        ("sm_scale", {"sm_scale": math.nan}),
        ("window_left", {"window_left": 1.5}),
        ("logits_soft_cap", {"logits_soft_cap": -1.0}),
        ("q", {"q": SINGLE["q"].half()}),
        ("k", {"k": SINGLE["k"].bfloat16()}),
        ("k", {"k": SINGLE["k"][0]}),
        ("v", {"v": SINGLE["v"][:4]}),
    ],
)
def test_a_prefill_that_does_not_fit_is_refused_by_name(named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        single_prefill_with_kv_cache(**{**SINGLE, **arguments})


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("pos_encoding_mode", {"pos_encoding_mode": "ALIBI"}),
        ("kv_layout", {"kv_layout": ""}),
        ("q", {"q": SINGLE["q"]}),
        ("k", {"k": SINGLE["k"][:, :, :8]}),
        ("logits_soft_cap", {"logits_soft_cap": math.inf}),
    ],
)
def test_a_decode_that_does_not_fit_is_refused_by_name(named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        single_decode_with_kv_cache(**{**SINGLE, "q": SINGLE["q"][0], **arguments})
