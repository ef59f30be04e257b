"""Attention over users' own layouts: against float64, and to the last bit against itself."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ridgeline import kernels
from ridgeline.kernels import attention, attention_paged, attention_varlen, merge_states
from tests.kernels import attention_twin as twin

few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = [torch.float32, torch.bfloat16]
#: Pairs of query and key lengths, and head sizes, that FlashAttention's tests take.
LENGTHS = [(1, 239), (3, 799), (113, 203), (512, 256), (1023, 1024), (1024, 1023)]
DIMS = [32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw_heads(seed, rows, keys, heads, kv_heads, dim, dtype=torch.float32):
    q = draw(seed, rows, heads, dim, dtype=dtype)
    return (q, *(draw(seed + i, keys, kv_heads, dim, dtype=dtype) for i in (1, 2)))


def assert_near(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Within ``tolerance`` of the largest element."""
    assert got.shape == want.shape
    if want.numel():
        torch.testing.assert_close(
            got.double(), want, rtol=0, atol=tolerance * want.abs().max().item() + 1e-30
        )


def pytorch_error(q, k, v, want, **mask) -> float:
    """The largest error of PyTorch's own bf16 attention."""
    seen = twin.visible(len(q), len(k), **mask)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    got = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1)
    return (got.double() - want).abs()[seen.any(1)].max().item()


masks = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "window": st.tuples(st.integers(-1, 40), st.integers(-1, 40)),
        "sinks": st.sampled_from([0, 0, 1, 4, 150]),
    }
)


