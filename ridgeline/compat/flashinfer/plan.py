"""What FlashInfer's batch wrappers share: a plan, made once a step, that runs on the cache of each layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ridgeline import kernels
from ridgeline.compat.arguments import refuse_given, theirs
from ridgeline.compat.flashinfer.cascade import base_2
from ridgeline.compat.flashinfer.page import PagedCache, check_layout, unpack
from ridgeline.errors import InputError
from ridgeline.kernels.attention_arguments import check_heads, check_sizes

#: The kernels' names of what both the wrappers and the single functions take.
NAMES = {"scale": "sm_scale", "window": "window_left", "softcap": "logits_soft_cap"}
_PAGED = {
    "k_pages": "paged_kv_cache",
    "v_pages": "paged_kv_cache",
    "block_tables": "kv_indices",
    "sink_logits": "sinks",
}


@dataclass(frozen=True)
class Plan:
    """A batch of queries and where their keys lie.

    ``starts``: where the queries of each sequence begin, and the last ones end. ``tables``, ``lengths``: the
    pages and the number of its keys. ``k_page``, ``v_page``: (tokens, kv_heads, dim). Dtypes are None for
    any. The rest as the wrappers' ``plan`` has it.
    """

    starts: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor
    num_qo_heads: int
    k_page: tuple[int, int, int]
    v_page: tuple[int, int, int]
    q_dtype: torch.dtype | None
    kv_dtype: torch.dtype | None
    o_dtype: torch.dtype | None
    causal: bool
    window_left: int
    logits_soft_cap: float | None
    sm_scale: float | None


class PagedAttention:
    """A wrapper without a plan yet.

    ``float_workspace_buffer`` may be None: it is not used. ``use_tensor_cores`` and ``backend`` are accepted,
    and change nothing. Raises InputError for an unknown ``kv_layout``, ``use_cuda_graph`` and what goes with
    it.
    """

    def __init__(
        self,
        float_workspace_buffer: torch.Tensor | None = None,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        *,
        use_tensor_cores: bool = False,
        backend: str = "auto",
        **others: object,
    ) -> None:
        refuse_given(use_cuda_graph=use_cuda_graph, **others)
        check_layout(kv_layout)
        self._kv_layout = kv_layout
        self._plan: Plan | None = None

    def run(
        self,
        q: torch.Tensor,
        paged_kv_cache: PagedCache,
        *,
        q_scale: float | None = None,
        k_scale: float | None = None,
        v_scale: float | None = None,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        return_lse: bool = False,
        enable_pdl: bool | None = None,
        window_left: int | None = None,
        sinks: torch.Tensor | None = None,
        **others: object,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attention of the planned batch: ``[rows, heads, value_dim]``.

        - ``q``: float32 or bfloat16 ``[rows, heads, dim]``, as planned.
        - ``paged_kv_cache``: of q's dtype, see :mod:`ridgeline.compat.flashinfer.page`.
        - ``q_scale``, ``k_scale``: factors of the scores; ``v_scale``: a factor of the output.
        - ``out``: where the result goes, float32 or bfloat16. ``lse``: where the LSE goes, float32.
        - ``window_left``: instead of the plan's.
        - ``sinks``: float32 ``[heads]``, logits that only enlarge the softmax's denominator; the LSE counts
          them.
        - ``enable_pdl``: accepted, and changes nothing.

        With ``return_lse`` the result is (output, LSE), the LSE float32 ``[rows, heads]``, to base 2.

        Raises InputError that names the argument for a wrong dtype, shape, stride or device, for what differs
        from the plan, for pages that the cache lacks, and if there is no plan.
        """
        refuse_given(**others)
        plan = self._planned(q)
        k_pages, v_pages = unpack(paged_kv_cache, self._kv_layout)
        check_sizes("paged_kv_cache", k_pages, (len(k_pages), *plan.k_page), "plan()")
        check_sizes("paged_kv_cache", v_pages, (len(v_pages), *plan.v_page), "plan()")
        if plan.kv_dtype not in (None, k_pages.dtype):
            raise InputError(f"paged_kv_cache is {k_pages.dtype}; plan() was given {plan.kv_dtype}")
        if out is None:
            out = torch.empty(*q.shape[:2], plan.v_page[2], dtype=plan.o_dtype or q.dtype)
        with theirs(**NAMES, **_PAGED):
            _, natural = kernels.attention_paged(
                q,
                k_pages,
                v_pages,
                plan.starts,
                plan.lengths,
                plan.tables,
                causal=plan.causal,
                window=(plan.window_left if window_left is None else window_left, -1),
                scale=scaled(plan.sm_scale, q, q_scale, k_scale),
                softcap=plan.logits_soft_cap or 0.0,
                sink_logits=sinks,
                return_lse=True,
                out=out,
            )
        if v_scale is not None:
            out *= v_scale
        if not return_lse:
            return out
        return out, base_2(natural) if lse is None else lse.copy_(base_2(natural))

    def run_return_lse(
        self, q: torch.Tensor, paged_kv_cache: PagedCache, **options: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`run` with ``return_lse``."""
        return self.run(q, paged_kv_cache, return_lse=True, **options)

    def _planned(self, q: torch.Tensor) -> Plan:
        """The plan, if q is what it was made for."""
        plan = self._plan
        if plan is None:
            raise InputError("run() was called before plan(); say first which pages the queries see")
        check_heads("q", q, "rows, heads, dim")
        check_sizes("q", q, (int(plan.starts[-1]), plan.num_qo_heads, plan.k_page[2]), "plan()")
        if plan.q_dtype not in (None, q.dtype):
            raise InputError(f"q is {q.dtype}; plan() was given {plan.q_dtype}")
        return plan


def scaled(sm_scale: float | None, q: torch.Tensor, *factors: float | None) -> float | None:
    """The softmax's scale times what quantised queries and keys were divided by; None if all are None."""
    if all(factor is None for factor in factors):
        return sm_scale
    scale = q.shape[-1] ** -0.5 if sm_scale is None else sm_scale
    for factor in factors:
        scale *= 1.0 if factor is None else factor
    return scale


def check_positions(pos_encoding_mode: str) -> None:
    if pos_encoding_mode != "NONE":
        raise InputError(
            f"pos_encoding_mode is {pos_encoding_mode!r}; give NONE, and rotate q and k before the call"
        )


def dtype_of(name: str, dtype: str | torch.dtype | None) -> torch.dtype | None:
    """float32 or bfloat16 by itself or by its name; None for any."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (None, torch.float32, torch.bfloat16) or (found is None and dtype is not None):
        raise InputError(f"{name} is {dtype}; give float32 or bfloat16, or None for either")
    return found
