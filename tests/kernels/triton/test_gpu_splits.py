"""Splits of keys that programs list for themselves: which there are, and that no bit depends on the grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.kernels import triton as gpu
from ridgeline.kernels.triton import attention_launch
from ridgeline.kernels.triton.configs import SPLIT
from tests.kernels import attention_twin as twin
from tests.kernels.triton.drawing import assert_near, draw


@pytest.mark.parametrize("options", [{"causal": True}, {"causal": True, "window": (70, 0), "sinks": 3}])
def test_any_number_of_programs_gives_the_same_bits(device, monkeypatch, options):
    rows, keys = [1, 0, 9, 1, 2], [2 * SPLIT + 5, 7, SPLIT, 0, 1]
    q, k, v = (
        draw(i, sum(n), h, 16).to(device) for i, (n, h) in enumerate([(rows, 4), (keys, 2), (keys, 2)])
    )
    starts = [torch.tensor([0, *n]).cumsum(0) for n in (rows, keys)]
    outs = []
    for programs in (1, 1000):
        monkeypatch.setattr(attention_launch, "programs", lambda tile, device, n=programs: n)
        outs.append(gpu.attention_varlen(q, k, v, *starts, schedule="split_kv", **options))
    assert torch.equal(outs[0], outs[1])
    parts = zip(*(x.cpu().split(n) for x, n in ((q, rows), (k, keys), (v, keys))))
    assert_near(outs[0], torch.cat([twin.attention(*part, **options)[0] for part in parts]), 2e-5)


def test_windows_with_sinks_skip_splits_and_blocks_of_states(device):
    """Of 20 splits the first and the last two are seen: two blocks of states, neither of them whole."""
    n = 19 * SPLIT + 30
    q, k, v = (draw(10 + i, *s, 16).to(device) for i, s in enumerate([(1, 2), (n, 1), (n, 1)]))
    options = {"causal": True, "window": (SPLIT, 0), "sinks": 2}
    want, want_lse = twin.attention(*(x.cpu() for x in (q, k, v)), **options)
    k[SPLIT : 17 * SPLIT], v[SPLIT : 17 * SPLIT] = math.nan, math.nan  # not even read
    args = [x[None] for x in (q, k, v)]
    out, lse = gpu.attention(*args, schedule="split_kv", return_lse=True, **options)
    assert_near(out[0], want, 2e-5)
    assert_near(lse[0], want_lse, 1e-5)


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2 * SPLIT + 3)), min_size=1, max_size=4),
    st.sampled_from([-1, 0, 40, 2 * SPLIT]),
    st.sampled_from([0, 3, SPLIT + 2]),
    st.booleans(),
)
def test_sequences_of_any_lengths(lengths, left, sinks, causal):
    from ridgeline.kernels.triton.runtime import default_device

    device = default_device()
    rows, keys = ([n[i] for n in lengths] for i in range(2))
    q, k, v = (draw(20 + i, sum(n), h, 8) for i, (n, h) in enumerate([(rows, 2), (keys, 1), (keys, 1)]))
    starts = [torch.tensor([0, *n]).cumsum(0) for n in (rows, keys)]
    options = {"causal": causal, "window": (left, -1), "sinks": sinks}
    out, lse = gpu.attention_varlen(
        *(x.to(device) for x in (q, k, v)), *starts, schedule="split_kv", return_lse=True, **options
    )
    parts = zip(*(x.split(n) for x, n in ((q, rows), (k, keys), (v, keys))))
    wants = [twin.attention(*part, **options) for part in parts]
    assert_near(out, torch.cat([x for x, _ in wants]), 2e-5)
    want_lse = torch.cat([x for _, x in wants], 1)
    torch.testing.assert_close(lse.cpu().double(), want_lse, rtol=1e-5, atol=2e-5)


def test_more_sequences_than_a_program_lists_are_refused_or_not_split(device, monkeypatch):
    monkeypatch.setattr(attention_launch, "MOST_LISTED", 1)
    q, k, v = (
        draw(30 + i, 2, *s, 8).to(device) for i, s in enumerate([(1, 2), (SPLIT + 1, 1), (SPLIT + 1, 1)])
    )
    with pytest.raises(InputError, match="it takes at most 1"):
        gpu.attention(q, k, v, schedule="split_kv")
    assert torch.equal(gpu.attention(q, k, v), gpu.attention(q, k, v, schedule="flash"))


def test_a_head_may_lie_further_than_2_to_the_31_elements(device):
    """Tensors [heads, rows, dim] of long prompts; only what is touched takes memory on a CPU."""
    step = 2**30 + 8
    stored = torch.empty(3 * step + 64, dtype=torch.float16, device=device)
    q = stored.as_strided((1, 2, 4, 16), (0, 16, step, 1))
    k = stored[32:].as_strided((1, 2, 4, 16), (0, 16, step, 1))
    q.copy_(draw(40, 1, 2, 4, 16)), k.copy_(draw(41, 1, 2, 4, 16))
    for schedule in ("flash", "split_kv"):
        out = gpu.attention(q, k, k, causal=True, schedule=schedule)
        want, _ = twin.attention(*(x[0].cpu() for x in (q, k, k)), causal=True)
        assert_near(out[0], want, 2e-3)
    leaves = [x.detach().requires_grad_() for x in (q, k, k)]
    gpu.attention_with_gradient(*leaves, causal=True).sum().backward()
    plain = [x.detach().contiguous().requires_grad_() for x in (q, k, k)]
    gpu.attention_with_gradient(*plain, causal=True).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(leaves, plain))


def test_grids_have_one_axis_so_that_a_batch_has_no_limit(device, monkeypatch):
    """The other axes of a grid end at 65,535."""
    grids = []

    class Noted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            grids.append(grid)
            return self.kernel[grid]

    for name in ("forward", "forward_splits"):
        monkeypatch.setattr(attention_launch.kernels, name, Noted(getattr(attention_launch.kernels, name)))
    monkeypatch.setattr(attention_launch, "merge", Noted(attention_launch.merge))
    q = torch.zeros(3, 1, 2, 8, device=device)
    for schedule in ("flash", "split_kv"):
        gpu.attention(q, q, q, schedule=schedule)
    assert grids == [(6,), (3,), (6,)]
