"""Attention of many new tokens of a sequence: a prompt, or what is appended to one."""

from __future__ import annotations

import torch

from ridgeline import kernels
from ridgeline.compat.arguments import refuse_given, theirs
from ridgeline.compat.flashinfer.cascade import base_2
from ridgeline.compat.flashinfer.page import block_tables, nhd
from ridgeline.compat.flashinfer.plan import (
    NAMES,
    PagedAttention,
    Plan,
    check_positions,
    dtype_of,
    scaled,
)
from ridgeline.errors import InputError
from ridgeline.kernels.attention_arguments import check_heads, check_sizes, integers


def single_prefill_with_kv_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale_q: torch.Tensor | None = None,
    scale_k: torch.Tensor | None = None,
    scale_v: torch.Tensor | None = None,
    o_dtype: torch.dtype | None = None,
    custom_mask: torch.Tensor | None = None,
    packed_custom_mask: torch.Tensor | None = None,
    causal: bool = False,
    kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE",
    use_fp16_qk_reduction: bool = False,
    sm_scale: float | None = None,
    window_left: int = -1,
    logits_soft_cap: float | None = None,
    rope_scale: float | None = None,
    rope_theta: float | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    kv_cache_sf: tuple[torch.Tensor, torch.Tensor] | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Queries of one sequence over its keys: ``[queries, heads, value_dim]``.

    - ``q``: float32 or bfloat16 ``[queries, heads, dim]``, the last of them aligned to the last key.
    - ``k``, ``v``, of q's dtype: ``[keys, kv_heads, dim]`` (``NHD``) or ``[kv_heads, keys, dim]`` (``HND``);
      v may have a dim of its own.
    - ``o_dtype``: the result's, float32 or bfloat16; None is q's.
    - ``window_left``: a query sees this many keys before its own place, and with ``causal`` none behind it.
    - ``logits_soft_cap``: scores become cap tanh(score / cap); None or 0 is none.
    - ``sm_scale``: None is 1 / sqrt(dim). ``k_scale``: a factor of the scores; ``v_scale``: of the output.
    - ``rope_scale``, ``rope_theta``, ``backend``: accepted, and change nothing.

    With ``return_lse`` the result is (output, LSE), the LSE float32 ``[queries, heads]``, to base 2.

    Raises InputError that names the argument for a wrong dtype, shape, stride or device, for
    ``pos_encoding_mode`` other than ``NONE``, and for ``scale_q``, ``scale_k``, ``scale_v``, ``custom_mask``,
    ``packed_custom_mask``, ``use_fp16_qk_reduction`` and ``kv_cache_sf``.
    """
    check_positions(pos_encoding_mode)
    refuse_given(
        scale_q=scale_q,
        scale_k=scale_k,
        scale_v=scale_v,
        custom_mask=custom_mask,
        packed_custom_mask=packed_custom_mask,
        use_fp16_qk_reduction=use_fp16_qk_reduction,
        kv_cache_sf=kv_cache_sf,
    )
    with theirs(**NAMES):
        check_heads("q", q, "queries, heads, dim")
        for name, tensor in (("k", k), ("v", v)):
            check_heads(name, tensor, "keys, kv_heads, dim")
        out = torch.empty(1, *q.shape[:2], v.shape[2], dtype=dtype_of("o_dtype", o_dtype) or q.dtype)
        _, lse = kernels.attention(
            q[None],
            nhd(k, kv_layout)[None],
            nhd(v, kv_layout)[None],
            causal=causal,
            window=(window_left, -1),
            scale=scaled(sm_scale, q, k_scale),
            softcap=logits_soft_cap or 0.0,
            return_lse=True,
            out=out,
        )
    out = out[0]
    if v_scale is not None:
        out *= v_scale
    return (out, base_2(lse[0])) if return_lse else out


class BatchPrefillWithPagedKVCacheWrapper(PagedAttention):
    """Attention of any number of queries of each sequence of a batch: ``plan()`` once, ``run()`` a layer."""

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        head_dim_vo: int | None = None,
        custom_mask: torch.Tensor | None = None,
        packed_custom_mask: torch.Tensor | None = None,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        q_data_type: str | torch.dtype | None = None,
        kv_data_type: str | torch.dtype | None = None,
        o_data_type: str | torch.dtype | None = None,
        non_blocking: bool = True,
        *,
        fixed_split_size: int | None = None,
        disable_split_kv: bool = False,
        **others: object,
    ) -> None:
        """Says whose queries come and which pages hold their keys; :meth:`run` takes both, a layer at a time.

        - ``qo_indptr``: int32 ``[batch + 1]``, where the queries of each sequence begin, and the last ones
          end.
        - ``paged_kv_indptr``, ``paged_kv_indices``, ``paged_kv_last_page_len``: see
          :mod:`ridgeline.compat.flashinfer.page`.
        - ``num_qo_heads``, a multiple of ``num_kv_heads``; ``head_dim_qk``; ``head_dim_vo``, None for the
          same; ``page_size`` in tokens.
        - ``causal``, ``window_left``, ``logits_soft_cap``, ``sm_scale`` as in
          :func:`single_prefill_with_kv_cache`.
        - ``q_data_type``, ``kv_data_type``: what :meth:`run` is to hold q and the cache to; None, other than
          in FlashInfer the default, is either. ``o_data_type``: the result's; None is q's.
        - ``rope_scale``, ``rope_theta``, ``non_blocking``, ``fixed_split_size``, ``disable_split_kv``:
          accepted, and change nothing.

        Raises InputError that names the argument for a wrong dtype, shape or device, for page lists that do
        not fit together, for ``pos_encoding_mode`` other than ``NONE``, for ``custom_mask``,
        ``packed_custom_mask`` and ``use_fp16_qk_reduction``, and for arguments not listed here.
        """
        refuse_given(
            custom_mask=custom_mask,
            packed_custom_mask=packed_custom_mask,
            use_fp16_qk_reduction=use_fp16_qk_reduction,
            **others,
        )
        check_positions(pos_encoding_mode)
        q_dtype = dtype_of("q_data_type", q_data_type)
        kv_dtype = dtype_of("kv_data_type", kv_data_type) or q_dtype
        o_dtype = dtype_of("o_data_type", o_data_type) or q_dtype
        names = {name: f"paged_{name}" for name in ("kv_indptr", "kv_indices", "kv_last_page_len")}
        with theirs(**names):
            tables, lengths = block_tables(
                paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size, None
            )
        starts = integers("qo_indptr", qo_indptr, 1, torch.int64)
        check_sizes("qo_indptr", starts, (len(lengths) + 1,), "paged_kv_indptr")
        if starts[0] or bool((starts.diff() < 0).any()):
            raise InputError(f"qo_indptr is {starts.tolist()}; give numbers that grow from 0")
        self._plan = Plan(
            starts,
            tables,
            lengths,
            num_qo_heads,
            (page_size, num_kv_heads, head_dim_qk),
            (page_size, num_kv_heads, head_dim_qk if head_dim_vo is None else head_dim_vo),
            q_dtype,
            kv_dtype,
            o_dtype,
            causal,
            window_left,
            logits_soft_cap,
            sm_scale,
        )
