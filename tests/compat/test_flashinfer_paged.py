"""FlashInfer's wrappers over paged caches against float64: any page size, layout and form of the cache."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.compat import flashinfer
from ridgeline.compat.flashinfer import (
    BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper,
)
from ridgeline.errors import InputError
from tests.compat.flashinfer_twin import hnd, options, wanted
from tests.compat.tensors import draw, int32, near

few = settings(max_examples=100, deadline=None)


def into_pages(sequences, tokens: int):
    """(pages, indptr, indices, last_page_len): pages are shuffled, and NaN where no token lies."""
    counts = [-(-len(x) // tokens) for x in sequences]
    order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(3)).int()
    pages = torch.full((len(order), tokens, *sequences[0].shape[1:]), math.nan)
    indptr = int32(0, *torch.tensor(counts).cumsum(0).tolist())
    for begin, x in zip(indptr.tolist(), sequences):
        for j, token in enumerate(x):
            pages[order[begin + j // tokens], j % tokens] = token
    last = [len(x) - (count - 1) * tokens if count else 0 for x, count in zip(sequences, counts)]
    return pages, indptr, order[: indptr[-1]], int32(*last)


def stored(k_pages, v_pages, layout: str, packed: bool):
    """The pages in the form that a wrapper is given."""
    pages = [hnd(x) if layout == "HND" else x for x in (k_pages, v_pages)]
    return torch.stack(pages, 1) if packed else tuple(pages)


forms = st.tuples(st.sampled_from(["NHD", "HND"]), st.booleans())


@few
@given(options, forms, st.sampled_from([1, 5, 8, 16]), st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_a_batch_of_decodes_is_that_of_float64(options, form, tokens, lengths):
    layout, packed = form
    q = draw(0, len(lengths), 4, 16)
    k, v = (draw(i, sum(lengths), 2, 16).split(lengths) for i in (1, 2))
    k_pages, *pages = into_pages(k, tokens)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(torch.empty(16), layout)
    wrapper.plan(*pages, 4, 2, 16, tokens, data_type="float32", **options)
    out, lse = wrapper.run(q, stored(k_pages, into_pages(v, tokens)[0], layout, packed), return_lse=True)
    want, want_lse = wanted(q.split(1), k, v, **options)
    near(out, want)
    near(lse, want_lse)


@few
@given(
    options,
    st.booleans(),
    forms,
    st.sampled_from([1, 5, 8, 16]),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 20)), min_size=1, max_size=4),
)
def test_a_batch_of_prefills_is_that_of_float64(options, causal, form, tokens, lengths):
    layout, packed = form
    rows, keys = [n for n, _ in lengths], [n for _, n in lengths]
    q = draw(0, sum(rows), 4, 16)
    k, v = (draw(i, sum(keys), 2, 16).split(keys) for i in (1, 2))
    k_pages, *pages = into_pages(k, tokens)
    wrapper = BatchPrefillWithPagedKVCacheWrapper(None, layout)
    starts = int32(0, *torch.tensor(rows).cumsum(0).tolist())
    wrapper.plan(starts, *pages, 4, 2, 16, tokens, causal=causal, **options)
    cache = stored(k_pages, into_pages(v, tokens)[0], layout, packed)
    out, lse = wrapper.run_return_lse(q, cache)
    want, want_lse = wanted(q.split(rows), k, v, causal=causal, **options)
    near(out, want)
    near(lse, want_lse)
    assert torch.equal(wrapper.run(q, cache), out)


def small_batch(wrapper_class=BatchDecodeWithPagedKVCacheWrapper, **options):
    """A wrapper that is planned for 2 sequences of 7 and 3 keys, q, the cache, and the keys and values."""
    k, v = (draw(i, 10, 2, 16).split([7, 3]) for i in (1, 2))
    k_pages, *pages = into_pages(k, 4)
    wrapper = wrapper_class()
    wrapper.plan(*pages, 4, 2, 16, 4, **options)
    return wrapper, draw(0, 2, 4, 16), (k_pages, into_pages(v, 4)[0]), (k, v)


def test_a_plan_serves_every_layer():
    wrapper, q, cache, (k, v) = small_batch()
    for layer in range(3):
        queries, pages = q + layer, tuple(x * (layer + 1) for x in cache)
        scaled = [[x * (layer + 1) for x in each] for each in (k, v)]
        near(wrapper.run(queries, pages), wanted(queries.split(1), *scaled)[0])


def test_several_queries_of_a_sequence_see_one_another_causally():
    wrapper, _, cache, (k, v) = small_batch(q_len_per_req=3)
    q = draw(5, 6, 4, 16)
    near(wrapper.run(q, cache), wanted(q.split(3), k, v, causal=True)[0])


def test_a_learned_sink_enlarges_the_denominator_and_the_lse():
    wrapper, q, cache, (k, v) = small_batch()
    sinks = draw(6, 4)
    out, lse = wrapper.run(q, cache, sinks=sinks, return_lse=True)
    want, want_lse = wanted(q.split(1), k, v, sink_logits=sinks)
    near(out, want)
    near(lse, want_lse)


def test_a_run_may_change_the_window_scale_its_operands_and_give_its_results_a_place():
    wrapper, q, cache, (k, v) = small_batch(window_left=5)
    out, lse = torch.empty(2, 4, 16), torch.empty(2, 4)
    results = wrapper.run(
        q, cache, window_left=1, q_scale=2.0, k_scale=0.25, v_scale=3.0, out=out, lse=lse, return_lse=True
    )
    assert results[0] is out
    assert results[1] is lse
    want, want_lse = wanted(q.split(1), k, v, window_left=1, sm_scale=0.5 / 4)
    near(out, 3 * want)
    near(lse, want_lse)


def test_a_plan_may_ask_for_another_dtype_of_the_result():
    wrapper, q, cache, _ = small_batch(o_data_type="bfloat16")
    plain, *_ = small_batch()
    assert torch.equal(wrapper.run(q, cache), plain.run(q, cache).bfloat16())


# -- refusals --------------------------------------------------------------------------------------

PAGES = {"indptr": int32(0, 2, 3), "indices": int32(1, 0, 2), "last_page_len": int32(3, 4)}
SIZES = {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 16, "page_size": 4}


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("pos_encoding_mode", {"pos_encoding_mode": "ROPE_LLAMA"}),
        ("q_data_type", {"q_data_type": "float16"}),
        ("q_data_type", {"data_type": "half of it"}),
        ("kv_data_type", {"kv_data_type": torch.float16}),
        ("seq_lens", {"seq_lens": int32(7, 4)}),
        ("q_len_per_req", {"q_len_per_req": 0}),
        ("indptr", {"indptr": int32(0, 2, 4)}),
        ("indptr", {"indptr": int32(1, 2, 3)}),
        ("indptr", {"indptr": int32(0, 3, 2)}),
        ("last_page_len", {"last_page_len": int32(3, 5)}),
        ("last_page_len", {"last_page_len": int32(0, 4)}),
        ("last_page_len", {"last_page_len": int32(3)}),
        ("last_page_len", {"indptr": int32(0, 3, 3)}),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_name(named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        BatchDecodeWithPagedKVCacheWrapper().plan(**{**PAGES, **SIZES, **arguments})


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("qo_indptr", {"qo_indptr": int32(0, 2)}),
        ("qo_indptr", {"qo_indptr": int32(0, 2, 1)}),
        ("paged_kv_indptr", {"paged_kv_indptr": int32(0, 2, 4)}),
        ("paged_kv_last_page_len", {"paged_kv_last_page_len": int32(0, 5)}),
        ("custom_mask", {"custom_mask": torch.ones(4)}),
        ("prefix_len_ptr", {"prefix_len_ptr": int32(1)}),
    ],
)
def test_a_prefill_plan_that_does_not_fit_is_refused_by_name(named, arguments):
    call = {"head_dim_qk" if n == "head_dim" else n: size for n, size in SIZES.items()}
    call |= {f"paged_kv_{name}": each for name, each in PAGES.items()} | {"qo_indptr": int32(0, 1, 4)}
    with pytest.raises(InputError, match=rf"^{named} "):
        BatchPrefillWithPagedKVCacheWrapper().plan(**{**call, **arguments})


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("q", {"q": draw(0, 3, 4, 16)}),
        ("q", {"q": draw(0, 2, 2, 16)}),
        ("q", {"q": draw(0, 2, 4, 16).bfloat16()}),
        ("paged_kv_cache", {"paged_kv_cache": draw(0, 6, 3, 4, 2, 16)}),
        ("paged_kv_cache", {"paged_kv_cache": draw(0, 6, 2, 4, 1, 16)}),
        ("paged_kv_cache", {"paged_kv_cache": draw(0, 6, 2, 4, 2, 16).bfloat16()}),
        ("paged_kv_cache", {"paged_kv_cache": (draw(0, 6, 4, 2, 16), draw(0, 5, 4, 2, 16))}),
        ("paged_kv_cache", {"paged_kv_cache": None}),
        ("kv_indices", {"paged_kv_cache": draw(0, 2, 2, 4, 2, 16)}),
        ("sinks", {"sinks": draw(0, 3)}),
        ("window_left", {"window_left": -5}),
        ("kv_cache_sf", {"kv_cache_sf": draw(0, 3)}),
        ("out", {"out": torch.empty(2, 4, 8)}),
    ],
)
def test_a_run_that_differs_from_its_plan_is_refused_by_name(named, arguments):
    wrapper, q, cache, _ = small_batch(q_data_type=torch.float32)
    with pytest.raises(InputError, match=rf"^{named} "):
        wrapper.run(**{"q": q, "paged_kv_cache": cache, **arguments})


def test_wrappers_without_a_plan_and_for_graphs_are_refused():
    with pytest.raises(InputError, match=r"^run\(\) was called before plan\(\)"):
        BatchDecodeWithPagedKVCacheWrapper().run(draw(0, 2, 4, 16), draw(0, 6, 2, 4, 2, 16))
    for name, value in (("use_cuda_graph", True), ("jit_args", ["name"]), ("qo_indptr_buf", int32(0))):
        with pytest.raises(InputError, match=rf"^{name} "):
            BatchPrefillWithPagedKVCacheWrapper(None, "NHD", **{name: value})
    with pytest.raises(InputError, match=r"^kv_layout "):
        flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper(None, "DHN")
