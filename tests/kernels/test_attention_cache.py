"""Attention on the kernels' own cache: what it stores, and the same bits however a request is cut up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline import kernels
from ridgeline.errors import InputError
from ridgeline.kernels import (
    BLOCK_TOKENS,
    KVCache,
    Sequences,
    attend,
    attend_stored,
    attention,
    attention_varlen,
    store,
)
from ridgeline.ops.batch import Span
from tests.kernels import attention_twin as twin
from tests.kernels.test_attention import assert_near, draw, draw_heads

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FORMATS = ["fp32", "bf16", "int8"]


def angles(positions: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    frequency = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    angle = (torch.arange(positions)[:, None] * frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def span(rows: int, past: int, first_block: int = 0) -> Span:
    return Span(rows, past, table=tuple(range(first_block, first_block + blocks_for(past + rows))))


def in_steps(q, k, v, cache, cuts, first_block=0, **options) -> torch.Tensor:
    """A request computed in pieces that end at ``cuts``."""
    parts, past = [], 0
    for end in cuts:
        sequences = Sequences.of([span(end - past, past, first_block)])
        parts.append(attend(q[past:end], k[past:end], v[past:end], cache, sequences, **options))
        past = end
    return torch.cat(parts)


@pytest.mark.parametrize("format", FORMATS)
@few
@given(
    rows=st.integers(1, 100),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.integers(1, 128),
    rotated=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_prompt_is_rotated_stored_and_attended_to(isa, format, rows, kv_heads, group, half, rotated, seed):
    dim = 2 * half if rotated else 2 * half - 1
    q, k, v = draw_heads(seed, rows, rows, kv_heads * group, kv_heads, dim)
    cos, sin = angles(rows, dim) if rotated else (None, None)
    cache = KVCache.empty(blocks_for(rows), kv_heads, dim, format)
    out = attend(q, k, v, cache, Sequences.of([span(rows, 0)]), cos=cos, sin=sin)
    if rotated:
        q, k = twin.rotate(q, cos, sin), twin.rotate(k, cos, sin)
    stored_k, stored_v = cache.read(torch.arange(cache.blocks), rows)
    if format == "int8":
        step = k.abs().amax(-1, keepdim=True) / 127
        assert bool(((stored_k - k).abs() <= 0.501 * step).all())
        torch.testing.assert_close(stored_v.double(), twin.quantized(v), rtol=1e-6, atol=0)
    else:
        tolerance = 1e-6 if format == "fp32" else 2.0**-8
        torch.testing.assert_close(stored_k.double(), k.double(), rtol=tolerance, atol=1e-6)
        torch.testing.assert_close(stored_v.double(), v.double(), rtol=tolerance, atol=0)
    want, _ = twin.attention(q, stored_k, stored_v, causal=True)
    assert_near(out, want, 1e-5 if format == "fp32" else 1.5e-2)


@given(rows=st.integers(1, 40), half=st.integers(1, 12), rest=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_rotation_of_fewer_elements_leaves_the_rest_of_a_head(rows, half, rest, seed):
    dim = 2 * half + rest
    q, k, v = draw_heads(seed, rows, rows, 4, 2, dim)
    cos, sin = angles(rows, 2 * half)
    cache = KVCache.empty(blocks_for(rows), 2, dim, "fp32")
    out = attend(q, k, v, cache, Sequences.of([span(rows, 0)]), cos=cos, sin=sin)
    q, k = (torch.cat((twin.rotate(x[..., : 2 * half], cos, sin), x[..., 2 * half :]), -1) for x in (q, k))
    torch.testing.assert_close(cache.read(torch.arange(cache.blocks), rows)[0], k.float())
    assert_near(out, twin.attention(q, k, v, causal=True)[0], 1e-5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("options", [{}, {"window": (150, 0), "sinks": 4}, {"softcap": 5.0}])
def test_chunks_batches_and_threads_change_no_bit(isa, format, options):
    n, dim = 300, 48
    q, k, v = draw_heads(1, n, n, 6, 2, dim, torch.bfloat16)
    cos, sin = angles(n, dim)
    options = {"cos": cos, "sin": sin, **options}
    cache = KVCache.empty(100, 2, dim, format)
    cache.data.random_()  # what a cache held before is not seen
    whole = in_steps(q, k, v, cache, [n], **options)
    for size in (1, 7, 64):
        cuts = [*range(size, n, size), n] if size > 1 else [1, 2, 33, 34, 250, 251, n]
        positions = torch.arange(n)
        parts, past = [], 0
        for end in cuts:
            sequences = Sequences.of([span(end - past, past, first_block=20)])
            rows = slice(past, end)
            options["positions"] = positions[rows]
            parts.append(attend(q[rows], k[rows], v[rows], cache, sequences, **options))
            past = end
        assert torch.equal(torch.cat(parts), whole)
    for threads in (1, 2, 5):
        kernels.set_threads(threads)
        others = [(0, 5, 40), (90, 1, 45), (0, 40, 50)]
        rows = [torch.arange(past, past + count) for past, count, _ in others] + [torch.arange(200, n)]
        index = torch.cat(rows)
        spans = [span(count, past, block) for past, count, block in others] + [span(n - 200, 200)]
        options["positions"] = index
        batched = attend(q[index], k[index], v[index], cache, Sequences.of(spans), **options)
        assert torch.equal(batched[-(n - 200) :], whole[200:])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("schedule", ["flash", "split_kv"])
def test_scattered_blocks_change_no_bit(isa, format, schedule):
    n = 2500
    q, k, v = draw_heads(2, n, n, 2, 1, 32)
    cache = KVCache.empty(2 * blocks_for(n), 1, 32, format)
    whole = in_steps(q, k, v, cache, [n])[-1:]
    order = torch.randperm(cache.blocks, generator=torch.Generator().manual_seed(0))[: blocks_for(n)]
    first = Sequences.of([Span(n - 1, 0, table=tuple(order.tolist()))])
    attend(q[:-1], k[:-1], v[:-1], cache, first)
    last = Sequences.of([Span(1, n - 1, table=tuple(order.tolist()))])
    assert torch.equal(attend(q[-1:], k[-1:], v[-1:], cache, last, schedule=schedule), whole)


@pytest.mark.parametrize(("format", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_cache_gives_what_plain_keys_give(isa, format, dtype):
    q, k, v = draw_heads(3, 1200, 1200, 4, 2, 59, dtype)
    cache = KVCache.empty(blocks_for(1200), 2, 59, format)
    assert torch.equal(in_steps(q, k, v, cache, [1200]), attention(q[None], k[None], v[None], causal=True)[0])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_token_that_is_not_finite_spoils_no_earlier_row(isa, format, value):
    q, k, v = draw_heads(4, 90, 90, 2, 1, 32)
    cache = KVCache.empty(blocks_for(90), 1, 32, format)
    good = in_steps(q, k, v, cache, [90])
    v[50, 0, 3] = value
    got = in_steps(q, k, v, cache, [90])
    assert torch.equal(got[:50], good[:50])
    assert not got[50:, :, 3].isfinite().any()


@few
@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 80)), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_a_step_of_many_sequences_is_that_of_each_alone(isa, lengths, seed):
    cache, alone = (KVCache.empty(30, 1, 16) for _ in range(2))
    spans, step = [], []
    block = 0
    for i, (rows, past) in enumerate(lengths):
        q, k, v = draw_heads(seed + 3 * i, rows + past, rows + past, 2, 1, 16)
        spans.append(span(rows, past, block))
        for into in (cache, alone):
            in_steps(q, k, v, into, [past], first_block=block)
        step.append((q[past:], k[past:], v[past:]))
        block += blocks_for(rows + past)
    together = attend(*(torch.cat(x) for x in zip(*step)), cache, Sequences.of(spans))
    parts = [attend(*x, alone, Sequences.of([s])) for x, s in zip(step, spans)]
    assert torch.equal(together, torch.cat(parts))
    for s in spans:
        table = torch.tensor(s.table, dtype=torch.int32)
        for stored, want in zip(cache.read(table, s.keys), alone.read(table, s.keys)):
            assert torch.equal(stored, want)


def test_queries_keys_and_values_may_be_views_of_one_row(isa):
    fused = draw(5, 40, (4 + 2 * 2) * 32, dtype=torch.bfloat16)
    q, k, v = fused.view(40, 8, 32).split((4, 2, 2), 1)
    caches = [KVCache.empty(2, 2, 32) for _ in range(2)]
    views = attend(q, k, v, caches[0], Sequences.of([span(40, 0)]))
    copies = attend(q.contiguous(), k.contiguous(), v.contiguous(), caches[1], Sequences.of([span(40, 0)]))
    assert torch.equal(views, copies)
    out = torch.empty(40, 128)
    attend(q, k, v, caches[0], Sequences.of([span(40, 0)]), out=out.view(40, 4, 32))
    assert torch.equal(out.bfloat16(), views.flatten(1))


def test_no_rows_change_nothing(isa):
    cache = KVCache.empty(2, 1, 8)
    empty = torch.empty(0, 1, 8)
    assert attend(empty, empty, empty, cache, Sequences.of([])).shape == (0, 1, 8)
    assert attend(empty, empty, empty, cache, Sequences.of([Span(0, 3, table=(1,))])).shape == (0, 1, 8)


# -- a static cache ---------------------------------------------------------------------------------


@few
@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 100)), min_size=1, max_size=3),
    softcap=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_stored_keys_are_attended_to_by_rows_of_another_number(isa, sizes, softcap, seed):
    """Rows and keys of each sequence; the keys are stored in two pieces, in blocks from the last to the
    first. The bits are those of attention to the same keys in plain tensors."""
    rows, lengths = (sum(n) for n in zip(*sizes, strict=True))
    q, k, v = draw_heads(seed, rows, lengths, 4, 2, 12)
    cache = KVCache.empty(sum(blocks_for(keys) for _, keys in sizes), 2, 12, "fp32")
    spans, first, free = [], 0, cache.blocks
    for n, keys in sizes:
        table = tuple(range(free - 1, free - 1 - blocks_for(keys), -1))
        free -= blocks_for(keys)
        half = keys // 2
        for begin, end in ((0, half), (half, keys)):
            piece = slice(first + begin, first + end)
            store(k[piece], v[piece], cache, Sequences.of([Span(end - begin, begin, table=table)]))
        spans.append(Span(n, keys - n, table=table))
        first += keys
    before = cache.data.clone()
    actual = attend_stored(q, cache, Sequences.of(spans), softcap=softcap)
    starts = (torch.tensor([0, *torch.tensor(n).cumsum(0)]) for n in zip(*sizes, strict=True))
    assert torch.equal(actual, attention_varlen(q, k, v, *starts, softcap=softcap))
    assert torch.equal(cache.data, before)


def test_what_a_static_cache_cannot_serve_is_refused():
    q, k, v = draw_heads(0, 3, 5, 2, 2, 8)
    cache = KVCache.empty(1, 2, 8, "fp32")
    table = Sequences.of([Span(5, 0, table=(0,))])
    with pytest.raises(InputError, match="k 4"):
        store(k[:4], v[:4], cache, table)
    with pytest.raises(InputError, match="past"):
        store(k, v, cache, Sequences.of([Span(5, -1, table=(0,))]))
    with pytest.raises(InputError, match="negative length"):
        attend_stored(q, cache, Sequences.of([Span(3, -4, table=(0,))]))
    with pytest.raises(InputError, match="block 1"):
        attend_stored(q, cache, Sequences.of([Span(3, 30, table=(0, 1))]))
