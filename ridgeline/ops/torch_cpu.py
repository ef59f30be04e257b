"""The torch-cpu reading: PyTorch's operators, in the dtype that the weights are stored in.

A peer of the native kernels, and the way to run what they don't read (fp16). Biases go into the matrix
product and scores stay on chip; residuals and activations work in place. ``lowering`` tells the count
which kernels that makes, so that a prediction counts what really runs.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ridgeline.ops import reference
from ridgeline.ops.lowering import TORCH_CPU
from ridgeline.ops.memory import keep_freed_memory
from ridgeline.ops.records import Activation, Mask, Norm, Score, Weight
from ridgeline.ops.reference import Reference, activate
from ridgeline.ops.torch_batch import TorchSpans, visible
from ridgeline.ops.torch_diffusion import modulate, multiply_by_sequence


class TorchCpu(Reference):
    """The operators on PyTorch's CPU kernels, for weights that are tensors; see
    :class:`~ridgeline.ops.reference.Reference` for those that have no faster form."""

    lowering = TORCH_CPU

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype, "cpu")
        keep_freed_memory()

    def embed(
        self, ids: torch.Tensor, weight: Weight, *, offset: int = 0, scale: float = 1.0
    ) -> torch.Tensor:
        rows = F.embedding(ids + offset if offset else ids, weight.data).to(self.dtype)
        return rows if scale == 1 else rows.mul_(scale)

    def norm(
        self,
        x: torch.Tensor,
        norm: Norm,
        *,
        shift: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        spans: TorchSpans | None = None,
    ) -> torch.Tensor:
        shape = (x.shape[-1],)
        if norm.changes_weight:  # in float32, as it is meant
            weight = (norm.weight.data.float() + norm.offset) * norm.scale
            return F.rms_norm(x.float(), shape, weight, norm.eps).to(self.dtype)
        weight, bias = (None if w is None else self._data(w) for w in (norm.weight, norm.bias))
        if norm.kind == "rms":
            y = F.rms_norm(x, shape, weight, norm.eps)
        else:
            y = F.layer_norm(x, shape, weight, bias, norm.eps)
        return y if shift is None else modulate(y, shift, scale, spans)

    def linear(
        self,
        x: torch.Tensor,
        weight: Weight,
        *,
        bias: Weight | None = None,
        activation: Activation | None = None,
        residual: torch.Tensor | None = None,
        name: str | None = None,
        gate: torch.Tensor | None = None,
        spans: TorchSpans | None = None,
    ) -> torch.Tensor:
        y = F.linear(x, self._data(weight), None if bias is None else self._data(bias))
        if activation is not None:
            y = activate(y, activation)
        if gate is not None:
            y = multiply_by_sequence(y, gate, spans)
        if residual is not None:
            y = y.add_(residual)
        return y

    def attend_sequence(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask, score: Score
    ) -> torch.Tensor:
        return attention(q, keys.to(self.dtype), values.to(self.dtype), mask, score)


def attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask, score: Score
) -> torch.Tensor:
    """One sequence: q [rows, heads, dim], keys [kv_heads, keys, dim] and values [kv_heads, keys, value_dim]
    -> [rows, heads, value_dim]."""
    if score.softcap > 0 or score.bias is not None:  # which SDPA doesn't do, or only through a mask in memory
        return reference.attention(q.transpose(0, 1), keys, values, mask, score)
    rows, heads, _ = q.shape
    kv_heads, length, _ = keys.shape
    if rows == 1:
        return _decode(q, keys, values, mask, score)
    left, _ = mask.window
    square = mask.causal and rows == length and (left < 0 or left >= length - 1)
    unmasked = not mask.causal and mask.window == (-1, -1)
    seen = None if square or unmasked else visible(mask, rows, length, q.device)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=seen,
        is_causal=square,
        scale=score.scale,
        enable_gqa=heads != kv_heads,
    )
    return out[0].transpose(0, 1)


def _decode(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask, score: Score
) -> torch.Tensor:
    """One query row: the heads that share keys become rows of one product."""
    _, heads, dim = q.shape
    kv_heads, length, _ = keys.shape
    left, _ = mask.window
    if left >= 0 and left + 1 < length:
        keys, values = keys[:, length - 1 - left :], values[:, length - 1 - left :]
    grouped, columns = q.view(kv_heads, heads // kv_heads, dim), values.shape[-1]
    if heads > kv_heads:
        return F.scaled_dot_product_attention(
            grouped[None], keys[None], values[None], scale=score.scale
        ).view(1, heads, columns)
    # With a single row a head SDPA reads 5 GB/s in bf16. The keys come first in the product, because
    # the other order reads a strided cache at 10 GB/s; so it is 20 and more.
    scores = torch.bmm(keys, (grouped * score.scale).transpose(1, 2)).transpose(1, 2)
    return torch.bmm(torch.softmax(scores.contiguous(), -1), values).view(1, heads, columns)
