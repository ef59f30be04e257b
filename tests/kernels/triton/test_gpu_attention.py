"""Attention on a GPU (or interpreted) against float64, policy by policy, and against itself bit by bit."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from ridgeline.errors import InputError
from ridgeline.kernels import triton as gpu
from ridgeline.kernels.triton.configs import SPLIT
from tests.kernels import attention_twin as twin
from tests.kernels.triton.drawing import DTYPES, TOLERANCE, assert_near, draw

MASKS = {
    "all": {},
    "causal": {"causal": True},
    "window": {"window": (13, 5)},
    "left": {"window": (20, -1)},
    "right": {"window": (-1, 3)},
    "causal window": {"causal": True, "window": (40, 7)},
    "sinks": {"causal": True, "window": (15, 0), "sinks": 3},
    "many sinks": {"window": (5, 2), "sinks": 45},
    "nothing but itself": {"causal": True, "window": (0, 0)},
}
#: Scores beside the scale, of 4 heads.
SCORES = {
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.01, 0.0])},
    "sink": {"sink_logits": torch.tensor([0.3, -2.0, 4.0, -math.inf])},
    "distance": {"distance_bias": draw(50, 4, 2 * 12 + 1)},
    "scale": {"scale": -0.3},
    "flat": {"scale": 0.0, "softcap": 30.0},
}
SCORES["together"] = {"scale": 0.7, **SCORES["softcap"], **SCORES["alibi"], **SCORES["sink"]}
LENGTHS = [(1, 100), (5, 70), (37, 37), (40, 9), (3, 0)]
full = pytest.mark.slow


def on(device, options):
    return {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in options.items()}


def case(seed, rows, keys, heads=4, kv_heads=2, dim=20, dtype=torch.float32, value_dim=None):
    q = draw(seed, rows, heads, dim, dtype=dtype)
    k = draw(seed + 1, keys, kv_heads, dim, dtype=dtype)
    return q, k, draw(seed + 2, keys, kv_heads, value_dim or dim, dtype=dtype)


def check(device, q, k, v, tolerance=None, schedule="auto", **options):
    """One sequence, dense, against the twin."""
    out, lse = gpu.attention(
        *(x[None].to(device) for x in (q, k, v)), schedule=schedule, return_lse=True, **on(device, options)
    )
    want, want_lse = twin.attention(q, k, v, **options)
    assert_near(out[0], want, tolerance or TOLERANCE[q.dtype])
    torch.testing.assert_close(lse[0].cpu().double(), want_lse, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("schedule", ["flash", "split_kv"])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_is_within_2e_5_of_float64(device, mask, schedule):
    check(device, *case(0, 5, 70 if schedule == "flash" else 2 * SPLIT + 9), schedule=schedule, **MASKS[mask])


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_scaled_capped_and_biased_before_the_mask(device, score):
    check(device, *case(3, 5, 40), causal=True, schedule="flash", **SCORES[score])


def test_a_learned_sink_enters_once_and_not_once_a_split(device):
    check(device, *case(6, 2, 2 * SPLIT + 3), schedule="split_kv", **SCORES["together"])


@pytest.mark.parametrize(("rows", "keys"), LENGTHS)
def test_rows_stand_at_the_bottom_right(device, rows, keys):
    check(device, *case(9, rows, keys, heads=2, kv_heads=1), causal=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 64])
def test_types_and_head_sizes(device, dtype, dim):
    check(device, *case(12, 20, 40, 2, 1, dim, dtype), causal=True)


def test_values_may_be_of_another_size_than_keys(device):
    check(device, *case(15, 3, 40, dim=24, value_dim=40))


def test_the_naive_schedule_agrees(device):
    check(
        device, *case(18, 5, 30), causal=True, window=(9, 0), sinks=2, schedule="naive", **SCORES["together"]
    )


@full
@pytest.mark.parametrize("schedule", ["flash", "split_kv", "naive"])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("group", [1, 3])
def test_policies_together(device, mask, score, group, schedule):
    check(
        device,
        *case(21, 19, 2 * SPLIT + 21, 4, 4 if group == 1 else 2, 24),
        schedule=schedule,
        **{**MASKS[mask], **SCORES[score]},
    )


@full
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [32, 40, 59, 80, 96, 111, 128, 160, 192, 224, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_all_head_sizes(device, dim, dtype, causal):
    check(device, *case(24, 33, 75, 4, 2, dim, dtype), causal=causal)


@pytest.mark.parametrize("mask", ["causal", "sinks"])
def test_packed_sequences_of_any_length(device, mask):
    rows, keys = [3, 0, 17, 1], [40, 5, 17, 0]
    q, k, v = draw(30, 21, 4, 16), draw(31, 62, 2, 16), draw(32, 62, 2, 16)
    cu_rows, cu_keys = (torch.tensor([0, *n]).cumsum(0) for n in (rows, keys))
    for schedule in ("flash", "split_kv"):
        out, lse = gpu.attention_varlen(
            *(x.to(device) for x in (q, k, v)),
            cu_rows, cu_keys, return_lse=True, schedule=schedule, **MASKS[mask],
        )  # fmt: skip
        parts = zip(q.split(rows), k.split(keys), v.split(keys))
        wants = [twin.attention(*part, **MASKS[mask]) for part in parts]
        assert_near(out, torch.cat([o for o, _ in wants]), 2e-5)
        want_lse = torch.cat([x for _, x in wants], 1)
        torch.testing.assert_close(lse.cpu().double(), want_lse, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("tokens", [5, 32])
def test_pages_anywhere_and_what_lies_beyond_a_sequence_is_not_read(device, tokens):
    rows, keys = [1, 4], [SPLIT + 3, 10]
    q = draw(33, 5, 4, 16)
    k, v = draw(34, sum(keys), 2, 16), draw(35, sum(keys), 2, 16)
    columns = -(-max(keys) // tokens)
    order = torch.randperm(2 * columns, generator=torch.Generator().manual_seed(tokens)).view(2, columns)
    pages = [torch.full((2 * columns, tokens, 2, 16), math.nan) for _ in "kv"]
    for b, n in enumerate(keys):
        for j in range(n):
            for stored, given in zip(pages, (k, v)):
                stored[order[b, j // tokens], j % tokens] = given[sum(keys[:b]) + j]
    arguments = [q, *pages, torch.tensor([0, 1, 5]), torch.tensor(keys), order.int()]
    for schedule in ("flash", "split_kv"):
        out = gpu.attention_paged(*(x.to(device) for x in arguments), causal=True, schedule=schedule)
        parts = zip(q.split(rows), k.split(keys), v.split(keys))
        assert_near(out, torch.cat([twin.attention(*part, causal=True)[0] for part in parts]), 2e-5)


def test_a_decodes_bits_depend_neither_on_the_batch_nor_on_the_longest_context(device):
    q, k, v = (
        draw(36 + i, 3, n, h, 16, device=device) for i, (n, h) in enumerate([(1, 4), (150, 2), (150, 2)])
    )
    lengths = torch.tensor([150, 20, 65])
    batch = gpu.attention(q, k, v, key_lengths=lengths, schedule="split_kv")
    for b, n in enumerate(lengths.tolist()):
        alone = gpu.attention(q[b : b + 1], k[b : b + 1, :n], v[b : b + 1, :n], schedule="split_kv")
        assert torch.equal(alone[0], batch[b])


def test_one_grid_serves_every_length_and_outputs_are_all_written(device):
    """What a CUDA graph replays: the same arguments, other lengths in the same tensor."""
    q, k, v = case(40, 1, 3 * SPLIT)
    lengths = torch.zeros(1, dtype=torch.int32, device=device)
    out = torch.empty(1, 1, 4, 20, device=device)
    for n in (3 * SPLIT, SPLIT, 1, 0):
        lengths.fill_(n)
        out.fill_(math.nan)
        gpu.attention(
            *(x[None].to(device) for x in (q, k, v)), key_lengths=lengths, schedule="split_kv", out=out
        )
        assert_near(out[0], twin.attention(q, k[:n], v[:n])[0], 2e-5)


def test_strided_and_transposed_tensors_are_read_where_they_lie(device):
    fused = draw(41, 6, (4 + 2 * 2) * 16, device=device)
    q, k, v = fused.view(1, 6, 8, 16).split((4, 2, 2), dim=2)
    want = twin.attention(*(x[0].cpu() for x in (q, k, v)), causal=True)[0]
    assert_near(gpu.attention(q, k, v, causal=True)[0], want, 2e-5)
    by_head = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    buffer = torch.full((1, 6, 4, 40), 7.0, device=device)
    gpu.attention(*by_head, causal=True, out=buffer[..., 10:26])
    assert_near(buffer[0, ..., 10:26], want, 2e-5)
    assert bool((buffer[..., :10] == 7).all() and (buffer[..., 26:] == 7).all())


def test_a_key_of_minus_infinity_has_no_weight(device):
    q, k, v = torch.ones(1, 1, 1, 4), torch.ones(1, 3, 1, 4), draw(42, 1, 3, 1, 4)
    k[0, 1] = -math.inf
    q, k, v = (x.to(device) for x in (q, k, v))
    torch.testing.assert_close(gpu.attention(q, k, v)[0, 0, 0], (v[0, 0, 0] + v[0, 2, 0]) / 2)
    out, lse = gpu.attention(q, k[:, 1:2], v[:, 1:2], return_lse=True)
    assert bool((out == 0).all())
    assert lse.item() == -math.inf


def test_scores_of_any_size_have_finite_weights(device):
    q, k, v = case(43, 6, 60, 1, 1, 16)
    out, lse = gpu.attention(*(x[None].to(device) for x in (q * 1e18, k * 1e18, v)), return_lse=True)
    want, want_lse = twin.attention(q * 1e18, k * 1e18, v)
    assert_near(out[0], want, 2e-5)
    torch.testing.assert_close(lse[0].cpu().double(), want_lse, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_gives_nothing_and_no_key_gives_zero(device, shape):
    batch, rows, keys = shape
    q, k = torch.ones(batch, rows, 2, 8, device=device), torch.ones(batch, keys, 1, 8, device=device)
    out, lse = gpu.attention(q, k, k, return_lse=True)
    assert (out.shape, lse.shape) == (q.shape, (batch, 2, rows))
    if keys == 0:
        assert bool((out == 0).all() and (lse == -math.inf).all())


def test_merged_states_are_attention_over_all_keys(device):
    q, k, v = case(44, 3, 50)
    parts = [twin.attention(q, k[a:b], v[a:b]) for a, b in pairwise([0, 20, 20, 23, 50])]
    o = torch.stack([out for out, _ in parts]).float().to(device)
    lse = torch.stack([x.T for _, x in parts]).float().contiguous().to(device)
    want, want_lse = twin.attention(q, k, v)
    merged, merged_lse = gpu.merge_states(o, lse)
    assert_near(merged, want, 2e-5)
    torch.testing.assert_close(merged_lse.cpu().double(), want_lse.T, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("empty", [math.inf, -math.inf])
def test_merging_empty_states_gives_an_empty_state(device, empty):
    o = torch.full((3, 2, 8), math.nan, device=device)
    lse = torch.full((3, 2), empty, device=device)
    o[1, 1], lse[1, 1] = 5.0, 2.0
    merged, merged_lse = gpu.merge_states(o, lse)
    assert bool((merged[0] == 0).all() and (merged[1] == 5).all())
    assert merged_lse[0].item() == -math.inf
    assert merged_lse[1].item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"q": torch.zeros(1, 2, 3, 8)}, "heads"),
        ({"k": torch.zeros(1, 2, 2, 9)}, "k is"),
        ({"q": torch.zeros(1, 2, 2, 300), "k": torch.zeros(1, 2, 2, 300)}, "1 to 256"),
        ({"window": (-2, 0)}, "window"),
        ({"scale": math.nan}, "scale"),
        ({"schedule": "fast"}, "schedule"),
        ({"key_lengths": torch.tensor([3])}, "key_lengths"),
        ({"v": torch.zeros(1, 2, 2, 8).half()}, "one dtype"),
        ({"alibi_slopes": torch.zeros(3)}, "alibi_slopes"),
        ({"q": torch.zeros(1, 2, 2, 8).requires_grad_()}, "attention_with_gradient"),
    ],
)
def test_bad_arguments_are_named(device, arguments, named):
    given = {name: torch.zeros(1, 2, 2, 8) for name in "qkv"} | arguments
    given = {
        k: x.to(device) if isinstance(x, torch.Tensor) and k != "key_lengths" else x for k, x in given.items()
    }
    with pytest.raises(InputError, match=named):
        gpu.attention(**given)
