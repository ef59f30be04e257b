"""Attention of new tokens over all that came before: one query a sequence, or a few."""

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
from ridgeline.kernels.attention_arguments import check_heads


def single_decode_with_kv_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE",
    use_tensor_cores: bool = False,
    q_scale: float | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    window_left: int = -1,
    logits_soft_cap: float | None = None,
    sm_scale: float | None = None,
    rope_scale: float | None = None,
    rope_theta: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """One query over all keys: ``[heads, dim]``, of q's dtype.

    - ``q``: float32 or bfloat16 ``[heads, dim]``.
    - ``k``, ``v``, of q's dtype: ``[keys, kv_heads, dim]`` (``NHD``) or ``[kv_heads, keys, dim]`` (``HND``).
    - ``q_scale``, ``k_scale``: factors of the scores; ``v_scale``: a factor of the output.
    - ``window_left``: the query sees this many keys before the last one, and the last.
    - ``logits_soft_cap``: scores become cap tanh(score / cap); None or 0 is none.
    - ``sm_scale``: None is 1 / sqrt(dim).
    - ``use_tensor_cores``, ``rope_scale``, ``rope_theta``: accepted, and change nothing.

    With ``return_lse`` the result is (output, LSE), the LSE float32 ``[heads]``, to base 2.

    Raises InputError that names the argument for a wrong dtype, shape, stride or device, and for
    ``pos_encoding_mode`` other than ``NONE``.
    """
    check_positions(pos_encoding_mode)
    with theirs(**NAMES):
        check_heads("q", q, "heads, dim")
        for name, tensor in (("k", k), ("v", v)):
            check_heads(name, tensor, "keys, kv_heads, dim")
        out, lse = kernels.attention(
            q[None, None],
            nhd(k, kv_layout)[None],
            nhd(v, kv_layout)[None],
            window=(window_left, -1),
            scale=scaled(sm_scale, q, q_scale, k_scale),
            softcap=logits_soft_cap or 0.0,
            return_lse=True,
        )
    out = out[0, 0]
    if v_scale is not None:
        out *= v_scale
    return (out, base_2(lse[0])[0]) if return_lse else out


class BatchDecodeWithPagedKVCacheWrapper(PagedAttention):
    """Attention of one query, or a few, of each sequence of a batch: ``plan()`` once, ``run()`` a layer."""

    def plan(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        pos_encoding_mode: str = "NONE",
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: str | torch.dtype | None = None,
        kv_data_type: str | torch.dtype | None = None,
        o_data_type: str | torch.dtype | None = None,
        data_type: str | torch.dtype | None = None,
        sm_scale: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        non_blocking: bool = True,
        *,
        fixed_split_size: int | None = None,
        disable_split_kv: bool = False,
        q_len_per_req: int = 1,
        **others: object,
    ) -> None:
        """Says which pages the sequences have; :meth:`run` then takes their queries and the cache of a layer.

        - ``indptr``, ``indices``, ``last_page_len``: see :mod:`ridgeline.compat.flashinfer.page`.
        - ``num_qo_heads``, a multiple of ``num_kv_heads``; ``head_dim``; ``page_size`` in tokens.
        - ``q_data_type``, ``kv_data_type`` (or ``data_type`` for both): what :meth:`run` is to hold q and the
          cache to; None, other than in FlashInfer the default, is either. ``o_data_type``: the result's; None
          is q's.
        - ``q_len_per_req``: queries of each sequence, which end it; they see one another causally.
        - ``window_left``, ``logits_soft_cap``, ``sm_scale`` as in :func:`single_decode_with_kv_cache`.
        - ``rope_scale``, ``rope_theta``, ``non_blocking``, ``fixed_split_size``, ``disable_split_kv``:
          accepted, and change nothing.

        Raises InputError that names the argument for a wrong dtype, shape or device, for page lists that do
        not fit together, for ``pos_encoding_mode`` other than ``NONE`` and for arguments not listed here.
        """
        refuse_given(**others)
        check_positions(pos_encoding_mode)
        if q_len_per_req < 1:
            raise InputError(f"q_len_per_req is {q_len_per_req}; give at least 1")
        q_dtype = dtype_of("q_data_type", q_data_type or data_type)
        kv_dtype = dtype_of("kv_data_type", kv_data_type or data_type) or q_dtype
        o_dtype = dtype_of("o_data_type", o_data_type) or q_dtype
        names = {"kv_indptr": "indptr", "kv_indices": "indices", "kv_last_page_len": "last_page_len"}
        with theirs(**names):
            tables, lengths = block_tables(indptr, indices, last_page_len, page_size, None)
        page = (page_size, num_kv_heads, head_dim)
        self._plan = Plan(
            torch.arange(len(lengths) + 1) * q_len_per_req,
            tables,
            lengths,
            num_qo_heads,
            page,
            page,
            q_dtype,
            kv_dtype,
            o_dtype,
            q_len_per_req > 1,
            window_left,
            logits_soft_cap,
            sm_scale,
        )
