"""The unfused twins of the GPU's latent attention, in plain PyTorch: one sequence after another."""

from __future__ import annotations

import torch

from ridgeline.kernels.triton import naive
from ridgeline.kernels.triton.cache import Sequences
from ridgeline.kernels.triton.latent import LatentCache


def turn_append(
    q: torch.Tensor,
    kv: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    rank: int,
    *,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`ridgeline.kernels.triton.turn_append` without a cache, of a row of angles for each row."""
    latent, shared = kv.split((rank, kv.shape[1] - rank), -1)

    def turned(x: torch.Tensor) -> torch.Tensor:
        x = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) if interleaved else x
        return naive.rotate(x, cos, sin)

    normed = naive.norm(latent, weight.to(latent.dtype), eps, layer=False)
    stored = torch.cat((normed, turned(shared[:, None])[:, 0]), -1)
    return turned(q[..., q.shape[2] - shared.shape[1] :]), stored


def attend_latents(
    q: torch.Tensor, turned: torch.Tensor, cache: LatentCache, sequences: Sequences, scale: float
) -> torch.Tensor:
    """As :func:`ridgeline.kernels.triton.attend_latents`, in float32 or wider."""
    out = torch.zeros_like(q)
    starts, wide = sequences.cu_rows.tolist(), torch.promote_types(q.dtype, torch.float32)
    for b, keys in enumerate(sequences.lengths.tolist()):
        rows = slice(*starts[b : b + 2])
        count = rows.stop - rows.start
        blocks = sequences.tables[b, : -(-keys // cache.tokens)].long()
        known = cache.stored[blocks].flatten(0, 1)[:keys].to(wide)
        query = torch.cat((q[rows], turned[rows]), -1).to(wide)
        scores = scale * torch.einsum("rhd,jd->hrj", query, known)
        seen = torch.arange(keys) <= torch.arange(count)[:, None] + keys - count
        scores = scores.masked_fill(~seen.to(scores.device), -torch.inf)
        weights = torch.softmax(scores, -1).nan_to_num(0)
        out[rows] = torch.einsum("hrj,jd->rhd", weights, known[:, : cache.rank]).to(out.dtype)
    return out
