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

from dataclasses import dataclass

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.triton import attention_forward as kernels
from ridgeline.kernels.triton import naive
from ridgeline.kernels.triton.arguments import (
    Policy,
    check_floats,
    check_groups,
    check_heads,
    check_integers,
    check_no_gradient,
    check_schedule,
    check_sizes,
    cumulative,
    describe,
    result,
)
from ridgeline.kernels.triton.configs import SPLIT, Tiles, tiles
from ridgeline.kernels.triton.runtime import OPTIONS, padded

_WAY_OUT = "use ridgeline.kernels.triton.attention_with_gradient"
_STATES = 16


@dataclass(frozen=True)
class Layout:
    """Where a call's rows and keys lie. ``cu_rows`` None is dense rows; keys are packed by ``cu_keys``, in
    pages by ``tables``, else dense; ``lengths`` are each sequence's keys, None for ``max_keys`` of them."""

    batch: int
    max_rows: int
    max_keys: int
    cu_rows: torch.Tensor | None = None
    cu_keys: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    tables: torch.Tensor | None = None


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
    check_sizes("cu_seqlens_k", cu_seqlens_k, tuple(cu_seqlens_q.shape), "cu_seqlens_q")
    cumulative("cu_seqlens_q", cu_seqlens_q, q.shape[0])
    cumulative("cu_seqlens_k", cu_seqlens_k, keys)
    layout = Layout(
        len(cu_seqlens_q) - 1,
        _longest(cu_seqlens_q.diff()) if max_rows is None else max_rows,
        _longest(cu_seqlens_k.diff()) if max_keys is None else max_keys,
        check_integers("cu_seqlens_q", cu_seqlens_q, 1, q.device),
        check_integers("cu_seqlens_k", cu_seqlens_k, 1, q.device),
    )
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
        kernels.merge[(rows, 1, 1)](
            o, lse, merged, merged_lse, o, o, o,
            rows * dim, 0, dim, 0, rows, 0, 1, 0, 0, dim, 0, 0, 1, 0, rows, 0, states,
            dim, padded(dim), _STATES, False, False, False, 0, **OPTIONS,
        )  # fmt: skip
    return merged, merged_lse


def run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    policy: Policy,
    schedule: str,
    return_lse: bool,
    out: torch.Tensor | None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """One attention of checked arguments."""
    check_schedule(schedule)
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise InputError(f"{name} is {tensor.dtype} and q {q.dtype}; give one dtype")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_no_gradient(name, tensor, _WAY_OUT)
    check_groups(q, k.shape[-2], "k")
    out = result(out, (*q.shape[:-1], v.shape[-1]), q.dtype, q.device)
    lse = torch.empty(*q.shape[:-3], q.shape[-2], q.shape[-3], dtype=torch.float32, device=q.device)
    if q.numel() and out.numel():
        if schedule == "naive":
            naive.attention_into(q, k, v, layout, policy, out, lse)
        else:
            launch(q, k, v, layout, policy, schedule, out, lse)
    return (out, lse) if return_lse else out


def launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    policy: Policy,
    schedule: str,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """The forward kernel into ``out`` and ``lse``, and the merging of its splits."""
    heads, dim = q.shape[-2:]
    kv_heads, value_dim = v.shape[-2:]
    group = heads // kv_heads
    fixed = schedule == "invariant"
    one_tile = layout.max_rows * group <= tiles("decode", dim, q.element_size(), q.device).m
    # One split alone has the bits of its merging, but for a sink's logit, which is added elsewhere; and only
    # splits take a window's tiles in their order.
    splitting = layout.max_keys > SPLIT or policy.left >= 0 or policy.sink_logits is not None
    split = schedule == "split_kv" or (
        splitting if fixed else schedule == "auto" and one_tile and layout.max_keys > SPLIT
    )
    splits = max(1, -(-layout.max_keys // SPLIT)) if split else 1
    kernel = "attention_invariant" if fixed else "decode" if one_tile else "attention"
    tile = tiles(kernel, max(dim, value_dim), q.element_size(), q.device)
    o, o_lse = out, lse
    if split:
        o = torch.empty(splits, *out.shape, dtype=torch.float32, device=q.device)
        o_lse = torch.empty(splits, *lse.shape, dtype=torch.float32, device=q.device)
    cells = -(-layout.max_rows * group // tile.m)
    grid = cells * splits, kv_heads, layout.batch
    _forward(q, k, v, layout, policy, tile, o, o_lse, grid, split, splits, not fixed)
    if split:
        _merge(o, o_lse, layout, policy, out, lse)


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    policy: Policy,
    tile: Tiles,
    o: torch.Tensor,
    lse: torch.Tensor,
    grid: tuple[int, int, int],
    split: bool,
    splits: int,
    fused: bool,
) -> None:
    dim, value_dim = q.shape[-1], v.shape[-1]
    paged = layout.tables is not None
    table = layout.tables if paged else q
    kernels.forward[grid](
        q, k, v, o, lse,
        _or(layout.cu_rows, q), _or(layout.cu_keys, q), _or(layout.lengths, q), table,
        _or(policy.alibi_slopes, q), _or(policy.sink_logits, q), _or(policy.distance_bias, q),
        *_strides(q), *_strides(k), *_strides(v),
        o.stride(0) if split else 0, *_strides(o[0] if split else o),
        lse.stride(0) if split else 0, *_lse_strides(lse[0] if split else lse),
        table.stride(0) if paged else 0,
        layout.max_rows, layout.max_keys, splits,
        policy.scale, policy.softcap, max(policy.left, 0), max(policy.right, 0), policy.sinks,
        policy.dropout, policy.seed, policy.reach,
        GROUP=q.shape[-2] // k.shape[-2], DIM=dim, VALUE_DIM=value_dim,
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_D=padded(dim), BLOCK_E=padded(value_dim),
        PACKED=layout.cu_rows is not None, PACKED_KEYS=layout.cu_keys is not None,
        LENGTHS=layout.lengths is not None, PAGED=paged, PAGE=k.shape[1] if paged else 1,
        **policy.constants(),
        SINK=policy.sink_logits is not None and not split,  # enters once, not once a split
        SPLIT=SPLIT if split else 0,
        **tile.options(fused=fused),
    )  # fmt: skip


def _merge(
    partial: torch.Tensor,
    partial_lse: torch.Tensor,
    layout: Layout,
    policy: Policy,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    lengths = layout.lengths
    if layout.cu_keys is not None:
        lengths = layout.cu_keys.diff()
    kernels.merge[(layout.max_rows, out.shape[-2], layout.batch)](
        partial, partial_lse, out, lse,
        _or(layout.cu_rows, out), _or(lengths, out), _or(policy.sink_logits, out),
        partial.stride(0), *_strides(partial[0]), partial_lse.stride(0), *_lse_strides(partial_lse[0]),
        *_strides(out), *_lse_strides(lse), layout.max_rows, layout.max_keys, 0,
        out.shape[-1], padded(out.shape[-1]), _STATES, layout.cu_rows is not None, lengths is not None,
        policy.sink_logits is not None, SPLIT, **OPTIONS,
    )  # fmt: skip


def _longest(lengths: torch.Tensor) -> int:
    return int(lengths.max()) if len(lengths) else 0


def _or(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """A kernel's argument that it does not read still is a tensor."""
    return other if tensor is None else tensor


def _strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Of a sequence or page, a row and a head."""
    return (x.stride(0) if x.dim() == 4 else 0, *x.stride()[-3:-1])


def _lse_strides(lse: torch.Tensor) -> tuple[int, int, int]:
    return (lse.stride(0) if lse.dim() == 3 else 0, lse.stride(-1), lse.stride(-2))


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
