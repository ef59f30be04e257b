"""flash_attn_with_kvcache: new tokens rotated, written behind the old ones, and all attended to."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.compat.flash_attn import flash_attn_with_kvcache
from ridgeline.errors import InputError
from tests.compat.tensors import attention_each, draw, int32, near

few = settings(max_examples=150, deadline=None)
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
CAPACITY, DIM = 24, 16


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [rows, heads, dim] in float64, row i by angles cos[i] and sin[i] [pairs]: complex products."""
    x, pairs = x.double(), cos.shape[1]
    first = range(0, 2 * pairs, 2) if interleaved else range(pairs)
    second = range(1, 2 * pairs, 2) if interleaved else range(pairs, 2 * pairs)
    result = x.clone()
    for pair, (a, b) in enumerate(zip(first, second)):
        turned = torch.complex(x[..., a], x[..., b]) * torch.complex(cos, sin)[:, None, pair]
        result[..., a], result[..., b] = turned.real, turned.imag
    return result


def angles(rotary_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    phase = torch.outer(torch.arange(float(CAPACITY)), torch.logspace(0, -3, rotary_dim // 2))
    return phase.cos(), phase.sin()


def plain_cache(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return draw(seed, rows, CAPACITY, 2, DIM), draw(seed + 1, rows, CAPACITY, 2, DIM)


calls = st.fixed_dictionaries(
    {
        "past": st.lists(st.integers(0, 13), min_size=1, max_size=3),
        "rows": st.integers(1, 6),
        "new": st.sampled_from([None, "rows", 1, 7]),
        "rotary_dim": st.sampled_from([None, 16, 10, 2]),
        "interleaved": st.booleans(),
        "tokens": st.sampled_from([None, 1, 5, 8, 24]),
        "leftpad": st.booleans(),
        "causal": st.booleans(),
        "window_size": st.sampled_from([(-1, -1), (-1, -1), (4, 0), (3, 2), (-1, 1)]),
        "softcap": st.sampled_from([0.0, 2.0]),
        "slopes": st.sampled_from([None, "heads", "each"]),
        "num_splits": st.sampled_from([0, 1, 4]),
    }
)


@few
@given(calls)
def test_a_step_is_that_of_float64(call):
    """Past tokens, new ones and padding of every kind, in rows of a cache or in shuffled pages."""
    past, rows, batch = call["past"], call["rows"], len(call["past"])
    new = rows if call["new"] == "rows" else call["new"] or 0
    q, k, v = (draw(5 + i, batch, n, h, DIM) for i, (n, h) in enumerate(((rows, 4), (new, 2), (new, 2))))
    slopes = {None: None, "heads": SLOPES, "each": SLOPES * torch.arange(1.0, batch + 1)[:, None]}
    options = {name: call[name] for name in ("causal", "softcap")} | {"alibi_slopes": slopes[call["slopes"]]}

    k_cache, v_cache = plain_cache(0, batch + 2)
    lies_in = torch.randperm(batch + 2, generator=torch.Generator().manual_seed(1))[:batch]
    leftpad = [n // 2 for n in past] if call["leftpad"] and call["tokens"] is None else [0] * batch
    cos, sin = angles(call["rotary_dim"]) if new and call["rotary_dim"] else (None, None)
    queries, keys, values = [], [], []
    for i, (row, n) in enumerate(zip(lies_in, past)):
        query, added = q[i].double(), k[i].double()
        if cos is not None:
            ordered = call["causal"] or call["window_size"] != (-1, -1)
            at = n + torch.arange(rows) * ordered
            query = rotated(query, cos[at], sin[at], call["interleaved"])
            added = rotated(added, cos[n : n + new], sin[n : n + new], call["interleaved"])
        queries.append(query)
        keys.append(torch.cat((k_cache[row, leftpad[i] : n].double(), added)))
        values.append(torch.cat((v_cache[row, leftpad[i] : n].double(), v[i].double())))
    outs, lses = attention_each(queries, keys, values, window=call["window_size"], **options)

    where = {"cache_batch_idx": lies_in.int(), "cache_leftpad": int32(*leftpad) if any(leftpad) else None}
    ours, theirs = k_cache.clone(), v_cache.clone()
    if call["tokens"] is not None:
        pages = CAPACITY // call["tokens"]
        order = torch.randperm((batch + 2) * pages, generator=torch.Generator().manual_seed(2))
        cut = (k_cache[:, : pages * call["tokens"]], v_cache[:, : pages * call["tokens"]])
        ours, theirs = (x.reshape(-1, call["tokens"], 2, DIM)[order.argsort()] for x in cut)
        where = {"block_table": order.view(batch + 2, pages)[lies_in].int()}
    out, lse = flash_attn_with_kvcache(
        q,
        ours,
        theirs,
        k if new else None,
        v if new else None,
        cos,
        sin,
        cache_seqlens=int32(*past),
        window_size=call["window_size"],
        rotary_interleaved=call["interleaved"],
        num_splits=call["num_splits"],
        return_softmax_lse=True,
        **where,
        **options,
    )
    near(out, torch.stack(outs))
    near(lse, torch.stack(lses))
    if call["tokens"] is not None:
        ours, theirs = (x[order].view(batch + 2, -1, 2, DIM) for x in (ours, theirs))
    for i, (row, n) in enumerate(zip(lies_in, past)):
        k_cache[row, n : n + new], v_cache[row, n : n + new] = keys[i][len(keys[i]) - new :], v[i]
    near(ours, k_cache[:, : ours.shape[1]])
    assert torch.equal(theirs, v_cache[:, : theirs.shape[1]])


def test_what_the_call_does_not_append_keeps_its_bits():
    k_cache, v_cache = plain_cache(0, 2)
    before = k_cache.clone()
    new = draw(3, 2, 1, 2, DIM)
    flash_attn_with_kvcache(draw(2, 2, 1, 4, DIM), k_cache, v_cache, new, new, cache_seqlens=int32(4, 0))
    assert torch.equal(k_cache[0, 4], new[0, 0])
    assert torch.equal(k_cache[1, 0], new[1, 0])
    k_cache[0, 4], k_cache[1, 0] = before[0, 4], before[1, 0]
    assert torch.equal(k_cache, before)


def test_without_lengths_all_of_the_cache_is_seen_and_one_length_serves_all():
    (k, v), q = plain_cache(0, 2), draw(2, 2, 3, 4, DIM)
    near(flash_attn_with_kvcache(q, k, v), torch.stack(attention_each(list(q), list(k), list(v))[0]))
    assert torch.equal(
        flash_attn_with_kvcache(q, k, v, cache_seqlens=9),
        flash_attn_with_kvcache(q, k, v, cache_seqlens=int32(9, 9)),
    )


def test_steps_of_one_token_give_the_bits_of_one_step_of_all():
    q, k, v = draw(0, 1, 9, 4, DIM), draw(1, 1, 9, 2, DIM), draw(2, 1, 9, 2, DIM)
    cos, sin = angles(8)
    whole = flash_attn_with_kvcache(q, *plain_cache(3, 1), k, v, cos, sin, cache_seqlens=2, causal=True)
    k_cache, v_cache = plain_cache(3, 1)
    for i in range(9):
        at = slice(i, i + 1)
        step = flash_attn_with_kvcache(
            q[:, at], k_cache, v_cache, k[:, at], v[:, at], cos, sin, cache_seqlens=2 + i, causal=True
        )
        assert torch.equal(step, whole[:, at])


def test_bfloat16_is_within_what_its_rounding_costs():
    q, k, v = draw(0, 2, 5, 4, 64), draw(1, 2, 5, 2, 64), draw(2, 2, 5, 2, 64)
    cache = [draw(3 + i, 2, 30, 2, 64).bfloat16() for i in range(2)]
    phase = torch.outer(torch.arange(30.0), torch.logspace(0, -3, 16))
    cos, sin = phase.cos().bfloat16(), phase.sin().bfloat16()
    q, k, v = (x.bfloat16() for x in (q, k, v))
    queries, keys = [], []
    for i, past in enumerate((20, 3)):
        at = slice(past, past + 5)
        queries.append(rotated(q[i], cos[at].double(), sin[at].double(), True))
        keys.append(torch.cat((cache[0][i, :past], rotated(k[i], cos[at].double(), sin[at].double(), True))))
    values = [torch.cat((cache[1][i, :past], v[i])) for i, past in enumerate((20, 3))]
    outs, _ = attention_each(queries, keys, values, causal=True)
    out = flash_attn_with_kvcache(q, *cache, k, v, cos, sin, cache_seqlens=int32(20, 3), causal=True)
    assert out.dtype == torch.bfloat16
    near(out, torch.stack(outs))


def test_arguments_are_in_flash_attentions_order():
    assert list(inspect.signature(flash_attn_with_kvcache).parameters) == [
        *(
            "q",
            "k_cache",
            "v_cache",
            "k",
            "v",
            "rotary_cos",
            "rotary_sin",
            "cache_seqlens",
            "cache_batch_idx",
        ),
        *("cache_leftpad", "block_table", "softmax_scale", "causal", "window_size", "softcap"),
        *("rotary_interleaved", "alibi_slopes", "num_splits", "return_softmax_lse"),
    ]


# -- refusals --------------------------------------------------------------------------------------

K_CACHE, V_CACHE = plain_cache(0, 2)
NEW = {"k": draw(2, 2, 3, 2, DIM), "v": draw(3, 2, 3, 2, DIM), "cache_seqlens": int32(5, 6)}
COS, SIN = angles(8)
TABLE = int32(0, 1).view(2, 1)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("k", {**NEW, "k": None}),
        ("v", {**NEW, "v": None}),
        ("k", {**NEW, "k": NEW["k"].bfloat16()}),
        ("k", {**NEW, "k": NEW["k"][:, :, :1]}),
        ("v", {**NEW, "v": NEW["v"][:, :2]}),
        ("k", {**NEW, "cache_seqlens": int32(5, CAPACITY - 2)}),
        ("cache_seqlens", {**NEW, "cache_seqlens": None}),
        ("cache_seqlens", {"cache_seqlens": int32(5, CAPACITY + 1)}),
        ("cache_seqlens", {"cache_seqlens": int32(5, -1)}),
        ("cache_seqlens", {"cache_seqlens": int32(5)}),
        ("cache_seqlens", {"cache_seqlens": 2.5}),
        ("rotary_cos", {"rotary_cos": COS, "rotary_sin": SIN}),
        ("rotary_cos", {**NEW, "rotary_sin": SIN}),
        ("rotary_sin", {**NEW, "rotary_cos": COS}),
        ("rotary_sin", {**NEW, "rotary_cos": COS, "rotary_sin": SIN[:, :2]}),
        ("rotary_cos", {**NEW, "rotary_cos": COS.repeat(1, 3), "rotary_sin": SIN.repeat(1, 3)}),
        ("rotary_cos", {**NEW, "rotary_cos": COS[:8], "rotary_sin": SIN[:8]}),
        ("cache_batch_idx", {"cache_batch_idx": int32(0, 2)}),
        ("cache_batch_idx", {"cache_batch_idx": int32(0, -1), **NEW}),
        ("cache_batch_idx", {"cache_batch_idx": int32(0)}),
        ("cache_batch_idx", {"cache_batch_idx": int32(0, 1), "block_table": TABLE}),
        ("cache_leftpad", {"cache_leftpad": int32(0, 1), "block_table": TABLE}),
        ("cache_leftpad", {"cache_leftpad": int32(0, 7), "cache_seqlens": int32(5, 6)}),
        ("cache_leftpad", {"cache_leftpad": int32(-1, 0)}),
        ("block_table", {"block_table": int32(0, 2).view(2, 1)}),
        ("block_table", {"block_table": TABLE[:1]}),
        ("k_cache", {"k_cache": K_CACHE[:1], "v_cache": V_CACHE[:1]}),
        ("k_cache", {"k_cache": K_CACHE.bfloat16()}),
        ("v_cache", {"v_cache": V_CACHE[:, :3]}),
        ("q", {"q": draw(1, 2, 1, 4, DIM).half()}),
        ("softmax_scale", {"softmax_scale": math.inf}),
        ("window_size", {"window_size": 3}),
        ("alibi_slopes", {"alibi_slopes": SLOPES[:2]}),
        ("alibi_slopes", {"alibi_slopes": SLOPES.repeat(3, 1)}),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_written(named, arguments):
    before = K_CACHE.clone(), V_CACHE.clone()
    call = {"q": draw(1, 2, 3, 4, DIM), "k_cache": K_CACHE, "v_cache": V_CACHE, **arguments}
    with pytest.raises(InputError, match=rf"^{named} "):
        flash_attn_with_kvcache(**call)
    assert torch.equal(K_CACHE, before[0])
    assert torch.equal(V_CACHE, before[1])
