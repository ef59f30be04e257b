"""``flash_attn_func`` and its relatives; the package's text has the conventions that they share."""

from __future__ import annotations

import torch

from ridgeline.compat.arguments import theirs
from ridgeline.compat.flash_attn.kv_cache import Cache, rotated
from ridgeline.compat.flash_attn.packed import attend_paged, attend_varlen, lengths, one_by_one, one_row_each
from ridgeline.errors import InputError
from ridgeline.kernels import attention
from ridgeline.kernels.attention_arguments import check_heads, check_sizes, integers

_NAMES = {"scale": "softmax_scale", "window": "window_size"}


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of a dense batch: ``[batch, seqlen_q, heads, dim]``, of q's dtype.

    - ``q``: float32 or bfloat16 ``[batch, seqlen_q, heads, dim]``; ``k`` and ``v``, of q's dtype:
      ``[batch, seqlen_k, kv_heads, dim]``, heads a multiple of kv_heads.
    - ``softmax_scale``: None is 1 / sqrt(dim).
    - ``window_size``: query i sees keys i + Sk - Sq - left to i + Sk - Sq + right, both included.
    - ``alibi_slopes``: float32 ``[heads]`` or ``[batch, heads]``.
    - ``deterministic``: accepted; every result is.

    With ``return_attn_probs`` the result is (output, LSE, probabilities): float32 ``[batch, heads,
    seqlen_q]`` and, as in FlashAttention without dropout, no elements.

    Raises InputError that names the argument for a wrong dtype, shape, stride or device, for ``dropout_p``
    other than 0, and for a tensor that wants a gradient.
    """
    _refuse_dropout(dropout_p)
    options = {"scale": softmax_scale, "causal": causal, "window": window_size, "softcap": softcap}
    with theirs(**_NAMES):
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            check_heads(name, tensor, "batch, seqlen, heads, dim")
        batch, rows, heads, _ = q.shape
        if one_row_each(alibi_slopes, batch, heads):
            check_sizes("k", k, (batch, *k.shape[1:]), "q")
            check_sizes("v", v, (batch, *v.shape[1:]), "q")
            out, lse = _dense(*one_by_one(q, k, v, alibi_slopes, **options), batch, rows)
        else:
            out, lse = attention(q, k, v, **options, alibi_slopes=alibi_slopes, return_lse=True)
    return (out, lse, out.new_empty(0)) if return_attn_probs else out


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of sequences packed one after another, as :func:`flash_attn_func`: ``[total_q, heads, dim]``.

    - ``q``: ``[total_q, heads, dim]``; ``k`` and ``v``: ``[total_k, kv_heads, dim]``, or with ``block_table``
      pages ``[pages, page_size, kv_heads, dim]``.
    - ``cu_seqlens_q``, ``cu_seqlens_k``: int32 ``[batch + 1]``, where each sequence begins, and the last one
      ends. The last of q's is total_q, and without a ``block_table`` that of k's total_k.
    - ``max_seqlen_q``, ``max_seqlen_k``: the longest sequences, or more.
    - ``block_table``: int32 ``[batch, pages of a sequence]``: token j of sequence i is token j % page_size of
      page ``block_table[i, j // page_size]``.

    With ``return_attn_probs`` the LSE is ``[heads, total_q]``. Raises InputError as :func:`flash_attn_func`
    does, and for cumulative lengths, longest lengths and tables that do not fit the tensors.
    """
    _refuse_dropout(dropout_p)
    options = {"scale": softmax_scale, "causal": causal, "window": window_size, "softcap": softcap}
    with theirs(**_NAMES, k_pages="k", v_pages="v", key_lengths="cu_seqlens_k", block_tables="block_table"):
        check_heads("q", q, "total, heads, dim")
        for name, tensor in (("k", k), ("v", v)):
            check_heads(
                name, tensor, "total, heads, dim" if block_table is None else "pages, page_size, heads, dim"
            )
        rows = lengths("cu_seqlens_q", cu_seqlens_q, "max_seqlen_q", max_seqlen_q)
        keys = lengths("cu_seqlens_k", cu_seqlens_k, "max_seqlen_k", max_seqlen_k)
        check_sizes("cu_seqlens_k", keys, tuple(rows.shape), "cu_seqlens_q")
        if block_table is None:
            out, lse = attend_varlen(q, k, v, rows, keys, alibi_slopes, **options)
        else:
            tables = integers("block_table", block_table, 2, torch.int32)
            check_sizes("block_table", tables, (len(rows), tables.shape[1]), "cu_seqlens_q")
            out, lse = attend_paged(q, k, v, rows, keys, tables, alibi_slopes, **options)
    return (out, lse, out.new_empty(0)) if return_attn_probs else out


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: int | torch.Tensor | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: torch.Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Rotates, appends to a cache in place and attends to all of it: ``[batch, seqlen_q, heads, dim]``.

    - ``q``: float32 or bfloat16 ``[batch, seqlen_q, heads, dim]``.
    - ``k_cache``, ``v_cache``, of q's dtype: ``[rows, seqlen, kv_heads, dim]``, one row a sequence, or with
      ``block_table`` pages ``[pages, page_size, kv_heads, dim]``.
    - ``k``, ``v``, of q's dtype: ``[batch, new, kv_heads, dim]``, written behind ``cache_seqlens`` tokens.
    - ``rotary_cos``, ``rotary_sin``: float32 or bfloat16 ``[angles, rotary_dim / 2]``; the first rotary_dim
      dims of k and q are rotated: pairs (2i, 2i + 1) if ``rotary_interleaved``, else (i, i + rotary_dim / 2).
      New key i takes angle ``cache_seqlens`` + i; so does query i if ``causal`` or ``window_size`` limits
      anything, else every query takes angle ``cache_seqlens``. Only with ``k``.
    - ``cache_seqlens``: tokens that each sequence had before this call, an int or int32 ``[batch]``; None
      (not with ``k``) is all of the cache.
    - ``cache_batch_idx``: int32 ``[batch]``, the row of each sequence; not with ``block_table``.
    - ``cache_leftpad``: int32 ``[batch]``, where each sequence begins in its row; not with ``block_table``.
    - ``block_table``: int32 ``[batch, pages of a sequence]``, as in :func:`flash_attn_varlen_func`.
    - ``num_splits``: accepted; a row's keys are shared among threads as suits, to the same bits.

    ``softmax_scale``, ``causal``, ``window_size``, ``softcap`` and ``alibi_slopes`` are those of
    :func:`flash_attn_func`, over the keys that were there and the new ones. With ``return_softmax_lse`` the
    result is (output, LSE), the LSE float32 ``[batch, heads, seqlen_q]``.

    Raises InputError that names the argument for a wrong dtype, shape, stride or device, for tokens that the
    cache has no room for, and for tables that name what is not there. Nothing has been written then, unless
    it is the scale, window, softcap or slopes that do not fit.
    """
    options = {"scale": softmax_scale, "causal": causal, "window": window_size, "softcap": softcap}
    names = {"k_pages": "k_cache", "v_pages": "v_cache", "block_tables": "block_table"}
    with theirs(**_NAMES, **names, key_lengths="cache_seqlens"):
        cache = Cache.of(q, k_cache, v_cache, cache_batch_idx, cache_leftpad, block_table)
        past = cache.past(cache_seqlens)
        if k is not None or v is not None:
            cache.check_new(q, k, v, cache_seqlens)
        if rotary_cos is not None or rotary_sin is not None:
            ordered = causal or window_size not in ((-1, -1), [-1, -1])
            q, k = rotated(q, k, rotary_cos, rotary_sin, past, ordered, rotary_interleaved)
        if k is not None:
            cache.append(k, v, past)
            past = past + k.shape[1]
        batch, rows = q.shape[:2]
        out, lse = attend_paged(
            q.flatten(0, 1),
            k_cache,
            v_cache,
            torch.full((batch,), rows),
            past,
            cache.tables,
            alibi_slopes,
            cache.first,
            **options,
        )
    out, lse = _dense(out, lse, batch, rows)
    return (out, lse) if return_softmax_lse else out


def _refuse_dropout(dropout_p: float) -> None:
    if dropout_p != 0:
        raise InputError(f"dropout_p is {dropout_p!r}; give 0, there is no dropout here")


def _dense(out: torch.Tensor, lse: torch.Tensor, batch: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[batch, rows, heads, dim] and [batch, heads, rows] from packed ones."""
    return out.unflatten(0, (batch, rows)), lse.unflatten(1, (batch, rows)).transpose(0, 1).contiguous()
