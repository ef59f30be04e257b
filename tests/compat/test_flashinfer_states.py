"""FlashInfer's merging of attention states, and appending to paged caches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.compat.flashinfer import (
    append_paged_kv_cache,
    get_batch_indices_positions,
    get_seq_lens,
    merge_state,
    merge_state_in_place,
    merge_states,
    single_prefill_with_kv_cache,
)
from ridgeline.errors import InputError
from tests.compat.tensors import draw, int32, near


def merged(v: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, in float64 with powers of 2, over [tokens, states, heads, dim]."""
    weights = 2.0 ** s.double()
    total = weights.sum(1)
    out = (weights[..., None] * v.double()).sum(1) / total[..., None]
    return torch.where(total[..., None] > 0, out, 0.0), total.log2()


@given(st.integers(0, 4), st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 16, 59]))
def test_states_are_weighted_by_powers_of_2(tokens, states, heads, dim):
    v, s = draw(0, tokens, states, heads, dim), 4 * draw(1, tokens, states, heads)
    s[:, 1:][draw(2, *s[:, 1:].shape) > 1] = -math.inf
    out, lse = merge_states(v, s)
    want, want_lse = merged(v, s)
    near(out, want)
    near(lse, want_lse)


def test_two_states_are_merged_alike_by_all_three_functions():
    v, s = draw(0, 5, 2, 4, 16), draw(1, 5, 2, 4)
    out, lse = merge_states(v, s)
    pair = merge_state(v[:, 0], s[:, 0], v[:, 1], s[:, 1])
    assert torch.equal(pair[0], out)
    assert torch.equal(pair[1], lse)
    in_place, s_in_place = v[:, 0].clone(), s[:, 0].clone()
    merge_state_in_place(in_place, s_in_place, v[:, 1], s[:, 1])
    assert torch.equal(in_place, out)
    assert torch.equal(s_in_place, lse)


def test_a_mask_leaves_tokens_as_they_are():
    v, s = draw(0, 5, 2, 4, 16), draw(1, 5, 2, 4)
    out, lse = merge_states(v, s)
    in_place, s_in_place = v[:, 0].clone(), s[:, 0].clone()
    mask = torch.tensor([True, False, True, False, False])
    merge_state_in_place(in_place, s_in_place, v[:, 1], s[:, 1], mask)
    assert torch.equal(in_place, torch.where(mask[:, None, None], out, v[:, 0]))
    assert torch.equal(s_in_place, torch.where(mask[:, None], lse, s[:, 0]))


def test_parts_of_the_keys_merge_to_all_of_them():
    q, k, v = draw(0, 6, 4, 32), draw(1, 90, 2, 32), draw(2, 90, 2, 32)
    parts = [
        single_prefill_with_kv_cache(q, k[a:b], v[a:b], return_lse=True)
        for a, b in ((0, 50), (50, 50), (50, 90))
    ]
    out, lse = merge_states(torch.stack([o for o, _ in parts], 1), torch.stack([s for _, s in parts], 1))
    whole, whole_lse = single_prefill_with_kv_cache(q, k, v, return_lse=True)
    near(out, whole)
    near(lse, whole_lse)


def test_states_without_keys_merge_to_none():
    out, lse = merge_states(draw(0, 2, 3, 4, 8), torch.full((2, 3, 4), -math.inf))
    assert torch.equal(out, torch.zeros(2, 4, 8))
    assert (lse == -math.inf).all()


def test_outputs_of_bfloat16_are_merged_in_float32_and_rounded_once():
    v, s = draw(0, 3, 4, 2, 8).bfloat16(), draw(1, 3, 4, 2)
    out, lse = merge_states(v, s)
    assert torch.equal(out, merge_states(v.float(), s)[0].bfloat16())
    assert lse.dtype == torch.float32


@pytest.mark.parametrize(
    ("named", "call"),
    [
        ("v", lambda: merge_states(draw(0, 3, 4, 8), draw(1, 3, 4))),
        ("s", lambda: merge_states(draw(0, 3, 4, 2, 8), draw(1, 3, 4))),
        ("s", lambda: merge_states(draw(0, 3, 4, 2, 8), draw(1, 3, 4, 2).half())),
        ("v_a", lambda: merge_state(draw(0, 3, 8), draw(1, 3), draw(0, 3, 8), draw(1, 3))),
        ("s_a", lambda: merge_state(draw(0, 3, 4, 8), draw(1, 4, 3), draw(0, 3, 4, 8), draw(1, 3, 4))),
        ("v_b", lambda: merge_state(draw(0, 3, 4, 8), draw(1, 3, 4), draw(0, 2, 4, 8), draw(1, 2, 4))),
        ("s_other", lambda: merge_state_in_place(*(draw(0, 3, 4, 8), draw(1, 3, 4)), draw(0, 3, 4, 8), None)),
        (
            "mask",
            lambda: merge_state_in_place(
                *(draw(0, 3, 4, 8), draw(1, 3, 4), draw(0, 3, 4, 8), draw(1, 3, 4)), torch.ones(2)
            ),
        ),
    ],
)
def test_states_that_do_not_fit_are_refused_by_name(named, call):
    with pytest.raises(InputError, match=rf"^{named} "):
        call()


