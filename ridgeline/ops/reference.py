"""The reference reading: plain PyTorch, one formula a line, differentiable.

Every other reading is tested against this one, so it takes no shortcuts. It computes in one
dtype throughout, float32 or float64; under autocast it also trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ridgeline.kernels.fp8 import Fp8Linear
from ridgeline.kernels.linear import PackedLinear
from ridgeline.ops.attend_latent import attend_latent
from ridgeline.ops.batch import Batch, CacheSpec, Memory, Span, Wanted
from ridgeline.ops.latent import Latent, Mla
from ridgeline.ops.layers import Layer
from ridgeline.ops.mixture import Experts, Router
from ridgeline.ops.records import Activation, Heads, Mask, Norm, Rope, Score, Weight
from ridgeline.ops.relative import bias_of
from ridgeline.ops.routing import Routes, choose, mix
from ridgeline.ops.torch_batch import (
    ACTIVATIONS,
    TorchCache,
    TorchLayerCache,
    TorchSpans,
    make_batch,
    rotate,
    visible,
)
from ridgeline.ops.torch_diffusion import DiffusionOperators

if TYPE_CHECKING:
    from ridgeline.models.denoising import Denoising
    from ridgeline.models.model import EncoderDecoder, Model
    from ridgeline.ops.profile import OpTime


class Reference(DiffusionOperators):
    """The operators in plain PyTorch. ``dtype`` is what everything is computed in, ``mla`` the form of latent
    attention."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        mla: Mla = Mla.AUTO,
    ) -> None:
        self.dtype = dtype
        self.device = torch.device(device)
        self.mla = mla

    def batch(
        self,
        ids: torch.Tensor | Sequence[int],
        spans: Sequence[Span],
        *,
        logits: Wanted = "last",
        cache: TorchCache | None = None,
        segments: torch.Tensor | None = None,
        memory: Memory | None = None,
    ) -> Batch:
        return make_batch(
            ids, spans, logits=logits, cache=cache, segments=segments, memory=memory, device=self.device
        )

    def run(
        self,
        model: Model,
        ids: torch.Tensor | Sequence[int],
        spans: Sequence[Span],
        *,
        logits: Wanted = "last",
        cache: TorchCache | None = None,
        segments: torch.Tensor | Sequence[int] | None = None,
        memory: Memory | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """What ``model`` makes of a packed step of ``ids``, those of all ``spans`` one after another: logits
        of the wanted rows, or what else its pass returns. ``memory`` is what an encoder-decoder has encoded.
        """
        given = {"logits": logits, "cache": cache, "segments": segments, "memory": memory}
        return model.forward(self, self.batch(ids, spans, **given))

    def encode(
        self,
        model: EncoderDecoder,
        ids: torch.Tensor | Sequence[int],
        spans: Sequence[Span],
        cache: TorchCache | None = None,
    ) -> Memory:
        """What ``model``'s encoder makes of the sequences: their states, and in ``cache``, in the blocks that
        the spans name, the keys and values that its decoder reads."""
        memory = Memory(tuple(spans), cache=cache)
        states = model.encode(self, self.batch(ids, spans, memory=memory))
        return replace(memory, states=states)

    def profile(
        self,
        model: Model,
        ids: torch.Tensor | Sequence[int],
        spans: Sequence[Span],
        *,
        logits: Wanted = "last",
        cache: TorchCache | None = None,
        segments: torch.Tensor | Sequence[int] | None = None,
        memory: Memory | None = None,
    ) -> list[OpTime]:
        """As :meth:`run`, for the seconds of each operator's calls."""
        from ridgeline.ops.profile import Profile

        profile = Profile(self)
        given = {"logits": logits, "cache": cache, "segments": segments, "memory": memory}
        model.forward(profile, self.batch(ids, spans, **given))
        return profile.take()

    def denoise(self, model: Model, batch: Denoising) -> torch.Tensor:
        """What the diffusion Transformer ``model`` predicts of every patch: [rows, patch² * channels]."""
        return model.forward(self, batch)

    def profile_denoising(self, model: Model, batch: Denoising) -> list[OpTime]:
        """As :meth:`denoise`, for the seconds of each operator's calls."""
        from ridgeline.ops.profile import Profile

        profile = Profile(self)
        model.forward(profile, batch)
        return profile.take()

    def embed(
        self, ids: torch.Tensor, weight: Weight, *, offset: int = 0, scale: float = 1.0
    ) -> torch.Tensor:
        return scale * torch.nn.functional.embedding(ids + offset, self._data(weight))

    def norm(
        self,
        x: torch.Tensor,
        norm: Norm,
        *,
        shift: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        spans: TorchSpans | None = None,
    ) -> torch.Tensor:
        centred = x if norm.kind == "rms" else x - x.mean(-1, keepdim=True)
        y = centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + norm.eps)
        if norm.weight is not None:
            y = y * ((self._data(norm.weight) + norm.offset) * norm.scale)
        if norm.bias is not None:
            y = y + self._data(norm.bias)
        if shift is not None:
            y = y * (1 + spans.spread(scale)) + spans.spread(shift)
        return y

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
        y = x @ self._data(weight).T
        if bias is not None:
            y = y + self._data(bias)
        if activation is not None:
            y = activate(y, activation)
        if gate is not None:
            y = spans.spread(gate) * y
        if residual is not None:
            y = residual + y
        return y

    def split_heads(self, qkv: torch.Tensor, heads: Heads) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = qkv.view(qkv.shape[0], -1, heads.dim).split((heads.query, heads.kv, heads.kv), dim=1)
        if heads.query_norm is not None:
            q = self.norm(q, heads.query_norm)
        if heads.key_norm is not None:
            k = self.norm(k, heads.key_norm)
        return q, k, v

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        *,
        spans: TorchSpans,
        mask: Mask,
        score: Score,
        rope: Rope | None = None,
        cache: TorchLayerCache | None = None,
        name: str = "attention",
    ) -> torch.Tensor:
        if rope is not None:
            cos, sin = spans.rotation(rope, self.dtype)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None and k is not None:
            self.store(k, v, spans=spans, cache=cache)
        outputs = []
        for i, (span, start, stop) in enumerate(spans.pieces()):
            if cache is None:
                own = slice(*spans.key_starts[i : i + 2])
                keys, values = k[own].transpose(0, 1), v[own].transpose(0, 1)
            else:
                keys, values = self.read(cache, span)
            outputs.append(self.attend_sequence(q[start:stop], keys, values, mask, score))
        return outputs[0].flatten(1) if len(outputs) == 1 else torch.cat(outputs).flatten(1)

    def store(self, k: torch.Tensor, v: torch.Tensor, *, spans: TorchSpans, cache: TorchLayerCache) -> None:
        cache.append(spans, k, v)

    def read(self, cache: TorchLayerCache, span: Span) -> tuple[torch.Tensor, torch.Tensor]:
        """A sequence's keys and values, [kv_heads, keys, dim] each."""
        return cache.read(span)

    def attend_sequence(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask, score: Score
    ) -> torch.Tensor:
        """One sequence: q [rows, heads, dim], keys and values [kv_heads, keys, dim] in the cache's dtype
        -> as q."""
        return attention(q.transpose(0, 1), keys.to(self.dtype), values.to(self.dtype), mask, score)

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        return cap * torch.tanh(x / cap)

    def attend_latent(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        latent: Latent,
        *,
        spans: TorchSpans,
        mask: Mask,
        score: Score,
        rope: Rope | None = None,
        cache: TorchLayerCache | None = None,
    ) -> torch.Tensor:
        given = {"spans": spans, "mask": mask, "score": score, "rope": rope, "cache": cache}
        return attend_latent(q, kv, latent, form=self.mla, ops=self, **given)

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x [rows, heads, dim] turned by its row's angles, [rows, 1, dim]."""
        return rotate(x, cos, sin)

    def route(self, x: torch.Tensor, router: Router) -> Routes:
        bias = None if router.bias is None else self._data(router.bias)
        return choose(self.linear(x, router.weight), router, bias)

    def experts(
        self, x: torch.Tensor, routes: Routes, experts: Experts, *, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        def run(number: int, rows: torch.Tensor) -> torch.Tensor:
            hidden = self.linear(rows, experts.gate_up.part(number), activation=experts.activation)
            return self.linear(hidden, experts.down.part(number))

        y = mix(x, routes, run)
        return y if residual is None else self.add(residual, y)

    def add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b

    def take_rows(self, x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return x if rows is None else x[rows]

    def repeat(
        self, layers: Sequence[Layer], body: Callable[[Layer, torch.Tensor], torch.Tensor], x: torch.Tensor
    ) -> torch.Tensor:
        for layer in layers:
            x = body(layer, x)
        return x

    def synchronise(self) -> None:
        """Wait until the device has done what it was given; a CPU has."""

    def prepare(self, model: Model, cache: TorchCache, sequences: int, rows: int = 1) -> None:
        """Do now what steps of up to so many ``sequences``, or of so many ``rows`` of a few, would do at
        their first time."""

    def release(self, cache: TorchCache) -> None:
        """Let go of what is kept for steps over ``cache``."""

    def free_bytes(self, model: Model) -> float:
        """Memory for a cache, in bytes: what the weights of ``model`` leave of the machine's."""
        from ridgeline.hardware.host import this_host

        return this_host().memory_bytes - model.weight_bytes()

    def alloc_cache(self, spec: CacheSpec, blocks: int) -> TorchCache:
        return TorchCache(spec, blocks, self.device)

    def _data(self, weight: Weight) -> torch.Tensor:
        """The weight as a tensor: a packed one is what its format made of it, unpacked."""
        data = weight.data.unpack() if isinstance(weight.data, PackedLinear | Fp8Linear) else weight.data
        return data.to(self.dtype)


def activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """act(x), or act of the first half of the columns times the second half."""
    if not activation.endswith("_gated"):
        return ACTIVATIONS[activation](x)
    gate, up = x.chunk(2, dim=-1)
    return ACTIVATIONS[activation.removesuffix("_gated")](gate) * up


def attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask, score: Score
) -> torch.Tensor:
    """softmax(score(q k^T) + mask) v of one sequence; a row that sees no key gives 0.

    q is [heads, rows, dim], keys and values [kv_heads, keys, dim]; returns [rows, heads, dim].
    """
    group = q.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    seen = visible(mask, q.shape[1], keys.shape[1], q.device)
    scores = score.scale * (q @ keys.transpose(1, 2))
    if score.softcap > 0:
        scores = score.softcap * torch.tanh(scores / score.softcap)
    if score.bias is not None:
        scores = scores + bias_of(score.bias, q.shape[1], keys.shape[1], scores.dtype)
    scores = scores.masked_fill(~seen, -torch.inf)
    weights = torch.where(seen.any(-1, keepdim=True), torch.softmax(scores, -1), 0.0)
    return (weights.to(values.dtype) @ values).transpose(0, 1)
