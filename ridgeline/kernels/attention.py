"""Attention over tensors in their users' own layouts: dense, packed, paged.

One core computes them all (``csrc/attention``), and :func:`ridgeline.kernels.attend` on the project's own
cache. Conventions, the same everywhere:

- Query i of n sees key j of m by its position p = i + m - n (bottom-right): ``causal`` shows it the keys
  j <= p, ``window=(left, right)`` those of p - left <= j <= p + right, both ends included, -1 for no limit
  (causal makes right 0), and ``sinks`` the first keys besides, j < sinks (and j <= p if causal).
- Scores are ``scale`` times the product, then softcap tanh(score / softcap), then ALiBi, less
  slope |p - j|, then plus the ``distance_bias`` of j - p, then the mask. ``scale=None`` is 1 / sqrt(dim).
- ``sink_logits`` is a learned logit a head that only enlarges the softmax's denominator.
- Query head h reads key head h // (heads / kv_heads).
- A row that sees no key gives 0, and its LSE is -inf. The LSE is the natural logarithm of the sum of the
  exponentials of a row's scores (and of its sink), float32.
- Products of bf16 are summed in float32, and the softmax is float32 throughout; its weights are rounded to
  bf16 before they meet values of bf16. float32 tensors are float32 throughout.

``schedule`` is how the work is ordered: ``flash`` meets tiles of keys with a running softmax, ``split_kv``
lets several threads share one row's keys, to the same bits; ``naive`` has all scores in memory; ``auto`` is
one of the first two. A row's bits depend on its query and on the keys and values that it sees alone: not on
the batch, on the layout or on the number of threads.
"""

from __future__ import annotations

import torch

from ridgeline import _native
from ridgeline.errors import InputError
from ridgeline.kernels.attention_arguments import (
    Options,
    Sequences,
    check_groups,
    check_heads,
    check_same_dtype,
    check_sizes,
    head_rows,
    integers,
    result,
    run,
)
from ridgeline.kernels.checks import describe
from ridgeline.kernels.dispatch import on_gpu

_FORMATS = {torch.float32: _native.KvFormat.fp32, torch.bfloat16: _native.KvFormat.bf16}


@on_gpu
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
    """softmax(scores) v of a dense batch: ``[batch, queries, heads, value_dim]``.

    - ``q``: float32 or bfloat16 ``[batch, queries, heads, dim]``; ``k`` and ``v``, of q's dtype:
      ``[batch, keys, kv_heads, dim]`` and ``[batch, keys, kv_heads, value_dim]``; dims from 1 to 256. Any
      strides with the elements of a head side by side, so a transposed ``[batch, heads, queries, dim]`` too.
    - ``key_lengths``: int32 or int64 ``[batch]``, how many of the keys each sequence has; the rest is not
      read. None is all.
    - ``alibi_slopes`` and ``sink_logits``: float32 ``[heads]``.
    - ``distance_bias``: float32 ``[heads, 2 reach + 1]``, of distances from -reach on; one that is farther
      takes that of reach.
    - ``out``: where the result goes, float32 or bfloat16; a new tensor of q's dtype if None.

    With ``return_lse`` the result is (output, LSE), the LSE float32 ``[batch, heads, queries]``. The module's
    text says what the other arguments mean.

    Raises InputError that names the argument for a wrong dtype, shape, stride or device, and for a
    tensor that wants a gradient: there is none.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_heads(name, tensor, "batch, rows, heads, dim")
    check_same_dtype(q=q, k=k, v=v)
    batch, queries = q.shape[:2]
    keys, kv_heads = k.shape[1:3]
    check_sizes("k", k, (batch, keys, kv_heads, q.shape[3]), f"q {list(q.shape)}")
    check_sizes("v", v, (batch, keys, kv_heads, v.shape[3]), f"k {list(k.shape)}")
    check_groups(q, kv_heads, "k")
    rows = torch.full((batch,), queries)
    lengths = torch.full((batch,), keys) if key_lengths is None else _lengths(key_lengths, batch, keys)
    options = Options(
        causal, window, sinks, scale, softcap, alibi_slopes, sink_logits, schedule, distance_bias
    )
    out = result(out, q, k, v)
    return run(q, Sequences(rows, lengths - rows), _plain(k, v), options, out, return_lse=return_lse)


@on_gpu
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
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """As :func:`attention`, of sequences packed one after another: ``[rows, heads, value_dim]``.

    - ``q``: ``[rows, heads, dim]``; ``k``: ``[keys, kv_heads, dim]``; ``v``: ``[keys, kv_heads, value_dim]``.
    - ``cu_seqlens_q``, ``cu_seqlens_k``: int32 or int64 ``[sequences + 1]``: sequence i has rows
      cu[i] to cu[i + 1], the first 0 and the last the number of rows, or of keys.

    The LSE is ``[heads, rows]``. Raises InputError as :func:`attention` does.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_heads(name, tensor, "rows, heads, dim")
    check_same_dtype(q=q, k=k, v=v)
    keys, kv_heads = k.shape[:2]
    check_sizes("k", k, (keys, kv_heads, q.shape[2]), f"q {list(q.shape)}")
    check_sizes("v", v, (keys, kv_heads, v.shape[2]), f"k {list(k.shape)}")
    check_groups(q, kv_heads, "k")
    rows = _cumulative("cu_seqlens_q", cu_seqlens_q, q.shape[0])
    lengths = _cumulative("cu_seqlens_k", cu_seqlens_k, keys)
    check_sizes("cu_seqlens_k", cu_seqlens_k, tuple(cu_seqlens_q.shape), "cu_seqlens_q")
    options = Options(
        causal, window, sinks, scale, softcap, alibi_slopes, sink_logits, schedule, distance_bias
    )
    out = result(out, q, k, v)
    return run(q, Sequences(rows, lengths - rows), _plain(k, v), options, out, return_lse=return_lse)


