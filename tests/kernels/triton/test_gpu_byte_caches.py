"""Caches of int8 and FP8 on a GPU (or interpreted): what is stored, and attention over it as it is stored."""

from __future__ import annotations

import math

import pytest
import torch

from ridgeline.errors import InputError
from ridgeline.kernels import triton as gpu
from ridgeline.kernels.triton import runtime
from ridgeline.kernels.triton.configs import SPLIT
from ridgeline.ops.batch import Span
from tests.kernels import attention_twin as twin
from tests.kernels.triton.drawing import TOLERANCE, assert_near, draw

FORMATS = ["int8", "fp8"]
MOST = {"int8": 127, "fp8": 448}
full = pytest.mark.slow


@pytest.fixture(params=["int8", "fp8", "fp8 in bytes"])
def format(request, monkeypatch):
    """Also FP8 where the GPU has no numbers of it."""
    if request.param.endswith("bytes"):
        monkeypatch.setattr(runtime, "has_fp8", lambda device: False)
    return request.param.split()[0]


def stored(x, format):
    """Vectors of heads as a cache holds them, float64."""
    scale = (x.float().abs().amax(-1, keepdim=True) / MOST[format]).clamp(min=2.0**-126)
    y = x.float() / scale
    y = y.round() if format == "int8" else y.to(torch.float8_e4m3fn).float()
    return y.double() * scale.double()


