"""Multi-head latent attention on PyTorch, one sequence after another, in either form.

An executing reading lends its own norm, products and attention; :mod:`ridgeline.ops.latent` has the forms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ridgeline.ops.latent import Latent, Mla, is_absorbed
from ridgeline.ops.records import Mask, Rope, Score
from ridgeline.ops.torch_batch import TorchLayerCache, TorchSpans, halves

if TYPE_CHECKING:
    from ridgeline.ops.reference import Reference


def split(
    q: torch.Tensor, kv: torch.Tensor, latent: Latent, spans: TorchSpans, rope: Rope | None, ops: Reference
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [rows, heads, key], their last elements rotated, and what a token stores: its latent,
    normalised, and its rotated key, [rows, stored]."""
    q = q.view(len(q), latent.heads, latent.key)
    content, turning = q.split((latent.content, latent.rotated), -1)
    compressed, shared = kv.split((latent.rank, latent.rotated), -1)
    shared = shared[:, None]
    if rope is not None:
        cos, sin = spans.rotation(rope, q.dtype)
        turning, shared = (ops.rotate(halves(x, rope), cos, sin) for x in (turning, shared))
    normed = ops.norm(compressed.contiguous(), latent.norm)
    return torch.cat((content, turning), -1), torch.cat((normed, shared[:, 0]), -1)


def known_latents(
    stored: torch.Tensor, spans: TorchSpans, cache: TorchLayerCache | None, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Of every sequence, what its tokens up to the newest store, [keys, stored]."""
    if cache is None:
        return [stored[start:stop] for _, start, stop in spans.pieces()]
    cache.append(spans, stored[:, None])
    return [cache.read(span)[0][0].to(dtype) for span in spans]


def expand(known: torch.Tensor, latent: Latent, ops: Reference) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [keys, heads, key] and values [keys, heads, value] of every head."""
    compressed, shared = known.split((latent.rank, latent.rotated), -1)
    made = ops.linear(compressed.contiguous(), latent.up).view(len(known), latent.heads, -1)
    content, values = made.split((latent.content, latent.value), -1)
    shared = shared[:, None].expand(-1, latent.heads, -1)
    return torch.cat((content, shared), -1), values


def absorbed(
    q: torch.Tensor, known: torch.Tensor, latent: Latent, mask: Mask, score: Score, ops: Reference
) -> torch.Tensor:
    """The outputs of one sequence's queries, [rows, heads, value], without any head's keys or values."""
    up = ops._data(latent.up).view(latent.heads, -1, latent.rank)
    to_keys, to_values = up.split((latent.content, latent.value), 1)
    content, turned = q.split((latent.content, latent.rotated), -1)
    queries = torch.cat((torch.einsum("rhc,hcl->rhl", content, to_keys), turned), -1)
    summed = ops.attend_sequence(queries, known[None], known[None, :, : latent.rank], mask, score)
    return torch.einsum("rhl,hvl->rhv", summed, to_values)


def attend_latent(
    q: torch.Tensor,
    kv: torch.Tensor,
    latent: Latent,
    *,
    form: Mla,
    spans: TorchSpans,
    mask: Mask,
    score: Score,
    rope: Rope | None,
    cache: TorchLayerCache | None,
    ops: Reference,
) -> torch.Tensor:
    """The heads' outputs, [rows, heads * value]."""
    queries, stored = split(q, kv, latent, spans, rope, ops)
    outputs = []
    for known, (span, start, stop) in zip(known_latents(stored, spans, cache, q.dtype), spans.pieces()):
        rows = queries[start:stop]
        if is_absorbed(latent, form, span.rows, span.keys):
            outputs.append(absorbed(rows, known, latent, mask, score, ops))
        else:
            keys, values = (x.transpose(0, 1) for x in expand(known, latent, ops))
            outputs.append(ops.attend_sequence(rows, keys, values, mask, score))
    return torch.cat(outputs).flatten(1)
