"""Padding taken out and put back: any mask, any sequence length, 0 too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.compat.flash_attn.bert_padding import pad_input, unpad_input
from ridgeline.errors import InputError
from tests.compat.tensors import draw

masks = st.integers(1, 4).flatmap(
    lambda seqlen: st.lists(st.lists(st.booleans(), min_size=seqlen, max_size=seqlen), min_size=1, max_size=5)
)


@given(masks, st.sampled_from([torch.bool, torch.int32, torch.int64]))
def test_kept_tokens_are_packed_in_order_with_their_places(mask, dtype):
    mask = torch.tensor(mask, dtype=dtype)
    batch, seqlen = mask.shape
    x = draw(0, batch, seqlen, 2, 3)
    packed, indices, starts, longest, used = unpad_input(x, mask)
    kept = [[t for t in range(seqlen) if mask[b, t]] for b in range(batch)]
    assert len(packed) == sum(map(len, kept))
    assert indices.tolist() == [b * seqlen + t for b in range(batch) for t in kept[b]]
    for token, index in zip(packed, indices.tolist()):
        assert torch.equal(token, x[index // seqlen, index % seqlen])
    assert starts.diff().tolist() == used.tolist() == [len(row) for row in kept]
    assert starts[0] == 0
    assert longest == max(len(row) for row in kept)
    assert (indices.dtype, starts.dtype, used.dtype) == (torch.int64, torch.int32, torch.int32)


@given(masks)
def test_padding_puts_every_token_back_and_0_elsewhere(mask):
    mask = torch.tensor(mask)
    x = draw(1, *mask.shape, 5)
    packed, indices, *_ = unpad_input(x, mask)
    assert torch.equal(pad_input(packed, indices, *mask.shape), x * mask[..., None])


def test_unused_tokens_are_kept_but_do_not_count_as_used():
    x, mask = draw(2, 2, 4, 1), torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0]])
    unused = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0]])
    packed, indices, starts, longest, used = unpad_input(x, mask, unused)
    assert indices.tolist() == [0, 1, 2, 4, 5]
    assert starts.tolist() == [0, 3, 5]
    assert (longest, used.tolist()) == (3, [2, 1])
    assert torch.equal(packed, x.flatten(0, 1)[indices])


def test_gradients_reach_the_tokens_that_are_kept():
    x = draw(3, 2, 3, 2).requires_grad_()
    mask = torch.tensor([[True, False, True], [False, False, True]])
    packed, indices, *_ = unpad_input(x, mask)
    pad_input(packed * 2, indices, 2, 3).sum().backward()
    assert torch.equal(x.grad, 2.0 * mask[..., None].expand(2, 3, 2))


def test_what_does_not_fit_is_refused_by_name():
    x = draw(4, 2, 3, 2)
    for name, mask in (("attention_mask", torch.ones(2, 4)), ("attention_mask", torch.ones(6))):
        with pytest.raises(InputError, match=rf"^{name} "):
            unpad_input(x, mask)
    with pytest.raises(InputError, match=r"^unused_mask "):
        unpad_input(x, torch.ones(2, 3), torch.ones(3, 2))
    for indices in (torch.tensor([0, 6]), torch.tensor([-1, 0]), torch.tensor([0]), torch.tensor([0.0, 1.0])):
        with pytest.raises(InputError, match=r"^indices "):
            pad_input(x[0, :2], indices, 2, 3)
