"""What the attention functions are meant to compute, in plain PyTorch, in float64."""

from __future__ import annotations

import math

import torch


def visible(
    rows: int, keys: int, *, causal: bool = False, window: tuple[int, int] = (-1, -1), sinks: int = 0
) -> torch.Tensor:
    """bool [rows, keys]."""
    position = torch.arange(rows)[:, None] + keys - rows
    key = torch.arange(keys)[None, :]
    left, right = window
    before = key <= position if causal else torch.ones(rows, keys, dtype=torch.bool)
    near = before.clone()
    if left >= 0:
        near &= key >= position - left
    if right >= 0 and not causal:
        near &= key <= position + right
    return near | (before & (key < sinks))


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
    distance_bias: torch.Tensor | None = None,
    **mask,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence, [rows, heads, dim] each: the output, float64, and the LSE [heads, rows]."""
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    heads, rows, dim = q.shape
    keys = k.shape[1]
    k, v = (x.repeat_interleave(heads // x.shape[0], 0) for x in (k, v))
    seen = visible(rows, keys, **mask)
    scores = q @ k.transpose(1, 2) * (1 / math.sqrt(dim) if scale is None else scale)
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    if alibi_slopes is not None:
        distance = (torch.arange(rows)[:, None] + keys - rows - torch.arange(keys)).abs()
        scores = scores - alibi_slopes.double()[:, None, None] * distance
    if distance_bias is not None:
        reach = distance_bias.shape[1] // 2
        distance = torch.arange(keys) - (torch.arange(rows)[:, None] + keys - rows)
        scores = scores + distance_bias.double()[:, distance.clamp(-reach, reach) + reach]
    scores = scores.masked_fill(~seen, -torch.inf)
    if sink_logits is not None:
        sink = sink_logits.double()[:, None, None].expand(heads, rows, 1)
        scores = torch.cat((scores, sink), 2)
        v = torch.cat((v, torch.zeros_like(v[:, :1] if keys else v.new_zeros(heads, 1, v.shape[2]))), 1)
    lse = torch.logsumexp(scores, 2) if scores.shape[2] else scores.new_full((heads, rows), -torch.inf)
    weights = torch.where(lse[..., None] == -torch.inf, 0.0, (scores - lse[..., None]).exp())
    # What a row doesn't see has no part in it, be it infinite or no number.
    hidden = ~seen if sink_logits is None else torch.nn.functional.pad(~seen, (0, 1))
    if v.isfinite().all():
        return (weights @ v).transpose(0, 1), lse
    out = torch.stack(
        [(weights[:, i, None] @ v.masked_fill(hidden[i, :, None], 0))[:, 0] for i in range(rows)]
    )
    return out, lse


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x of [rows, heads, dim], float64, by angles [rows, dim]."""
    first, second = x.double().chunk(2, dim=-1)
    return x * cos.double()[:, None] + torch.cat((-second, first), dim=-1) * sin.double()[:, None]


def quantized(x: torch.Tensor) -> torch.Tensor:
    """Vectors of heads as an int8 cache holds them."""
    scale = (x.float().abs().amax(-1, keepdim=True) / 127).clamp(min=2.0**-126)
    return (x.float() * (1 / scale)).round().double() * scale.double()