@on_gpu
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
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """As :func:`attention_varlen`, of keys in pages of any size: ``[rows, heads, value_dim]``.

    - ``k_pages``: ``[pages, tokens, kv_heads, dim]``; ``v_pages``: ``[pages, tokens, kv_heads, value_dim]``.
    - ``key_lengths``: int32 or int64 ``[sequences]``, the keys of each sequence.
    - ``block_tables``: int32 or int64 ``[sequences, columns]``: key j of sequence i is token j % tokens of
      page ``block_tables[i, j // tokens]``.

    Raises InputError as :func:`attention` does, and for tables that name what is not there.
    """
    check_heads("q", q, "rows, heads, dim")
    for name, tensor in (("k_pages", k_pages), ("v_pages", v_pages)):
        check_heads(name, tensor, "pages, tokens, heads, dim")
    check_same_dtype(q=q, k_pages=k_pages, v_pages=v_pages)
    pages, tokens, kv_heads = k_pages.shape[:3]
    if tokens < 1:
        raise InputError(f"k_pages is {describe(k_pages)}; give pages of at least one token")
    check_sizes("k_pages", k_pages, (pages, tokens, kv_heads, q.shape[2]), f"q {list(q.shape)}")
    check_sizes("v_pages", v_pages, (pages, tokens, kv_heads, v_pages.shape[3]), "k_pages")
    check_groups(q, kv_heads, "k_pages")
    rows = _cumulative("cu_seqlens_q", cu_seqlens_q, q.shape[0])
    lengths = integers("key_lengths", key_lengths, 1, torch.int64)
    check_sizes("key_lengths", lengths, (len(rows),), "cu_seqlens_q")
    tables = integers("block_tables", block_tables, 2, torch.int32)
    check_sizes("block_tables", tables, (len(rows), tables.shape[1]), "cu_seqlens_q")
    sequences = Sequences(rows, lengths - rows, tables)
    sequences.check("block_tables", tokens, pages)
    options = Options(
        causal, window, sinks, scale, softcap, alibi_slopes, sink_logits, schedule, distance_bias
    )
    out = result(out, q, k_pages, v_pages)
    source = _plain(k_pages, v_pages, tokens)
    return run(q, sequences, source, options, out, return_lse=return_lse)


@on_gpu
def merge_states(o: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One attention over all keys from several, each over some of them.

    - ``o``: float32 ``[states, ..., dim]``, the outputs of the same rows over disjoint sets of keys.
    - ``lse``: float32 ``[states, ...]``, their natural logarithms of summed exponentials.

    Returns the output ``[..., dim]`` and LSE ``[...]``: with m the largest LSE and w = e^(lse - m),
    sum(w o) / sum(w) and m + ln sum(w). States are added in their order. An infinite LSE, of either sign, is
    a state without keys; of such alone the result is output 0 and LSE -inf.

    Raises InputError that names the argument for another dtype, shape, stride or device.
    """
    for name, tensor in (("o", o), ("lse", lse)):
        if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cpu":
            raise InputError(f"{name} is no tensor on the CPU; give one")
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise InputError(
                f"{name} is {describe(tensor)} of stride {tensor.stride()}; give contiguous float32"
            )
    if o.dim() < 2 or lse.shape != o.shape[:-1]:
        raise InputError(f"lse is {describe(lse)}; o {list(o.shape)} takes {list(o.shape[:-1])}")
    merged, merged_lse = torch.empty(o.shape[1:]), torch.empty(o.shape[1:-1])
    _native.merge_states(
        o.shape[0],
        merged_lse.numel(),
        o.shape[-1],
        o.data_ptr(),
        lse.data_ptr(),
        merged.data_ptr(),
        merged_lse.data_ptr(),
    )
    return merged, merged_lse


def _plain(k: torch.Tensor, v: torch.Tensor, page_tokens: int = 0) -> _native.KvSource:
    layout = _native.KvLayout(_FORMATS[k.dtype], k.shape[-2], k.shape[-1], v.shape[-1])
    return _native.KvSource.plain(layout, head_rows(k), head_rows(v), page_tokens)


def _lengths(tensor: torch.Tensor, batch: int, keys: int) -> torch.Tensor:
    lengths = integers("key_lengths", tensor, 1, torch.int64)
    check_sizes("key_lengths", lengths, (batch,), "the batch")
    if batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= keys:
        raise InputError(f"key_lengths has {lengths.tolist()}; give lengths from 0 to {keys}")
    return lengths


def _cumulative(name: str, tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Lengths of sequences from where they begin, and the last one ends."""
    starts = integers(name, tensor, 1, torch.int64)
    lengths = starts.diff()
    ends = len(starts) > 0 and starts[0] == 0 and starts[-1] == rows
    if not ends or bool((lengths < 0).any()):
        raise InputError(f"{name} is {starts.tolist()}; give numbers that grow from 0 to {rows}")
    return lengths
