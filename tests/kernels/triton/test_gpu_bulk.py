"""Keys and values copied by tensor descriptors give the bits of those read through pointers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from ridgeline.kernels import triton as gpu
from ridgeline.kernels.triton import attention_launch, descriptors
from ridgeline.kernels.triton.configs import SPLIT, Tiles, trying
from tests.kernels import attention_twin as twin
from tests.kernels.triton.drawing import TOLERANCE, assert_near, draw

POINTERS = Tiles(16, 32, 4, 2)


@pytest.fixture
def both(monkeypatch):
    """Calls a function with tiles of pointers and with tiles of descriptors, and says how many calls of a
    kernel had descriptors."""
    made = []

    def noted(*args):
        made.append(descriptors.boxes(*args))
        return made[-1]

    monkeypatch.setattr(attention_launch, "boxes", noted)

    def call(function):
        outs = []
        for tile in (POINTERS, replace(POINTERS, bulk=1)):
            with ExitStack() as held:
                for kernel in ("attention", "decode"):
                    for size in (1, 2, 4):
                        held.enter_context(trying(f"{kernel}-{size}-256", tile))
                outs.append(function())
        return *outs, sum(x is not None for x in made)

    return call


@pytest.mark.parametrize("dim", [24, 32])
@pytest.mark.parametrize("schedule", ["flash", "split_kv"])
def test_dense(device, both, dim, schedule):
    q, k, v = (draw(i, 2, n, h, dim) for i, (n, h) in enumerate([(5, 4), (SPLIT + 9, 2), (SPLIT + 9, 2)]))
    lengths = torch.tensor([SPLIT + 9, 13])
    v[1, 13:] = torch.nan  # beyond the sequence
    given = [x.to(device) for x in (q, k, v)]
    options = {"causal": True, "window": (50, 0), "sinks": 2, "key_lengths": lengths.to(device)}
    by_pointers, in_bulk, described = both(lambda: gpu.attention(*given, schedule=schedule, **options))
    assert described
    assert torch.equal(by_pointers, in_bulk)
    for b, n in enumerate(lengths.tolist()):
        want, _ = twin.attention(q[b], k[b, :n], v[b, :n], causal=True, window=(50, 0), sinks=2)
        assert_near(in_bulk[b], want, 2e-5)


def test_packed_and_what_is_another_sequences(device, both):
    rows, keys = [3, 0, 17, 1], [40, 5, 17, 0]
    q, k, v = (draw(10 + i, sum(n), h, 16) for i, (n, h) in enumerate([(rows, 4), (keys, 2), (keys, 2)]))
    v[40:45] = torch.nan  # of the sequence that nobody reads
    given = [x.to(device) for x in (q, k, v)]
    starts = [torch.tensor([0, *n]).cumsum(0) for n in (rows, keys)]
    by_pointers, in_bulk, described = both(lambda: gpu.attention_varlen(*given, *starts, causal=True))
    assert described
    assert torch.equal(by_pointers, in_bulk)
    want, _ = twin.attention(q[3:20], k[45:62], v[45:62], causal=True)
    assert_near(in_bulk[3:20], want, 2e-5)


@pytest.mark.parametrize(("tokens", "described"), [(64, True), (32, True), (16, False), (1, False)])
def test_pages_of_whole_boxes(device, both, tokens, described):
    keys = SPLIT + 40
    pages = -(-keys // tokens)
    q, k, v = (draw(20 + i, *s, 16) for i, s in enumerate([(2, 4), (pages * tokens, 2), (pages * tokens, 2)]))
    v[keys:] = torch.nan
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(1))
    stored = [torch.empty(pages, tokens, 2, 16) for _ in "kv"]
    for to, x in zip(stored, (k, v)):
        to[order] = x.view(pages, tokens, 2, 16)
    given = [x.to(device) for x in (q, *stored)]
    numbers = [torch.tensor([0, 2]), torch.tensor([keys]), order[None].int()]
    by_pointers, in_bulk, count = both(lambda: gpu.attention_paged(*given, *numbers, causal=True))
    assert bool(count) == described
    assert torch.equal(by_pointers, in_bulk)
    assert_near(in_bulk, twin.attention(q, k[:keys], v[:keys], causal=True)[0], 2e-5)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_bytes_with_scales(device, both, format):
    from ridgeline.ops.batch import Span

    q, k, v = (draw(30 + i, *s, 32) for i, s in enumerate([(1, 2), (40, 1), (40, 1)]))
    cache = gpu.KVCache.empty(2, 1, 32, format, device=device)
    cache.keys.fill_(127), cache.values.fill_(127)
    cache.key_scales.fill_(torch.nan), cache.value_scales.fill_(torch.nan)
    sequences = [gpu.Sequences.of([Span(n, p, table=(1, 0))], device) for n, p in ((40, 0), (1, 39))]
    gpu.store(k.to(device), v.to(device), cache, sequences[0])
    by_pointers, in_bulk, described = both(lambda: gpu.attend_stored(q.to(device), cache, sequences[1]))
    assert described
    assert torch.equal(by_pointers, in_bulk)
    keys, values = cache.read(torch.tensor([1, 0], device=device), 40)
    want, _ = twin.attention(q, keys.cpu(), values.cpu())
    assert_near(in_bulk, want, TOLERANCE[torch.bfloat16])


def test_what_no_descriptor_can_name_is_read_through_pointers(device, both):
    """A head of 6 bytes, an address between lines, and keys that all sequences share."""
    wide = draw(40, 1, 41 * 2 * 24 + 1).to(device)
    shifted = wide[:, 1:].view(1, 41, 2, 24)[:, :40]
    shared = draw(41, 1, 40, 2, 24).to(device).expand(2, -1, -1, -1)
    narrow = draw(42, 1, 40, 2, 3).half().to(device)
    for k in (shifted, shared, narrow):
        q = draw(43, k.shape[0], 3, 4, k.shape[3], dtype=k.dtype).to(device)
        by_pointers, in_bulk, described = both(lambda q=q, k=k: gpu.attention(q, k, k))
        assert not described
        assert torch.equal(by_pointers, in_bulk)


@pytest.mark.parametrize(("dtype", "described"), [(torch.float8_e4m3fn, False), (torch.bfloat16, True)])
def test_a_head_smaller_than_a_product_of_fp8_takes_is_read_through_pointers(dtype, described):
    k = torch.zeros(2, 64, 2, 16).to(dtype)
    assert (descriptors.boxes(k, k, 32, 0) is not None) == described
