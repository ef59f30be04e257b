"""Attention on a GPU: the functions of :mod:`ridgeline.kernels.attention`, with their conventions.

What differs from the CPU's:

- float16 is read, too. Weights of the softmax are rounded to the dtype of the values.
- Whole numbers may lie on the GPU or on the CPU. Those on the GPU are not waited for, so what they name has
  to be there; give ``max_rows`` and ``max_keys``, bounds of what one sequence has, or they are read back.
- ``split_kv`` takes keys in splits of one absolute size and merges their results in order. Its grid follows
  from ``max_keys``, not from the lengths: with both bounds given one CUDA graph serves all lengths. ``auto``
  takes it where a sequence's rows fit one tile and its keys more than a split. Its bits depend neither on the
  batch nor on ``max_keys``; ``flash`` differs from it by rounding.
- ``invariant`` takes one tile for every number of rows, and splits wherever there is more than one, so that a
  row of a prompt has the bits that it has alone. Its partial results take splits * rows * heads * dim floats.
- An infinity or a NaN in a value that a row does not see may spoil that row if a neighbour in its tile sees
  it. Keys and values beyond a sequence's length are never read.
"""

from __future__ import annotations

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.triton.arguments import (
    Policy,
    check_floats,
    check_heads,
    check_integers,
    check_sizes,
    cumulative,
    describe,
)
from ridgeline.kernels.triton.attention_launch import STATES, Layout, run
from ridgeline.kernels.triton.attention_merge import merge
from ridgeline.kernels.triton.runtime import OPTIONS, padded


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    sinks: int = 0,
    key_lengths: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
    schedule: str = "auto",
    return_lse: bool = False,
    out: torch.Tensor | None = None,
    distance_bias: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """As :func:`ridgeline.kernels.attention`, of tensors on the GPU."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_heads(name, tensor, "batch, rows, heads, dim", None if tensor is q else q.device)
    batch, rows = q.shape[:2]
    keys, kv_heads = k.shape[1:3]
    check_sizes("k", k, (batch, keys, kv_heads, q.shape[3]), f"q {list(q.shape)}")
    check_sizes("v", v, (batch, keys, kv_heads, v.shape[3]), f"k {list(k.shape)}")
    if key_lengths is not None:
        check_sizes("key_lengths", key_lengths, (batch,), "the batch")
        known = key_lengths.tolist() if key_lengths.device.type == "cpu" else []
        if any(not 0 <= n <= keys for n in known):
            raise InputError(f"key_lengths has {known}; give lengths from 0 to {keys}")
        key_lengths = check_integers("key_lengths", key_lengths, 1, q.device)
    layout = Layout(batch, rows, keys, lengths=key_lengths)
    policy = Policy.of(q, causal, window, sinks, scale, softcap, alibi_slopes, sink_logits, distance_bias)
    return run(q, k, v, layout, policy, schedule, return_lse, out)


def attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    sinks: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
    schedule: str = "auto",
    return_lse: bool = False,
    out: torch.Tensor | None = None,
    distance_bias: torch.Tensor | None = None,
    max_rows: int | None = None,
    max_keys: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """As :func:`ridgeline.kernels.attention_varlen`, of tensors on the GPU."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_heads(name, tensor, "rows, heads, dim", None if tensor is q else q.device)
    keys, kv_heads = k.shape[:2]
    check_sizes("k", k, (keys, kv_heads, q.shape[2]), f"q {list(q.shape)}")
    check_sizes("v", v, (keys, kv_heads, v.shape[2]), f"k {list(k.shape)}")
    layout = packed_layout(q, k, cu_seqlens_q, cu_seqlens_k, max_rows, max_keys)
    policy = Policy.of(q, causal, window, sinks, scale, softcap, alibi_slopes, sink_logits, distance_bias)
    return run(q, k, v, layout, policy, schedule, return_lse, out)


