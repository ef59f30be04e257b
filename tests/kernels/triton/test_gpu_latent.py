"""Latent attention on a GPU: what is stored, and attention over it, held to plain PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.kernels import triton as gpu
from ridgeline.kernels.triton.latent import SPLIT, SPLIT_ROWS
from ridgeline.kernels.triton.naive_latent import attend_latents as naive_attend
from ridgeline.kernels.triton.naive_latent import turn_append as naive_turn
from ridgeline.ops.batch import Span
from tests.kernels.triton.drawing import DTYPES, TOLERANCE, assert_near, draw

TOKENS = 4


def cache_of(blocks, rank, rotated, device, dtype=torch.float32, seed=0):
    return gpu.LatentCache(draw(seed, blocks, TOKENS, rank + rotated, dtype=dtype, device=device), rank)


def spans_of(lengths, seed=0):
    """Sequences of (rows, keys), in blocks of their own in any order; and how many blocks there are."""
    counts = [-(-keys // TOKENS) for _, keys in lengths]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seed)).tolist()
    spans = []
    for (rows, keys), count in zip(lengths, counts, strict=True):
        spans.append(Span(rows, keys - rows, table=tuple(order[:count])))
        order = order[count:]
    return spans, sum(counts)


@st.composite
def batches(draw_from):
    pairs = st.tuples(st.integers(1, SPLIT_ROWS + 4), st.integers(0, 2 * SPLIT + 9))
    return [(rows, rows + past) for rows, past in draw_from(st.lists(pairs, min_size=1, max_size=3))]


@settings(max_examples=3)
@example(lengths=[(1, 2 * SPLIT + 5), (1, 3)], heads=5, rank=20, seed=0)
@example(lengths=[(SPLIT_ROWS + 1, SPLIT + 30)], heads=3, rank=32, seed=1)
@given(batches(), st.sampled_from([1, 3, 16]), st.sampled_from([20, 32]), st.integers(0, 99))
def test_attention_over_latents_is_its_formula(device, lengths, heads, rank, seed):
    """Keys of 20 and 6 elements, values the first 20 of them; what no token stored is NaN."""
    rotated = 6
    spans, blocks = spans_of(lengths, seed)
    cache = cache_of(blocks, rank, rotated, device, seed=seed)
    for span in spans:
        if span.keys % TOKENS:
            cache.stored[span.table[-1], span.keys % TOKENS :] = torch.nan
    rows = sum(span.rows for span in spans)
    q, turned = (
        draw(seed + 1, rows, heads, rank, device=device),
        draw(seed + 2, rows, heads, 6, device=device),
    )
    out = torch.full((rows, heads, rank), torch.nan, device=device)
    sequences = gpu.Sequences.of(spans, device, TOKENS)
    assert gpu.attend_latents(q, turned, cache, sequences, 0.2, out) is out
    wide = gpu.LatentCache(cache.stored.double(), rank)
    assert_near(out, naive_attend(q.double(), turned.double(), wide, sequences, 0.2).cpu(), 2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_deepseeks_sizes_in_every_dtype(device, dtype):
    spans, blocks = spans_of([(1, SPLIT + 7), (1, 9)])
    cache = cache_of(blocks, 512, 64, device, dtype)
    q, turned = (
        draw(1, 2, 16, 512, dtype=dtype, device=device),
        draw(2, 2, 16, 64, dtype=dtype, device=device),
    )
    sequences = gpu.Sequences.of(spans, device, TOKENS)
    got = gpu.attend_latents(q, turned, cache, sequences, 192**-0.5)
    wide = gpu.LatentCache(cache.stored.double(), 512)
    want = naive_attend(q.double(), turned.double(), wide, sequences, 192**-0.5)
    assert_near(got, want.cpu(), TOLERANCE[dtype])


def test_a_rows_bits_depend_neither_on_the_batch_nor_on_the_longest_context(device):
    from dataclasses import replace

    spans, blocks = spans_of([(1, 40), (1, SPLIT + 20), (3, 30), (1, 5)])
    cache = cache_of(blocks, 20, 6, device)
    q, turned = draw(1, 6, 4, 20, device=device), draw(2, 6, 4, 6, device=device)
    whole = gpu.attend_latents(q, turned, cache, gpu.Sequences.of(spans, device, TOKENS), 0.2)
    for span, first in zip(spans, (0, 1, 2, 5), strict=True):
        rows = slice(first, first + span.rows)
        alone = gpu.Sequences.of([span], device, TOKENS)
        for most in (alone.max_keys, 5 * SPLIT):
            bounded = replace(alone, max_keys=most)
            assert torch.equal(gpu.attend_latents(q[rows], turned[rows], cache, bounded, 0.2), whole[rows])


def test_a_sequence_without_keys_gives_zero(device):
    """The padding of a recorded step; on either side of a split's length."""
    cache = cache_of(2, 20, 6, device)
    starts, lengths = torch.arange(3, dtype=torch.int32), torch.tensor([5, 0], dtype=torch.int32)
    tables, slots = torch.tensor([[1, 0], [0, 0]], dtype=torch.int32), torch.tensor([4, -1])
    for most in (8, 3 * SPLIT):
        moved = (x.to(device) for x in (starts, lengths, tables, slots))
        sequences = gpu.Sequences(*moved, 1, most)
        out = torch.full((2, 3, 20), torch.nan, device=device)
        q, turned = draw(1, 2, 3, 20, device=device), draw(2, 2, 3, 6, device=device)
        gpu.attend_latents(q, turned, cache, sequences, 0.2, out)
        assert (out[1] == 0).all()
        assert out[0].isfinite().all()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_are_turned_and_latents_stored_in_their_slots(device, interleaved, dtype):
    rows, heads, content, rank, rotated = 5, 3, 10, 20, 6
    q = draw(1, rows, heads, content + rotated, dtype=dtype, device=device)
    kv = draw(2, rows, rank + rotated, dtype=dtype, device=device)
    weight, angles = draw(3, rank, device=device), draw(4, 9, rotated // 2, device=device).repeat(1, 2)
    positions, slots = torch.tensor([8, 0, 3, 3, 1]), torch.tensor([7, 2, -1, 0, 11])
    cache = gpu.LatentCache(
        torch.full((3, TOKENS, rank + rotated), torch.nan, dtype=dtype, device=device), rank
    )
    options = {"cos": angles.cos(), "sin": angles.sin(), "interleaved": interleaved}
    turned, _ = gpu.turn_append(
        q,
        kv,
        weight,
        1e-6,
        rank,
        **options,
        positions=positions.to(device),
        cache=cache,
        slots=slots.to(device),
    )
    wide = {"cos": angles.cos()[positions].double(), "sin": angles.sin()[positions].double()}
    want = naive_turn(q.double(), kv.double(), weight.double(), 1e-6, rank, interleaved=interleaved, **wide)
    assert_near(turned, want[0].cpu(), TOLERANCE[dtype])
    kept = slots >= 0
    assert_near(cache.read(slots[kept].to(device)), want[1].cpu()[kept], TOLERANCE[dtype])
    assert cache.stored.isnan().flatten(0, 1).all(-1).sum() == 3 * TOKENS - 4  # nothing else was written
    loose, stored = gpu.turn_append(q, kv, weight, 1e-6, rank, interleaved=interleaved)
    still = {name: torch.full_like(x, float(name == "cos")) for name, x in wide.items()}
    want = naive_turn(q.double(), kv.double(), weight.double(), 1e-6, rank, interleaved=interleaved, **still)
    assert_near(loose, want[0].cpu(), TOLERANCE[dtype])
    assert_near(stored, want[1].cpu(), TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"q": torch.zeros(1, 2, 9)}, "q is"),
        ({"turned": torch.zeros(1, 2, 4)}, "turned is"),
        ({"q": torch.zeros(1, 2, 8).half()}, "q is torch.float16"),
        ({"q": torch.zeros(2, 2, 8), "turned": torch.zeros(2, 2, 6)}, "sequences has 1 rows"),
    ],
)
def test_bad_arguments_are_named(device, arguments, named):
    sequences = gpu.Sequences.of([Span(1, table=(0,))], device, TOKENS)
    given = {"q": torch.zeros(1, 2, 8), "turned": torch.zeros(1, 2, 6)} | arguments
    given = {name: x.to(device) for name, x in given.items()}
    with pytest.raises(InputError, match=named):
        gpu.attend_latents(**given, cache=cache_of(1, 8, 6, device), sequences=sequences, scale=1.0)


def test_a_latent_beyond_the_kernels_is_refused(device):
    with pytest.raises(InputError, match="rank of at most 512"):
        gpu.LatentCache(torch.zeros(1, TOKENS, 600, device=device), 513)
