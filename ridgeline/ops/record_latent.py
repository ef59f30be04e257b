"""What latent attention adds to the record reading: one call, in the expanded form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ridgeline import _native
from ridgeline.ops.batch import BLOCK_TOKENS
from ridgeline.ops.latent import Latent
from ridgeline.ops.recording import Cut, Matrix, Places, Rows, Unrecordable
from ridgeline.ops.records import Mask, Norm, Rope, Score

if TYPE_CHECKING:
    import torch

    from ridgeline.ops.profile import Fold
    from ridgeline.ops.torch_batch import TorchCache

#: What the cache of latents may be kept as.
DTYPES = {"fp32": _native.Dtype.fp32, "bf16": _native.Dtype.bf16}


class RecordedLatents:
    """The operator, noted."""

    _attention_format: _native.KvFormat
    _fold: Fold
    _call: Callable[..., Matrix]
    _new: Callable[[int, Rows], Matrix]
    _number: Callable[[torch.Tensor], int]
    _norm_weight: Callable[[Norm], tuple[int, _native.Dtype]]
    _rotation: Callable[[Rope], int]

    def attend_latent(
        self,
        q: Matrix,
        kv: Matrix,
        latent: Latent,
        *,
        spans: Cut,
        mask: Mask,
        score: Score,
        rope: Rope | None = None,
        cache: tuple[TorchCache, int] | None = None,
    ) -> Matrix:
        """Queries are turned, and latents normalised, where they are: nothing else reads them."""
        op = self._fold.note("attention")
        stored = _native.LatentCache(_native.Dtype.fp32, latent.stored, BLOCK_TOKENS)
        number = -1
        if cache is not None:
            spec, number = cache[0].spec, cache[1]
            if spec.format not in DTYPES or spec.block_size != BLOCK_TOKENS:
                raise Unrecordable(f"latents in {spec.format}, in blocks of {spec.block_size}")
            stored = _native.LatentCache(DTYPES[spec.format], latent.stored, BLOCK_TOKENS)
        kind = _native.NormKind.rms if latent.norm.kind == "rms" else _native.NormKind.layer
        if latent.norm.bias is not None or score.bias is not None or score.softcap:
            raise Unrecordable("latents whose norm has a bias, or whose scores are more than scaled")
        norm = (kind, *self._norm_weight(latent.norm), latent.norm.eps)
        up, up_number = latent.up.data.layout, self._number(latent.up.data.data)
        rotation = -1 if rope is None else self._rotation(rope)
        heads = _native.LatentHeads(latent.heads, latent.rank, latent.content, latent.rotated, latent.value)
        seen = _native.AttentionMask(mask.causal, *mask.window, 0)
        scores = _native.AttentionScore(score.scale, 0.0, 0, 0)
        out = self._new(latent.heads * latent.value, q.rows)

        def add(program: _native.Program, at: Places) -> None:
            turned = rotation, rope is not None and rope.interleaved
            call = _native.LatentCall(
                heads, *norm, up, up_number, self._attention_format, number, stored, at.cut(spans), *turned,
                seen, scores,
            )  # fmt: skip
            program.attend_latent(at.operand(q), at.operand(kv), call, at.operand(out))

        return self._call(op, (q, kv), out, add)
