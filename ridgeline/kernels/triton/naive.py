"""The unfused twins of the GPU kernels: plain PyTorch, all scores and intermediates in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ridgeline.kernels.triton.arguments import Policy
    from ridgeline.kernels.triton.attention_launch import Layout, Scales


def attention_into(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    policy: Policy,
    out: torch.Tensor,
    lse: torch.Tensor,
    scales: Scales,
) -> None:
    """``schedule="naive"``: one sequence after another, in float32."""
    packed = layout.cu_rows is not None
    for b in range(layout.batch):
        rows = slice(*layout.cu_rows[b : b + 2].tolist()) if packed else slice(None)
        query, target, target_lse = (q[rows], out[rows], lse[:, rows]) if packed else (q[b], out[b], lse[b])
        if scales.q is not None:
            query = query.float() * (scales.q[:, rows] if packed else scales.q[b]).T[..., None]
        keys, values = (sequence_of(*x, layout, b) for x in ((k, scales.k), (v, scales.v)))
        o, log = attention(query, keys, values, policy)
        target.copy_(o)
        target_lse.copy_(log)


def sequence_of(x: torch.Tensor, scales: torch.Tensor | None, layout: Layout, b: int) -> torch.Tensor:
    """The keys or values of sequence ``b``: [keys, kv_heads, dim]."""
    if scales is not None:
        x = x.view(torch.float8_e4m3fn) if x.dtype == torch.uint8 else x
        x = x.float() * scales.transpose(-1, -2)[..., None]
    if layout.cu_keys is not None:
        return x[slice(*layout.cu_keys[b : b + 2].tolist())]
    length = layout.max_keys if layout.lengths is None else int(layout.lengths[b])
    if layout.tables is None:
        return x[b, :length]
    pages = layout.tables[b, : -(-length // x.shape[1])].long()
    return x[pages].flatten(0, 1)[:length]


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, policy: Policy
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence, [rows, heads, dim] each: the output and the LSE [heads, rows], float32."""
    rows, heads, _ = q.shape
    keys = k.shape[0]
    group = heads // k.shape[1]
    q, k, v = (x.float().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))
    p = torch.arange(rows, device=q.device)[:, None] + keys - rows
    j = torch.arange(keys, device=q.device)[None, :]
    seen = j <= p if policy.causal else torch.ones(rows, keys, dtype=torch.bool, device=q.device)
    before = seen
    if policy.left >= 0:
        seen = seen & (j >= p - policy.left)
    if policy.right >= 0:
        seen = seen & (j <= p + policy.right)
    seen = seen | (before & (j < policy.sinks))
    scores = q @ k.transpose(1, 2) * policy.scale
    if policy.softcap:
        scores = policy.softcap * torch.tanh(scores / policy.softcap)
    if policy.alibi_slopes is not None:
        scores = scores - policy.alibi_slopes[:, None, None] * (p - j).abs()
    if policy.distance_bias is not None:
        reach = policy.distance_bias.shape[1] // 2
        scores = scores + policy.distance_bias[:, (j - p).clamp(-reach, reach) + reach]
    scores = scores.masked_fill(~seen, -torch.inf)
    if policy.sink_logits is not None:
        sink = policy.sink_logits[:, None, None].expand(heads, rows, 1)
        scores, v = torch.cat((scores, sink), 2), torch.nn.functional.pad(v, (0, 0, 0, 1))
    lse = scores.logsumexp(2) if scores.shape[2] else scores.new_full((heads, rows), -torch.inf)
    weights = torch.where(lse[..., None] == -torch.inf, 0.0, (scores - lse[..., None]).exp())
    return (weights @ v).transpose(0, 1), lse


_ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "tanh": torch.tanh,
}


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual + activation(x W^T + bias), each step a kernel of PyTorch's."""
    y = torch.nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    y = y if activation is None else activate(y, activation)
    return y if residual is None else residual + y


def linear_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`linear` of x as FP8 makes it, in x's dtype."""
    codes, scales = quantise_rows(x)
    wide = codes.view(torch.float8_e4m3fn).to(x.dtype) * scales[:, None].to(x.dtype)
    return linear(wide, weight, bias, activation, residual)


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row of a finite x in FP8: e4m3's bits, uint8, and a float32 scale a row, max|x| / 448."""
    largest = x.float().abs().amax(-1)
    scales = torch.where(largest > 0, largest / 448, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (x.float() / scales[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes.view(torch.uint8), scales


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    if not activation.endswith("_gated"):
        return _ACTIVATIONS[activation](x)
    gate, value = x.chunk(2, dim=-1)
    return _ACTIVATIONS[activation.removesuffix("_gated")](gate) * value


def norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    layer: bool,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The norm of x, or of ``residual`` after x is added to it in place."""
    if residual is not None:
        x = residual.add_(x)
    shape = (x.shape[-1],)
    if layer:
        return torch.nn.functional.layer_norm(x, shape, weight, bias, eps)
    return torch.nn.functional.rms_norm(x, shape, weight, eps)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x of [rows, heads, dim] turned by angles [rows, dim]."""
    first, second = x.float().chunk(2, dim=-1)
    turned = x.float() * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]
    return turned.to(x.dtype)


def append(x: torch.Tensor, slots: torch.Tensor, pages: torch.Tensor) -> None:
    """Rows of heads into pages [pages, tokens, heads, dim]; those of slot -1 are left out."""
    kept = slots >= 0
    pages.view(-1, *pages.shape[2:])[slots[kept].long()] = x[kept].to(pages.dtype)