def filled(k, v, format, device, tokens=32, order=None):
    """A cache that one sequence has been stored in, and the table of its blocks."""
    blocks = -(-len(k) // tokens)
    order = list(range(blocks)) if order is None else order
    cache = gpu.KVCache.empty(blocks, k.shape[1], k.shape[2], format, device=device, tokens=tokens)
    spans = [Span(len(k), table=tuple(order))]
    gpu.store(k.to(device), v.to(device), cache, gpu.Sequences.of(spans, device, tokens))
    return cache, tuple(order)


def test_what_is_stored_is_rounded_to_nearest_with_a_scale_a_head(device, format):
    """Of vectors of every size that float32 has, and ties."""
    k = draw(0, 64, 2, 24) * torch.logspace(-37, 36, 64)[:, None, None]
    v = torch.arange(64 * 2 * 24).view(64, 2, 24).float() / 16
    v[..., 0] = MOST[format]
    cache, table = filled(k, v, format, device, 8, [5, 2, 0, 7, 3, 6, 1, 4])
    for got, x in zip(cache.read(torch.tensor(table, device=device), 64), (k, v)):
        assert torch.equal(got.cpu().double(), stored(x, format).float().double())


@pytest.mark.parametrize("rotated", [False, True])
def test_steps_append_and_attend_to_what_is_stored(device, format, rotated):
    cache = gpu.KVCache.empty(4, 2, 16, format, device=device, tokens=4)
    for x in (cache.key_scales, cache.value_scales):
        x.fill_(torch.nan)
    for x in (cache.keys, cache.values):
        x.fill_(127)  # a NaN in FP8
    angle = draw(1, 20, 8).repeat(1, 2)
    tables, seen = [(2, 0), (3, 1)], [[], []]
    for step, counts in enumerate([(5, 2), (1, 3)]):
        q, k, v = (draw(2 + 3 * step + i, sum(counts), n, 16) for i, n in enumerate((4, 2, 2)))
        past = [sum(len(x[0]) for x in s) for s in seen]
        spans = [Span(n, p, table=t) for n, p, t in zip(counts, past, tables)]
        positions = torch.cat([torch.arange(s.past, s.keys) for s in spans])
        turn = {"cos": angle.cos().to(device), "sin": angle.sin().to(device), "positions": positions}
        out = gpu.attend(
            *(x.to(device) for x in (q, k, v)), cache, gpu.Sequences.of(spans, device, tokens=4),
            **(turn if rotated else {}),
        )  # fmt: skip
        if rotated:
            q, k = (twin.rotate(x, angle[positions].cos(), angle[positions].sin()) for x in (q, k))
        wants = []
        for s, query, *new in zip(seen, q.split(list(counts)), k.split(list(counts)), v.split(list(counts))):
            s.append(new)
            keys, values = (stored(torch.cat([x[i] for x in s]), format) for i in range(2))
            wants.append(twin.attention(query, keys, values, causal=True)[0])
        assert_near(out, torch.cat(wants), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("schedule", ["flash", "split_kv", "invariant", "naive"])
def test_schedules_agree_under_a_window_with_sinks(device, format, schedule):
    n = 2 * SPLIT + 9
    q, k, v = (draw(10 + i, *shape, 20) for i, shape in enumerate([(3, 2), (n, 1), (n, 1)]))
    cache, table = filled(k, v, format, device, 8)
    for x in (cache.key_scales, cache.value_scales):
        x[-1, :, -2:] = math.nan  # is written anew
    cache2 = gpu.KVCache.empty(len(table), 1, 20, format, device=device, tokens=8)
    for ours, theirs in zip(vars(cache2).values(), vars(cache).values()):
        ours.copy_(theirs)  # blocks may be copied as they are, with their scales
    spans = [Span(3, n - 3, table=table)]
    options = {"window": (SPLIT - 5, 0), "sinks": 5, "softcap": 3.0}
    out, lse = gpu.attend(
        *(x.to(device) for x in (q, k[-3:], v[-3:])), cache2, gpu.Sequences.of(spans, device, 8),
        schedule=schedule, return_lse=True, **options,
    )  # fmt: skip
    keys, values = stored(k, format), stored(v, format)
    want, want_lse = twin.attention(q, keys, values, causal=True, **options)
    assert_near(out, want, TOLERANCE[torch.bfloat16])
    assert_near(lse, want_lse, 0.02)


def test_a_vector_with_a_nan_is_nan_throughout_and_spoils_only_who_sees_it(device, format):
    q, k, v = (draw(20 + i, 12, 1, 16) for i in range(3))
    v[5, 0, 3], v[9, 0, 0] = math.inf, math.nan
    cache = gpu.KVCache.empty(2, 1, 16, format, device=device, tokens=8)
    spans = [Span(12, table=(1, 0))]
    out = gpu.attend(*(x.to(device) for x in (q, k, v)), cache, gpu.Sequences.of(spans, device, 8))
    assert bool(out[:5].isfinite().all() and out[5:].isnan().all())
    _, values = cache.read(torch.tensor([1, 0], device=device), 12)
    assert values.isnan().all(-1)[:, 0].tolist() == [i in (5, 9) for i in range(12)]


@pytest.mark.parametrize("schedule", ["split_kv", "invariant"])
@pytest.mark.parametrize("format", FORMATS)
def test_splits_give_the_same_bits_whatever_the_chunks_and_the_batch(device, format, schedule):
    """Interpreted, NumPy's products may depend on a row's place in its tile, so rows keep theirs. The first
    chunk of ``invariant`` is not split."""
    n, places = SPLIT + 24, 8
    q, k, v = (draw(30 + i, n, h, 16).to(device) for i, h in enumerate((2, 1, 1)))
    outs = []
    for chunks in ((n,), (places, SPLIT + 2 * places - 1, 1)):
        cache = gpu.KVCache.empty(-(-n // 8) + 1, 1, 16, format, device=device, tokens=8)
        table, start, parts = tuple(range(cache.blocks - 1)), 0, []
        for rows in chunks:
            here = slice(start, start + rows)
            spans = [Span(rows, start, table=table), Span(1, table=(cache.blocks - 1,))]
            rows_of = (torch.cat([x[here], x[:1]]) for x in (q, k, v))
            out = gpu.attend(*rows_of, cache, gpu.Sequences.of(spans, device, 8), schedule=schedule)
            parts.append(out[:-1])
            start += rows
        outs.append(torch.cat(parts))
    assert torch.equal(outs[0][:-1], outs[1][:-1])
    assert_near(outs[0][-1], outs[1][-1].cpu(), 1e-5)


@full
@pytest.mark.parametrize("dim", [32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256])
def test_all_head_sizes(device, format, dim):
    q, k, v = (draw(40 + i, n, h, dim) for i, (n, h) in enumerate([(7, 4), (75, 2), (75, 2)]))
    cache, table = filled(k, v, format, device)
    spans = [Span(7, 68, table=table)]
    out = gpu.attend_stored(q.to(device), cache, gpu.Sequences.of(spans, device), causal=True)
    want, _ = twin.attention(q, stored(k, format), stored(v, format), causal=True)
    assert_near(out, want, TOLERANCE[torch.bfloat16])


def test_a_cache_of_more_than_2_to_the_31_elements(device):
    """Of addresses that 32 bits do not hold; only what is touched takes memory on a CPU."""
    blocks, tokens = 2**31 // (32 * 64) + 3, 32
    cache = gpu.KVCache.empty(blocks, 1, 64, "int8", device=device, tokens=tokens)
    q, k, v = (draw(50 + i, 3, 1, 64) for i in range(3))
    spans = [Span(3, table=(blocks - 1,))]
    out = gpu.attend(*(x.to(device) for x in (q, k, v)), cache, gpu.Sequences.of(spans, device))
    want, _ = twin.attention(q, stored(k, "int8"), stored(v, "int8"), causal=True)
    assert_near(out, want, TOLERANCE[torch.bfloat16])


def test_a_cache_without_its_scales_is_refused(device):
    keys = torch.zeros(2, 8, 1, 16, dtype=torch.int8, device=device)
    scales = torch.zeros(2, 1, 8, device=device)
    gpu.KVCache(keys, keys, scales, scales)
    with pytest.raises(InputError, match="key_scales is None; give float32"):
        gpu.KVCache(keys, keys)
    with pytest.raises(InputError, match="value_scales is float32"):
        gpu.KVCache(keys, keys, scales, scales[:, :, :4])


# -- products of FP8 --------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_scores_of_fp8_are_those_of_rounded_queries_and_keys(device, packed):
    q, k, v = (draw(60 + i, n, h, 24).bfloat16() for i, (n, h) in enumerate([(21, 4), (40, 2), (40, 2)]))
    given = [x.to(device) if packed else x[None].to(device) for x in (q, k, v)]
    starts = (torch.tensor([0, 21]), torch.tensor([0, 40])) if packed else ()
    options = {"causal": True, "window": (19, 0), "sinks": 2, "softcap": 5.0}
    out, lse = gpu.attention_fp8(*given, *starts, return_lse=True, **options)
    want, want_lse = twin.attention(stored(q, "fp8"), stored(k, "fp8"), v, **options)
    assert out.dtype == torch.bfloat16
    assert_near(out if packed else out[0], want, TOLERANCE[torch.bfloat16])
    assert_near(lse if packed else lse[0], want_lse, 1e-5)


def test_fp8_scores_err_by_4_percent(device):
    q, k, v = (draw(70 + i, n, 1, 128).bfloat16() for i, n in enumerate((32, 150, 150)))
    out = gpu.attention_fp8(*(x[None].to(device) for x in (q, k, v)))
    want, _ = twin.attention(q, k, v)
    error = ((out[0].cpu().double() - want).norm() / want.norm()).item()
    assert 0.02 < error < 0.045


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"dtype": torch.float32}, "bfloat16, or all as float16"),
        ({"cu_seqlens_q": torch.tensor([0, 2])}, "q is bfloat16"),
        ({"has_fp8": False}, "8.9 or newer"),
    ],
)
def test_bad_arguments_of_fp8_are_named(device, monkeypatch, arguments, named):
    import importlib

    module = importlib.import_module("ridgeline.kernels.triton.attention_fp8")
    if not arguments.pop("has_fp8", True):
        monkeypatch.setattr(module, "has_fp8", lambda device: False)
    q = torch.zeros(1, 2, 2, 8, dtype=arguments.pop("dtype", torch.bfloat16), device=device)
    with pytest.raises(InputError, match=named):
        gpu.attention_fp8(q, q, q, **arguments)
