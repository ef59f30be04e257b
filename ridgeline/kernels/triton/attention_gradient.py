"""Attention that PyTorch differentiates, with dropout: for training on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.triton import attention_backward as kernels
from ridgeline.kernels.triton.arguments import (
    Policy,
    check_groups,
    check_heads,
    check_sizes,
)
from ridgeline.kernels.triton.attention import packed_layout
from ridgeline.kernels.triton.attention_launch import Layout, launch, lse_strides, or_, strides
from ridgeline.kernels.triton.configs import tiles
from ridgeline.kernels.triton.runtime import padded


def attention_with_gradient(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    sinks: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    max_rows: int | None = None,
    max_keys: int | None = None,
) -> torch.Tensor:
    """softmax(scores) v with gradients of q, k, v and ``sink_logits``; no gradient of slopes.

    Dense as :func:`ridgeline.kernels.triton.attention`, or with ``cu_seqlens_q`` and ``cu_seqlens_k`` packed
    as :func:`ridgeline.kernels.triton.attention_varlen`. ``dropout``, from 0 to below 1, is the share of the
    softmax's weights that become 0; the others are divided by 1 - dropout. Which do follows from ``seed`` and
    from sequence, head, query and key alone, so the backward pass needs no mask, and no tile's size matters.

    Raises InputError that names the argument for a wrong dtype, shape, stride, device or range.
    """
    packed = cu_seqlens_q is not None
    shape = "rows, heads, dim" if packed else "batch, rows, heads, dim"
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_heads(name, tensor, shape, None if tensor is q else q.device)
        if tensor.dtype != q.dtype:
            raise InputError(f"{name} is {tensor.dtype} and q {q.dtype}; give one dtype")
    check_sizes("k", k, (*k.shape[:-1], q.shape[-1]), "q")
    check_sizes("v", v, (*k.shape[:-1], v.shape[-1]), "k")
    check_groups(q, k.shape[-2], "k")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout!r}; give a number from 0 to below 1")
    if packed:
        if cu_seqlens_k is None:
            raise InputError("cu_seqlens_k is None, but cu_seqlens_q is given; give both or neither")
        layout = packed_layout(q, k, cu_seqlens_q, cu_seqlens_k, max_rows, max_keys)
    else:
        check_sizes("k", k, (q.shape[0], *k.shape[1:]), "q")
        layout = Layout(q.shape[0], q.shape[1], k.shape[1])
    policy = Policy.of(q, causal, window, sinks, scale, softcap, alibi_slopes, sink_logits)
    policy = replace(policy, dropout=float(dropout), seed=seed)
    return _Attention.apply(q, k, v, sink_logits, layout, policy)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sink_logits: torch.Tensor | None,
        layout: Layout,
        policy: Policy,
    ) -> torch.Tensor:
        out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
        lse = torch.empty(*q.shape[:-3], q.shape[-2], q.shape[-3], dtype=torch.float32, device=q.device)
        if out.numel():
            launch(q, k, v, layout, policy, "flash", out, lse)
        context.save_for_backward(q, k, v, out, lse, sink_logits)
        context.layout, context.policy = layout, policy
        return out

    @staticmethod
    def backward(context: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse, sink_logits = context.saved_tensors
        grad = grad.to(q.dtype)
        grad = grad if grad.stride(-1) == 1 or grad.shape[-1] == 1 else grad.contiguous()
        delta = (grad.float() * out.float()).sum(-1).transpose(-1, -2).contiguous()
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        if q.numel() and k.numel():
            _launch(q, k, v, grad, lse, delta, dq, dk, dv, context.layout, context.policy)
        sink_grad = None
        if sink_logits is not None:
            # The sink is a key of value 0, so that its weight's gradient is 0 less D.
            weights = torch.exp(sink_logits[:, None] - lse)
            weights = torch.where(lse == -torch.inf, 0.0, weights)
            sink_grad = -(weights * delta).sum(-1)
            sink_grad = sink_grad.sum(0) if sink_grad.dim() == 2 else sink_grad
        return dq, dk, dv, sink_grad, None, None


def _launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    layout: Layout,
    policy: Policy,
) -> None:
    heads, dim = q.shape[-2:]
    kv_heads, value_dim = v.shape[-2:]
    group = heads // kv_heads
    tile = tiles("backward", max(dim, value_dim), q.element_size(), q.device)
    starts = or_(layout.cu_rows, q), or_(layout.cu_keys, q), or_(policy.alibi_slopes, q)
    steps = [n for x in (q, k, v, grad) for n in strides(x)] + list(lse_strides(lse))
    lengths = layout.max_rows, layout.max_keys, kv_heads
    numbers = [
        *(policy.scale, policy.softcap),
        *(max(policy.left, 0), max(policy.right, 0), policy.sinks, policy.dropout, policy.seed),
    ]
    constants = {
        "GROUP": group,
        "DIM": dim,
        "VALUE_DIM": value_dim,
        "BLOCK_D": padded(dim),
        "BLOCK_E": padded(value_dim),
        "PACKED": layout.cu_rows is not None,
        **{name: is_on for name, is_on in policy.constants().items() if name != "DISTANCE"},
        **tile.options(),
    }
    cells = -(-layout.max_keys // tile.n)
    kernels.keys_and_values[(layout.batch * kv_heads * cells,)](
        q, k, v, grad, lse, delta, dk, dv, *starts, *steps, *strides(dk), *strides(dv),
        *lengths, cells, *numbers,
        BLOCK_M=tile.m, BLOCK_N=tile.n, **constants,
    )  # fmt: skip
    m, n = (tile.n, tile.m) if tile.n > tile.m else (tile.m, tile.n)  # here rows stay and keys go by
    cells = -(-layout.max_rows * group // m)
    kernels.queries[(layout.batch * kv_heads * cells,)](
        q, k, v, grad, lse, delta, dq, *starts, *steps, *strides(dq), *lengths, cells, *numbers,
        BLOCK_M=m, BLOCK_N=n, **constants,
    )  # fmt: skip
