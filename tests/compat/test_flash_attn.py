"""flash_attn_func and flash_attn_varlen_func against float64, and against what FlashAttention documents."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.compat import flash_attn
from ridgeline.compat.flash_attn import flash_attn_func, flash_attn_varlen_func
from ridgeline.errors import InputError
from tests.compat.tensors import DIMS, LENGTHS, attention_each, draw, int32, near

few = settings(max_examples=100, deadline=None)
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])

options = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "window_size": st.tuples(st.integers(-1, 9), st.integers(-1, 9)),
        "softcap": st.sampled_from([0.0, 0.0, 3.0]),
        "softmax_scale": st.sampled_from([None, 0.3]),
        "alibi_slopes": st.sampled_from([None, "heads", "each"]),
    }
)


def draw_batch(batch, rows, keys, dim, dtype=torch.float32, heads=4, kv_heads=2):
    k, v = (draw(seed, batch, keys, kv_heads, dim, dtype=dtype) for seed in (1, 2))
    return draw(0, batch, rows, heads, dim, dtype=dtype), k, v


def slopes_of(kind: str | None, batch: int) -> torch.Tensor | None:
    if kind is None:
        return None
    return SLOPES if kind == "heads" else SLOPES * torch.arange(1.0, batch + 1)[:, None]


def wanted(q, k, v, *, softmax_scale=None, window_size=(-1, -1), **options):
    return attention_each(list(q), list(k), list(v), scale=softmax_scale, window=window_size, **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rows", "keys"), LENGTHS)
def test_a_dense_batch_is_that_of_float64(rows, keys, causal):
    q, k, v = draw_batch(2, rows, keys, 64)
    out, lse, probabilities = flash_attn_func(q, k, v, causal=causal, return_attn_probs=True)
    outs, lses = wanted(q, k, v, causal=causal)
    near(out, torch.stack(outs))
    near(lse, torch.stack(lses))
    assert probabilities.shape == (0,)
    assert probabilities.dtype == q.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", DIMS)
def test_every_head_size_will_do(dim, dtype):
    q, k, v = draw_batch(1, 11, 23, dim, dtype)
    out = flash_attn_func(q, k, v, causal=True)
    assert out.dtype == dtype
    near(out, torch.stack(wanted(q, k, v, causal=True)[0]))


@few
@given(options, st.integers(1, 3), st.integers(0, 12), st.integers(0, 20))
def test_masks_and_scores_are_those_of_float64(options, batch, rows, keys):
    q, k, v = draw_batch(batch, rows, keys, 16)
    options["alibi_slopes"] = slopes_of(options["alibi_slopes"], batch)
    out, lse, _ = flash_attn_func(q, k, v, **options, return_attn_probs=True)
    outs, lses = wanted(q, k, v, **options)
    near(out, torch.stack(outs))
    near(lse, torch.stack(lses))


def seen(rows: int, keys: int, **options) -> list[list[int]]:
    """Which keys each row weighs, read off values that are the rows of an identity."""
    q, k = torch.zeros(1, rows, 1, 16), torch.zeros(1, keys, 1, 16)
    v = torch.eye(keys, 16)[None, :, None]
    return (flash_attn_func(q, k, v, **options)[0, :, 0, :keys] > 0).int().tolist()


def test_causal_masks_are_aligned_to_the_last_key():
    assert seen(2, 5, causal=True) == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert seen(5, 2, causal=True) == [[0, 0], [0, 0], [0, 0], [1, 0], [1, 1]]


def test_windows_include_both_ends():
    assert seen(2, 5, window_size=(1, 0)) == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert seen(2, 5, window_size=(0, 1)) == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    assert seen(2, 5, window_size=(2, 2), causal=True) == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_a_row_without_keys_gives_0_and_minus_infinity():
    q, k, v = draw_batch(1, 3, 2, 16)
    out, lse, _ = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert torch.equal(out[0, 0], torch.zeros(4, 16))
    assert (lse[0, :, 0] == -math.inf).all()
    assert lse[0, :, 1:].isfinite().all()


def test_slopes_of_each_sequence_change_no_bit_of_the_others():
    q, k, v = draw_batch(3, 7, 9, 32)
    each = torch.stack((SLOPES, 2 * SLOPES, SLOPES))
    out, lse, _ = flash_attn_func(q, k, v, alibi_slopes=each, return_attn_probs=True)
    alike, alike_lse, _ = flash_attn_func(q, k, v, alibi_slopes=SLOPES, return_attn_probs=True)
    for same in (0, 2):
        assert torch.equal(out[same], alike[same])
        assert torch.equal(lse[same], alike_lse[same])
    assert not torch.equal(out[1], alike[1])


# -- packed and paged ------------------------------------------------------------------------------


def starts_of(lengths: list[int]) -> torch.Tensor:
    return int32(0, *torch.tensor(lengths).cumsum(0).tolist())


def into_pages(sequences: list[torch.Tensor], tokens: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pages, shuffled and full of NaN where no token lies, and the block table of ``sequences``."""
    pages = torch.full((len(sequences) * columns + 1, tokens, *sequences[0].shape[1:]), math.nan)
    order = torch.randperm(len(pages), generator=torch.Generator().manual_seed(3))
    table = order[: len(sequences) * columns].view(len(sequences), columns).int()
    for row, x in zip(table, sequences):
        for j, token in enumerate(x):
            pages[row[j // tokens], j % tokens] = token
    return pages, table


@few
@given(
    options,
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 17)), min_size=1, max_size=4),
    st.sampled_from([None, 1, 5, 8, 16]),
)
def test_packed_and_paged_sequences_are_those_of_float64(options, lengths, tokens):
    rows, keys = [n for n, _ in lengths], [n for _, n in lengths]
    q, k, v = draw(0, sum(rows), 4, 16), draw(1, sum(keys), 2, 16), draw(2, sum(keys), 2, 16)
    options["alibi_slopes"] = slopes_of(options["alibi_slopes"], len(lengths))
    outs, lses = wanted(q.split(rows), k.split(keys), v.split(keys), **options)
    table = None
    if tokens is not None:
        columns = max(-(-n // tokens) for n in keys) + 1
        (k, table), (v, _) = (into_pages(list(x.split(keys)), tokens, columns) for x in (k, v))
    longest = (max(rows), max(keys))
    arguments = (q, k, v, starts_of(rows), starts_of(keys), *longest)
    out, lse, _ = flash_attn_varlen_func(*arguments, **options, block_table=table, return_attn_probs=True)
    near(out, torch.cat(outs))
    near(lse, torch.cat(lses, 1))
    assert torch.equal(flash_attn_varlen_func(*arguments, **options, block_table=table), out)


# -- names and refusals ----------------------------------------------------------------------------


def test_arguments_are_in_flash_attentions_order():
    shared = [
        *("dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes", "deterministic"),
        "return_attn_probs",
    ]
    packed = ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
    assert list(inspect.signature(flash_attn_func).parameters) == ["q", "k", "v", *shared]
    assert list(inspect.signature(flash_attn_varlen_func).parameters) == [
        *("q", "k", "v", *packed, *shared),
        "block_table",
    ]
    assert flash_attn.flash_attn_interface.flash_attn_func is flash_attn_func


DENSE = dict(zip("qkv", draw_batch(2, 3, 4, 16)))


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("dropout_p", {"dropout_p": 0.1}),
        ("softmax_scale", {"softmax_scale": math.nan}),
        ("window_size", {"window_size": (1.5, 0)}),
        ("window_size", {"window_size": 3}),
        ("softcap", {"softcap": -1.0}),
        ("alibi_slopes", {"alibi_slopes": SLOPES[:3]}),
        ("alibi_slopes", {"alibi_slopes": SLOPES.expand(3, 4)}),
        ("alibi_slopes", {"alibi_slopes": SLOPES.expand(2, 4).double()}),
        ("q", {"q": DENSE["q"].half()}),
        ("q", {"q": DENSE["q"][0]}),
        ("q", {"q": DENSE["q"].clone().requires_grad_()}),
        ("k", {"k": DENSE["k"].bfloat16()}),
        ("k", {"k": DENSE["k"][:1]}),
        ("k", {"k": DENSE["k"][:1], "alibi_slopes": SLOPES.repeat(2, 1)}),
        ("v", {"v": DENSE["v"][:1], "alibi_slopes": SLOPES.repeat(2, 1)}),
        ("v", {"v": None}),
    ],
)
def test_a_dense_batch_that_does_not_fit_is_refused_by_name(named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        flash_attn_func(**{**DENSE, **arguments})


PACKED = {
    **{"q": draw(0, 5, 4, 16), "k": draw(1, 7, 2, 16), "v": draw(2, 7, 2, 16)},
    **{"cu_seqlens_q": int32(0, 2, 5), "cu_seqlens_k": int32(0, 3, 7), "max_seqlen_q": 3, "max_seqlen_k": 4},
}
PAGED = {"k": draw(1, 4, 2, 2, 16), "v": draw(2, 4, 2, 2, 16), "block_table": int32(0, 1, 2, 3).view(2, 2)}


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("dropout_p", {"dropout_p": 0.5}),
        ("max_seqlen_q", {"max_seqlen_q": 2}),
        ("max_seqlen_k", {"max_seqlen_k": 3}),
        ("cu_seqlens_q", {"cu_seqlens_q": int32(0, 2, 6), "max_seqlen_q": 9}),
        ("cu_seqlens_q", {"cu_seqlens_q": int32(1, 2, 5)}),
        ("cu_seqlens_q", {"cu_seqlens_q": int32(0, 6, 5)}),
        ("cu_seqlens_q", {"cu_seqlens_q": int32()}),
        ("cu_seqlens_q", {"cu_seqlens_q": [0, 2, 5]}),
        ("cu_seqlens_q", {"cu_seqlens_q": int32(0, 2, 4), "alibi_slopes": SLOPES.repeat(2, 1)}),
        ("cu_seqlens_k", {"cu_seqlens_k": int32(0, 3, 6)}),
        ("cu_seqlens_k", {"cu_seqlens_k": int32(0, 3, 6), "alibi_slopes": SLOPES.repeat(2, 1)}),
        ("cu_seqlens_k", {"cu_seqlens_k": int32(0, 4, 6, 7)}),
        ("cu_seqlens_k", {"cu_seqlens_k": int32(0, 4, 6, 7), "alibi_slopes": SLOPES.repeat(2, 1)}),
        ("alibi_slopes", {"alibi_slopes": SLOPES.repeat(3, 1)}),
        ("block_table", {**PAGED, "block_table": int32(0, 1, 2, 4).view(2, 2)}),
        ("block_table", {**PAGED, "block_table": int32(0, 1, 2, -1).view(2, 2)}),
        ("block_table", {**PAGED, "block_table": int32(0, 1).view(2, 1)}),
        ("block_table", {**PAGED, "block_table": int32(0, 1)}),
        (
            "block_table",
            {**PAGED, "block_table": int32(0, 1, 2, 4).view(2, 2), "alibi_slopes": SLOPES.repeat(2, 1)},
        ),
        ("k", {**PAGED, "k": PAGED["k"][0]}),
        ("v", {**PAGED, "v": PAGED["v"][:3]}),
        ("v", {**PAGED, "v": PAGED["v"][:3], "alibi_slopes": SLOPES.repeat(2, 1)}),
        ("k", {"k": None, "alibi_slopes": SLOPES.repeat(2, 1)}),
        ("cu_seqlens_k", {**PAGED, "cu_seqlens_k": int32(0, 3), "alibi_slopes": SLOPES.repeat(2, 1)}),
    ],
)
def test_packed_sequences_that_do_not_fit_are_refused_by_name(named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        flash_attn_varlen_func(**{**PACKED, **arguments})