def attention_paged(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    key_lengths: torch.Tensor,
    block_tables: torch.Tensor,
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    sinks: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
    schedule: str = "auto",
    return_lse: bool = False,
    out: torch.Tensor | None = None,
    distance_bias: torch.Tensor | None = None,
    max_rows: int | None = None,
    max_keys: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """As :func:`ridgeline.kernels.attention_paged`, of tensors on the GPU. Without ``max_keys`` a sequence
    may have as many keys as its row of ``block_tables`` has places for."""
    check_heads("q", q, "rows, heads, dim")
    for name, tensor in (("k_pages", k_pages), ("v_pages", v_pages)):
        check_heads(name, tensor, "pages, tokens, heads, dim", q.device)
    pages, tokens, kv_heads = k_pages.shape[:3]
    if tokens < 1:
        raise InputError(f"k_pages is {describe(k_pages)}; give pages of at least one token")
    check_sizes("k_pages", k_pages, (pages, tokens, kv_heads, q.shape[2]), f"q {list(q.shape)}")
    check_sizes("v_pages", v_pages, (pages, tokens, kv_heads, v_pages.shape[3]), "k_pages")
    cumulative("cu_seqlens_q", cu_seqlens_q, q.shape[0])
    batch = len(cu_seqlens_q) - 1
    check_sizes("key_lengths", key_lengths, (batch,), "cu_seqlens_q")
    check_sizes("block_tables", block_tables, (batch, *block_tables.shape[1:]), "cu_seqlens_q")
    _check_tables(key_lengths, block_tables, tokens, pages)
    places = block_tables.shape[-1] * tokens
    layout = Layout(
        batch,
        _longest(cu_seqlens_q.diff()) if max_rows is None else max_rows,
        places if max_keys is None else min(max_keys, places),
        check_integers("cu_seqlens_q", cu_seqlens_q, 1, q.device),
        lengths=check_integers("key_lengths", key_lengths, 1, q.device),
        tables=check_integers("block_tables", block_tables, 2, q.device),
    )
    policy = Policy.of(q, causal, window, sinks, scale, softcap, alibi_slopes, sink_logits, distance_bias)
    return run(q, k_pages, v_pages, layout, policy, schedule, return_lse, out)


def merge_states(o: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`ridgeline.kernels.merge_states`, of tensors on the GPU."""
    for name, tensor in (("o", o), ("lse", lse)):
        check_floats(name, tensor)
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise InputError(f"{name} is {describe(tensor)}; give contiguous float32")
    if o.dim() < 2 or lse.shape != o.shape[:-1]:
        raise InputError(f"lse is {describe(lse)}; o {list(o.shape)} takes {list(o.shape[:-1])}")
    merged, merged_lse = torch.empty_like(o[0]), torch.empty_like(lse[0])
    states, rows, dim = o.shape[0], merged_lse.numel(), o.shape[-1]
    if rows:
        merge[(rows,)](
            o, lse, merged, merged_lse, o, o, o,
            rows * dim, 0, dim, 0, rows, 0, 1, 0, 0, dim, 0, 0, 1, 0, rows, 1, 0, states, 0, 0,
            dim, padded(dim), STATES, False, False, False, False, False, 0, **OPTIONS,
        )  # fmt: skip
    return merged, merged_lse


def packed_layout(
    q: torch.Tensor,
    k: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_rows: int | None,
    max_keys: int | None,
) -> Layout:
    """The layout of packed rows and keys, whose bounds are read back where they are not given."""
    check_sizes("cu_seqlens_k", cu_seqlens_k, tuple(cu_seqlens_q.shape), "cu_seqlens_q")
    cumulative("cu_seqlens_q", cu_seqlens_q, q.shape[0])
    cumulative("cu_seqlens_k", cu_seqlens_k, k.shape[0])
    return Layout(
        len(cu_seqlens_q) - 1,
        _longest(cu_seqlens_q.diff()) if max_rows is None else max_rows,
        _longest(cu_seqlens_k.diff()) if max_keys is None else max_keys,
        check_integers("cu_seqlens_q", cu_seqlens_q, 1, q.device),
        check_integers("cu_seqlens_k", cu_seqlens_k, 1, q.device),
    )


def _longest(lengths: torch.Tensor) -> int:
    return int(lengths.max()) if len(lengths) else 0


def _check_tables(lengths: torch.Tensor, tables: torch.Tensor, tokens: int, pages: int) -> None:
    """Whether lengths and tables that lie on the CPU stay inside the pages."""
    if lengths.device.type != "cpu" or tables.device.type != "cpu" or not len(lengths):
        return
    places = tables.shape[-1] * tokens
    if not 0 <= int(lengths.min()) <= int(lengths.max()) <= places:
        raise InputError(f"key_lengths has {lengths.tolist()}; block_tables has places for {places} keys")
    used = torch.arange(tables.shape[-1]) < -(-lengths[:, None] // tokens)
    named = tables[used]
    if len(named) and not 0 <= int(named.min()) <= int(named.max()) < pages:
        raise InputError(f"block_tables names pages beyond the {pages} of k_pages; give numbers of pages")
