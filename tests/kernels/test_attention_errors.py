"""Arguments that attention cannot take are refused by name."""

from __future__ import annotations

import math

import pytest
import torch

from ridgeline.errors import InputError
from ridgeline.kernels import (
    BLOCK_TOKENS,
    KVCache,
    Sequences,
    attend,
    attention,
    attention_paged,
    attention_varlen,
    merge_states,
)

Q, K = torch.ones(2, 3, 4, 8), torch.ones(2, 5, 2, 8)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("q", {"q": Q.double()}),
        ("q", {"q": Q[0]}),
        ("q", {"q": Q.to("meta")}),
        ("q", {"q": [[1.0]]}),
        ("q", {"q": Q.clone().requires_grad_()}),
        ("q", {"q": torch.ones(2, 3, 4, 257)}),
        ("q", {"q": torch.ones(2, 3, 8, 4).transpose(2, 3)}),
        ("k", {"k": K.bfloat16()}),
        ("k", {"k": K[:1]}),
        ("k", {"k": torch.ones(2, 5, 3, 8), "v": torch.ones(2, 5, 3, 8)}),
        ("k", {"k": torch.ones(2, 5, 2, 7)}),
        ("k", {"k": K.half()}),
        ("v", {"v": K[:, :4]}),
        ("v", {"v": K.to_sparse()}),
        ("key_lengths", {"key_lengths": torch.tensor([6, 1])}),
        ("key_lengths", {"key_lengths": torch.tensor([-1, 1])}),
        ("key_lengths", {"key_lengths": torch.tensor([1])}),
        ("key_lengths", {"key_lengths": torch.tensor([1.0, 2.0])}),
        ("key_lengths", {"key_lengths": [1, 2]}),
        ("window", {"window": (1, 2, 3)}),
        ("window", {"window": (-2, 0)}),
        ("window", {"window": (0.5, 0)}),
        ("window", {"window": 3}),
        ("sinks", {"sinks": -1}),
        ("sinks", {"sinks": 2.0}),
        ("scale", {"scale": math.nan}),
        ("scale", {"scale": "1"}),
        ("softcap", {"softcap": -1.0}),
        ("distance_bias", {"distance_bias": torch.ones(4, 6)}),
        ("distance_bias", {"distance_bias": torch.ones(3, 5)}),
        ("distance_bias", {"distance_bias": torch.ones(5, 4).T}),
        ("distance_bias", {"distance_bias": torch.ones(4, 5).double()}),
        ("softcap", {"softcap": math.inf}),
        ("alibi_slopes", {"alibi_slopes": torch.ones(3)}),
        ("alibi_slopes", {"alibi_slopes": torch.ones(4, dtype=torch.bfloat16)}),
        ("sink_logits", {"sink_logits": torch.ones(8)[::2]}),
        ("schedule", {"schedule": "fast"}),
        ("out", {"out": torch.empty(2, 3, 4, 7)}),
        ("out", {"out": torch.empty(2, 3, 4, 8, dtype=torch.int32)}),
        ("out", {"out": torch.empty(2, 1, 4, 8).expand(2, 3, 4, 8)}),
        ("out", {"out": Q}),
    ],
)
def test_dense(named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        attention(**{"q": Q, "k": K, "v": K, **arguments})


VARLEN = {
    "q": torch.ones(3, 4, 8),
    "k": torch.ones(5, 2, 8),
    "v": torch.ones(5, 2, 8),
    "cu_seqlens_q": torch.tensor([0, 1, 3]),
    "cu_seqlens_k": torch.tensor([0, 5, 5]),
}


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("q", {"q": torch.ones(3, 32)}),
        ("v", {"v": torch.ones(5, 1, 8)}),
        ("cu_seqlens_q", {"cu_seqlens_q": torch.tensor([0, 1, 4])}),
        ("cu_seqlens_q", {"cu_seqlens_q": torch.tensor([1, 3])}),
        ("cu_seqlens_q", {"cu_seqlens_q": torch.tensor([0, 4, 3])}),
        ("cu_seqlens_k", {"cu_seqlens_k": torch.tensor([0, 5])}),
        ("cu_seqlens_k", {"cu_seqlens_k": torch.tensor([], dtype=torch.int64)}),
    ],
)
def test_varlen(named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        attention_varlen(**{**VARLEN, **arguments})


PAGED = {
    "q": torch.ones(3, 4, 8),
    "k_pages": torch.ones(6, 4, 2, 8),
    "v_pages": torch.ones(6, 4, 2, 8),
    "cu_seqlens_q": torch.tensor([0, 1, 3]),
    "key_lengths": torch.tensor([5, 8]),
    "block_tables": torch.tensor([[0, 1], [2, 5]]),
}


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("k_pages", {"k_pages": torch.ones(6, 4, 2, 7)}),
        ("k_pages", {"k_pages": torch.ones(6, 0, 2, 8), "v_pages": torch.ones(6, 0, 2, 8)}),
        ("v_pages", {"v_pages": torch.ones(6, 3, 2, 8)}),
        ("key_lengths", {"key_lengths": torch.tensor([5])}),
        ("block_tables", {"key_lengths": torch.tensor([5, -8])}),
        ("block_tables", {"key_lengths": torch.tensor([5, 9])}),
        ("block_tables", {"block_tables": torch.tensor([[0, 1], [2, 6]])}),
        ("block_tables", {"block_tables": torch.tensor([[0, -1], [2, 5]])}),
        ("block_tables", {"block_tables": torch.tensor([[0, 1]])}),
        ("block_tables", {"block_tables": torch.tensor([[0.0, 1.0], [2.0, 5.0]])}),
    ],
)
def test_paged(named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        attention_paged(**{**PAGED, **arguments})


def step(rows: list[int], past: list[int], tables: list[list[int]]) -> Sequences:
    return Sequences(torch.tensor(rows), torch.tensor(past), torch.tensor(tables, dtype=torch.int32))


ATTEND = {
    "q": torch.ones(3, 4, 8),
    "k": torch.ones(3, 2, 8),
    "v": torch.ones(3, 2, 8),
    "cache": KVCache.empty(4, 2, 8),
    "sequences": step([1, 2], [BLOCK_TOKENS - 2, BLOCK_TOKENS - 1], [[0, 0], [1, 3]]),
}
ANGLES = torch.ones(3, 8)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("q", {"q": torch.ones(3, 4, 6)}),
        ("k", {"k": torch.ones(2, 2, 8)}),
        ("v", {"v": torch.ones(3, 4, 8)}),
        ("cache", {"cache": ATTEND["k"]}),
        ("cache", {"q": torch.ones(3, 3, 8)}),
        ("sequences", {"sequences": [(1, 2)]}),
        ("sequences", {"sequences": Sequences(torch.tensor([3]), torch.tensor([0]))}),
        ("sequences", {"sequences": step([1], [30], [[0]])}),
        ("sequences", {"sequences": step([4, -1], [0, 5], [[0], [1]])}),
        ("sequences", {"sequences": step([1, 2], [-1, 0], [[0], [1]])}),
        ("sequences", {"sequences": step([1, 2], [BLOCK_TOKENS - 2, BLOCK_TOKENS - 1], [[0], [1]])}),
        ("sequences", {"sequences": step([1, 2], [BLOCK_TOKENS - 2, BLOCK_TOKENS - 1], [[0, 0], [1, 4]])}),
        ("cos", {"sin": ANGLES}),
        ("sin", {"cos": ANGLES}),
        ("cos", {"cos": ANGLES[:2], "sin": ANGLES[:2]}),
        ("cos", {"cos": ANGLES.double(), "sin": ANGLES}),
        ("sin", {"cos": ANGLES, "sin": torch.ones(4, 8)}),
        ("positions", {"positions": torch.tensor([0, 1, 2])}),
        ("positions", {"cos": ANGLES, "sin": ANGLES, "positions": torch.tensor([0, 1, 3])}),
        ("positions", {"cos": ANGLES, "sin": ANGLES, "positions": torch.tensor([0, 1])}),
        ("out", {"out": torch.ones(3, 32)}),
        ("out", {"out": ATTEND["q"]}),
    ],
)
def test_attend(named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        attend(**{**ATTEND, **arguments})


BLOCKS = KVCache.empty(4, 1, 16).data


def test_a_rotation_takes_an_even_number_of_elements():
    q, angles = torch.ones(1, 1, 7), ANGLES[:, :7]
    with pytest.raises(InputError, match=r"^cos turns 7 elements of heads of 7"):
        attend(q, q, q, KVCache.empty(1, 1, 7), step([1], [0], [[0]]), cos=angles, sin=angles)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("format", {"format": "int4"}),
        ("kv_heads", {"kv_heads": 0}),
        ("dim", {"dim": 257}),
        ("data", {"data": torch.empty(4, 100, dtype=torch.uint8)}),
        ("data", {"data": torch.empty(BLOCKS.shape)}),
        ("data", {"data": torch.empty(BLOCKS.numel() + 1, dtype=torch.uint8)[1:].view(BLOCKS.shape)}),
    ],
)
def test_cache(named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        KVCache(**{"data": BLOCKS, "kv_heads": 1, "dim": 16, "format": "bf16", **arguments})


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("rows", {"rows": [1, 2]}),
        ("rows", {"rows": torch.tensor([1, 2], dtype=torch.int32)}),
        ("past", {"past": torch.tensor([1])}),
        ("tables", {"tables": torch.tensor([[1], [2]])}),
        ("tables", {"tables": torch.zeros(2, 4, dtype=torch.int32)[:, ::2]}),
    ],
)
def test_sequences(named, arguments):
    with pytest.raises(InputError, match=rf"^{named} "):
        Sequences(**{"rows": torch.tensor([1, 2]), "past": torch.tensor([0, 0]), **arguments})


@pytest.mark.parametrize(
    ("named", "o", "lse"),
    [
        ("o", torch.ones(2, 3, 4).double(), torch.ones(2, 3)),
        ("o", torch.ones(2, 4, 3).transpose(1, 2), torch.ones(2, 3)),
        ("lse", torch.ones(2, 3, 4), torch.ones(2, 4)),
        ("lse", torch.ones(2, 3, 4), torch.ones(2, 3).to("meta")),
        ("lse", torch.ones(2, 3, 4), [1.0]),
    ],
)
def test_merging(named, o, lse):
    with pytest.raises(InputError, match=rf"^{named} "):
        merge_states(o, lse)