@pytest.mark.parametrize(("rows", "keys"), LENGTHS)
@pytest.mark.parametrize("causal", [False, True])
def test_every_pair_of_lengths_is_within_1e_5_of_float64(isa, rows, keys, causal):
    q, k, v = draw_heads(0, rows, keys, 2, 1, 64)
    out, lse = attention(q[None], k[None], v[None], causal=causal, return_lse=True)
    want, want_lse = twin.attention(q, k, v, causal=causal)
    assert_near(out[0], want, 1e-5)
    torch.testing.assert_close(lse[0].double(), want_lse, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("causal", [False, True])
def test_bf16_errs_no_more_than_twice_pytorch(isa, dim, causal):
    q, k, v = draw_heads(dim, 113, 203, 4, 2, dim, torch.bfloat16)
    want, _ = twin.attention(q, k, v, causal=causal)
    error = (attention(q[None], k[None], v[None], causal=causal)[0].double() - want).abs().max().item()
    assert error <= 2 * pytorch_error(q, k, v, want, causal=causal)


@few
@given(
    lengths=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 300)), min_size=1, max_size=4),
    dim=st.integers(1, 256),
    value_dim=st.integers(1, 256),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 5),
    mask=masks,
    seed=st.integers(0, 1000),
)
def test_packed_sequences_of_any_shape_and_mask(isa, lengths, dim, value_dim, kv_heads, group, mask, seed):
    rows, keys = [n for n, _ in lengths], [m for _, m in lengths]
    q = draw(seed, sum(rows), kv_heads * group, dim)
    k, v = draw(seed + 1, sum(keys), kv_heads, dim), draw(seed + 2, sum(keys), kv_heads, value_dim)
    starts = [torch.tensor([0, *n]).cumsum(0) for n in (rows, keys)]
    out, lse = attention_varlen(q, k, v, *starts, return_lse=True, **mask)
    parts = zip(q.split(rows), k.split(keys), v.split(keys))
    wants = [twin.attention(*part, **mask) for part in parts]
    assert_near(out, torch.cat([o for o, _ in wants]), 1e-5)
    torch.testing.assert_close(lse.double(), torch.cat([x for _, x in wants], 1), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(
    rows=st.integers(1, 150),
    past=st.integers(-20, 1500),
    softcap=st.sampled_from([0.0, 2.0, 30.0]),
    scale=st.sampled_from([None, 1.0, -0.3, 0.0]),
    alibi=st.booleans(),
    reach=st.none() | st.integers(0, 200),
    sink=st.booleans(),
    mask=masks,
    seed=st.integers(0, 1000),
)
def test_scores_are_scaled_capped_and_biased_before_the_mask(
    isa, dtype, rows, past, softcap, scale, alibi, reach, sink, mask, seed
):
    q, k, v = draw_heads(seed, rows, max(0, rows + past), 4, 2, 32, dtype)
    options = {"softcap": softcap, "scale": scale, **mask}
    options["alibi_slopes"] = torch.tensor([0.5, 0.25, 0.01, 0.0]) if alibi else None
    options["sink_logits"] = draw(seed + 3, 4) if sink else None
    options["distance_bias"] = None if reach is None else draw(seed + 4, 4, 2 * reach + 1)
    out, lse = attention(q[None], k[None], v[None], return_lse=True, **options)
    want, want_lse = twin.attention(q, k, v, **options)
    assert_near(out[0], want, 1e-5 if dtype == torch.float32 else 1e-2)
    torch.testing.assert_close(lse[0].double(), want_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", ["naive", "flash", "split_kv"])
def test_a_bias_by_distance_is_that_of_every_schedule(isa, schedule):
    q, k, v = draw_heads(6, 40, 1500, 4, 2, 16)
    bias = draw(7, 4, 2 * 90 + 1)
    out = attention(q[None], k[None], v[None], distance_bias=bias, schedule=schedule)
    assert_near(out[0], twin.attention(q, k, v, distance_bias=bias)[0], 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("schedule", ["naive", "flash", "split_kv"])
def test_schedules_agree(isa, dtype, schedule):
    q, k, v = draw_heads(5, 70, 3000, 4, 2, 48, dtype)
    mask = {"causal": True, "window": (2500, -1), "sinks": 4}
    want, _ = twin.attention(q, k, v, **mask)
    got = attention(q[None], k[None], v[None], schedule=schedule, **mask)[0]
    assert_near(got, want, 1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [{"causal": True}, {"window": (700, 30), "sinks": 3}])
def test_sharing_the_keys_among_threads_changes_no_bit(isa, dtype, mask):
    q, k, v = draw_heads(6, 40, 4500, 3, 1, 64, dtype)
    one = attention(q[None], k[None], v[None], schedule="flash", **mask)
    for threads in (1, 2, 5):
        kernels.set_threads(threads)
        for schedule in ("auto", "flash", "split_kv"):
            assert torch.equal(attention(q[None], k[None], v[None], schedule=schedule, **mask), one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("schedule", ["naive", "flash"])
def test_a_row_gets_the_same_bits_in_any_part_of_a_prompt(isa, dtype, schedule):
    """Rows [begin, end) of a prompt see the keys before them and their own: bottom-right, a prefix."""
    q, k, v = draw_heads(7, 300, 300, 4, 2, 64, dtype)
    mask = {"causal": True, "window": (190, 0), "sinks": 2, "schedule": schedule}
    whole = attention(q[None], k[None], v[None], **mask)[0]
    for size in (1, 7, 64):
        for begin in range(0, 300, 37 if size == 1 else size):
            end = min(begin + size, 300)
            part = attention(q[None, begin:end], k[None, :end], v[None, :end], **mask)[0]
            assert torch.equal(part, whole[begin:end])


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_change_no_bit(isa, dtype):
    """Dense, transposed, packed and paged, alone and in a batch."""
    q, k, v = (
        draw(8 + i, 3, n, h, 64, dtype=dtype) for i, (n, h) in enumerate([(40, 4), (240, 2), (240, 2)])
    )
    dense = attention(q, k, v, causal=True)
    for b in range(3):
        assert torch.equal(attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], causal=True)[0], dense[b])
    by_head = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert torch.equal(attention(*by_head, causal=True), dense)
    starts = torch.arange(4) * 40, torch.arange(4) * 240
    packed = attention_varlen(*(x.flatten(0, 1) for x in (q, k, v)), *starts, causal=True)
    assert torch.equal(packed.view_as(dense), dense)
    for tokens in (1, 5, 8, 16, 60):
        pages = 240 // tokens
        order = torch.randperm(3 * pages, generator=torch.Generator().manual_seed(tokens))
        stored = [
            x.view(3 * pages, tokens, 2, 64)[order.argsort()] for x in (k.flatten(0, 1), v.flatten(0, 1))
        ]
        tables, lengths = order.view(3, pages), torch.tensor([240] * 3)
        paged = attention_paged(q.flatten(0, 1), *stored, starts[0], lengths, tables, causal=True)
        assert torch.equal(paged.view_as(dense), dense)


@few
@given(lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_padding_is_not_read(isa, lengths, seed):
    q, k, v = (draw(seed + i, len(lengths), 90, 2, 32) for i in range(3))
    for b, n in enumerate(lengths):
        k[b, n:], v[b, n:] = torch.nan, torch.inf
    out = attention(q, k, v, key_lengths=torch.tensor(lengths))
    for b, n in enumerate(lengths):
        assert_near(out[b], twin.attention(q[b], k[b, :n], v[b, :n])[0], 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["k", "v"])
def test_a_bad_key_or_value_spoils_only_rows_that_see_it(isa, dtype, value, place):
    q, k, v = draw_heads(9, 150, 150, 2, 1, 40, dtype)
    good = attention(q[None], k[None], v[None], causal=True)[0]
    {"k": k, "v": v}[place][77, 0, 5] = value
    got = attention(q[None], k[None], v[None], causal=True)[0]
    assert torch.equal(got[:77], good[:77])
    if place == "v":
        assert not got[77:, :, 5].isfinite().any()
        assert torch.equal(got[77:, :, 6:], good[77:, :, 6:])
    elif math.isnan(value):
        assert got[77:].isnan().all()


def test_a_score_of_minus_infinity_has_no_weight(isa):
    q, k, v = torch.ones(1, 1, 1, 4), torch.ones(1, 3, 1, 4), draw(10, 1, 3, 1, 4)
    k[0, 1] = -math.inf
    torch.testing.assert_close(attention(q, k, v)[0, 0, 0], (v[0, 0, 0] + v[0, 2, 0]) / 2)
    out, lse = attention(q, k[:, 1:2], v[:, 1:2], return_lse=True)
    assert bool((out == 0).all())
    assert lse.item() == -math.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_key_gives_its_value(isa, dtype):
    q, k, v = draw_heads(11, 5, 1, 3, 3, 72, dtype)
    out = attention(q[None] * 50, k[None], v[None])
    assert torch.equal(out, v[None].expand_as(out))


def test_scores_of_any_size_have_finite_weights(isa):
    q, k, v = draw_heads(12, 6, 500, 1, 1, 16)
    want, want_lse = twin.attention(q * 1e18, k * 1e18, v)
    out, lse = attention(q[None] * 1e18, k[None] * 1e18, v[None], return_lse=True)
    assert_near(out[0], want, 1e-5)
    torch.testing.assert_close(lse[0].double(), want_lse, rtol=1e-6, atol=0)


def test_subnormal_values_are_averaged(isa):
    v = torch.full((1, 9, 1, 8), 1e-40)
    out = attention(torch.ones(1, 2, 1, 8), torch.ones(1, 9, 1, 8), v)
    torch.testing.assert_close(out, torch.full((1, 2, 1, 8), 1e-40), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_gives_nothing_and_no_key_gives_zero(isa, shape):
    batch, rows, keys = shape
    q, k = torch.ones(batch, rows, 2, 8), torch.ones(batch, keys, 1, 8)
    out, lse = attention(q, k, k, return_lse=True)
    assert out.shape == q.shape
    assert lse.shape == (batch, 2, rows)
    if keys == 0:
        assert bool((out == 0).all())
        assert bool((lse == -math.inf).all())


def test_rows_before_the_first_key_are_zero(isa):
    q, k, v = draw_heads(13, 6, 4, 1, 1, 8)
    out, lse = attention(q[None], k[None], v[None], causal=True, return_lse=True)
    assert bool((out[0, :2] == 0).all())
    assert bool((lse[0, 0, :2] == -math.inf).all())
    assert lse[0, 0, 2:].isfinite().all()


@few
@given(cuts=st.lists(st.integers(0, 200), max_size=4), rows=st.integers(1, 20), seed=st.integers(0, 1000))
def test_merged_states_are_attention_over_all_keys(isa, cuts, rows, seed):
    q, k, v = draw_heads(seed, rows, 200, 4, 2, 24)
    edges = [0, *sorted(cuts), 200]
    states = [attention(q[None], k[None, a:b], v[None, a:b], return_lse=True) for a, b in pairwise(edges)]
    o = torch.stack([out[0] for out, _ in states])
    lse = torch.stack([x[0].T for _, x in states]).contiguous()
    want, want_lse = twin.attention(q, k, v)
    merged, merged_lse = merge_states(o, lse)
    assert_near(merged, want, 1e-5)
    torch.testing.assert_close(merged_lse.double(), want_lse.T, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("empty", [math.inf, -math.inf])
def test_merging_empty_states_gives_an_empty_state(isa, empty):
    o, lse = torch.full((3, 2, 8), math.nan), torch.full((3, 2), empty)
    o[1, 1], lse[1, 1] = 5.0, 2.0
    merged, merged_lse = merge_states(o, lse)
    assert bool((merged[0] == 0).all())
    assert bool((merged[1] == 5).all())
    assert merged_lse.tolist() == [-math.inf, 2.0]


def test_results_go_where_they_are_asked_to(isa):
    q, k, v = draw_heads(14, 6, 9, 2, 2, 20)
    buffer = torch.full((1, 6, 2, 64), 7.0)
    attention(q[None], k[None], v[None], out=buffer[..., 10:30])
    assert torch.equal(buffer[..., 10:30], attention(q[None], k[None], v[None]))
    assert bool((buffer[..., :10] == 7).all())
    assert bool((buffer[..., 30:] == 7).all())
    rounded = torch.empty(1, 6, 2, 20, dtype=torch.bfloat16)
    attention(q[None], k[None], v[None], out=rounded)
    assert torch.equal(rounded, buffer[..., 10:30].bfloat16())