# -- appending -------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), min_size=1, max_size=4),
    st.sampled_from([1, 5, 8, 16]),
    st.sampled_from(["NHD", "HND"]),
    st.booleans(),
)
def test_new_tokens_end_their_sequences(lengths, tokens, layout, packed):
    new = [n for _, n in lengths]
    totals = torch.tensor([past + n for past, n in lengths])
    counts = -(-totals // tokens)
    indptr = int32(0, *counts.cumsum(0).tolist())
    indices = torch.randperm(int(indptr[-1]) + 1, generator=torch.Generator().manual_seed(1)).int()
    last = torch.where(counts > 0, totals - (counts - 1) * tokens, 0).int()
    assert torch.equal(get_seq_lens(indptr, last, tokens), totals)
    starts = int32(0, *torch.tensor(new).cumsum(0).tolist())
    at = get_batch_indices_positions(starts, totals.int(), sum(new))
    assert [x.dtype for x in at] == [torch.int32, torch.int32]

    k, v = draw(0, sum(new), 2, 8), draw(1, sum(new), 2, 8)
    page = (2, tokens) if layout == "HND" else (tokens, 2)
    cache = draw(2, len(indices), 2, *page, 8)
    want = cache.clone()
    append_paged_kv_cache(
        k, v, *at, cache if packed else cache.unbind(1), indices, indptr, last, kv_layout=layout
    )
    row = 0
    for i, (past, n) in enumerate(lengths):
        for position in range(past, past + n):
            where = want[indices[indptr[i] + position // tokens]]
            slot = where[:, :, position % tokens] if layout == "HND" else where[:, position % tokens]
            slot[0], slot[1] = k[row], v[row]
            row += 1
    assert torch.equal(cache, want)


APPEND = {
    **{"append_key": draw(0, 3, 2, 8), "append_value": draw(1, 3, 2, 8)},
    **{
        "batch_indices": int32(0, 1, 1),
        "positions": int32(4, 0, 1),
        "paged_kv_cache": draw(2, 3, 2, 4, 2, 8),
    },
    **{"kv_indices": int32(2, 0, 1), "kv_indptr": int32(0, 2, 3), "kv_last_page_len": int32(1, 2)},
}


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("append_key", {"append_key": draw(0, 3, 1, 8)}),
        ("append_value", {"append_value": draw(0, 2, 2, 8)}),
        ("append_key", {"append_key": draw(0, 3, 2, 8).bfloat16()}),
        ("batch_indices", {"batch_indices": int32(0, 1, 2)}),
        ("batch_indices", {"batch_indices": int32(0, 1, -1)}),
        ("batch_indices", {"batch_indices": int32(0, 1)}),
        ("positions", {"positions": int32(5, 0, 1)}),
        ("positions", {"positions": int32(4, 0, -1)}),
        ("kv_indices", {"kv_indices": int32(2, 0, 3)}),
        ("kv_indptr", {"kv_indptr": int32(0, 2, 4)}),
        ("kv_last_page_len", {"kv_last_page_len": int32(1, 5)}),
        ("paged_kv_cache", {"paged_kv_cache": draw(2, 3, 4, 2, 8)}),
        ("kv_layout", {"kv_layout": "hnd"}),
    ],
)
def test_an_append_that_does_not_fit_is_refused_by_name_and_writes_nothing(named, arguments):
    before = APPEND["paged_kv_cache"].clone()
    with pytest.raises(InputError, match=rf"^{named} "):
        append_paged_kv_cache(**{**APPEND, **arguments})
    assert torch.equal(APPEND["paged_kv_cache"], before)


def test_new_tokens_that_do_not_add_up_are_refused_by_name():
    for named, starts, lengths, count in (
        ("append_indptr", int32(0, 2), int32(5), 3),
        ("append_indptr", int32(0, 3, 2), int32(5, 5), 2),
        ("seq_lens", int32(0, 2), int32(5, 5), 2),
        ("seq_lens", int32(0, 2), int32(1), 2),
    ):
        with pytest.raises(InputError, match=rf"^{named} "):
            get_batch_indices_positions(starts, lengths, count)
