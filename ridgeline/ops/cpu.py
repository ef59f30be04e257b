"""The cpu reading: native kernels on packed weights.

Activations are float32 from operator to operator; weights and cache have formats of their own. An operator
is one kernel: a linear layer with its bias, activation and residual, attention with its rotation and cache.
``run`` records a model's pass once and replays it; the methods run one operator at a time, to the same bits.
A pass that can't be recorded is walked through: with experts, since its calls depend on what is computed,
with latents, since the caches of a program hold none, and with T5's cross-attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from ridgeline import kernels
from ridgeline.errors import InputError
from ridgeline.ops.attend_latent import expand, known_latents, split
from ridgeline.ops.batch import CacheSpec, Memory, Span, Wanted
from ridgeline.ops.latent import Latent
from ridgeline.ops.lowering import CPU
from ridgeline.ops.memory import keep_freed_memory
from ridgeline.ops.native_cache import NativeCache
from ridgeline.ops.record import Unrecordable, record
from ridgeline.ops.records import Activation, Mask, Norm, RelativeBias, Rope, Score, Weight
from ridgeline.ops.reference import Reference
from ridgeline.ops.relative import bias_by_distance
from ridgeline.ops.replay import Replay
from ridgeline.ops.torch_batch import TORCH_DTYPE, TorchCache, TorchLayerCache, TorchSpans, rotate
from ridgeline.ops.torch_diffusion import add_gated

if TYPE_CHECKING:
    from ridgeline.kernels import KVCache
    from ridgeline.models.denoising import Denoising
    from ridgeline.models.model import Model
    from ridgeline.ops.profile import OpTime


@contextmanager
def _one_pool() -> Iterator[None]:
    """Inside, PyTorch computes with one thread: workers of its pool would wait, spinning, on the cores that
    the kernels' pool needs next."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Cpu(Reference):
    """The operators on the native kernels; weights of linear layers are
    :class:`~ridgeline.kernels.PackedLinear`.

    ``attention_format``, bf16 or fp32, is what attention without a cache multiplies in; with one, the
    cache's format decides.
    """

    lowering = CPU

    def __init__(self, attention_format: str = "bf16") -> None:
        super().__init__(torch.float32, "cpu")
        keep_freed_memory()
        self.attention_format = attention_format
        self._biases: dict[int, tuple[Weight, torch.Tensor]] = {}
        self._replays: dict[tuple, tuple[Model, Replay | None]] = {}

    # -- whole passes ---------------------------------------------------------------------------------

    def run(
        self,
        model: Model,
        ids: Sequence[int],
        spans: Sequence[Span],
        *,
        logits: Wanted = "last",
        cache: NativeCache | None = None,
        segments: Sequence[int] | None = None,
        memory: Memory | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        replay = self._replay(model, logits, cache)
        if replay is None:
            given = {"logits": logits, "cache": cache, "segments": segments, "memory": memory}
            return super().run(model, ids, spans, **given)
        return replay.run(ids, spans, logits, cache, segments)

    def profile(
        self,
        model: Model,
        ids: Sequence[int],
        spans: Sequence[Span],
        *,
        logits: Wanted = "last",
        cache: NativeCache | None = None,
        segments: Sequence[int] | None = None,
        memory: Memory | None = None,
    ) -> list[OpTime]:
        replay = self._replay(model, logits, cache)
        if replay is None:
            given = {"logits": logits, "cache": cache, "segments": segments, "memory": memory}
            return super().profile(model, ids, spans, **given)
        return replay.profile(ids, spans, logits, cache, segments)

    def _replay(self, model: Model, logits: Wanted, cache: NativeCache | None) -> Replay | None:
        """The recorded pass; None of a model whose pass can't be."""
        all_rows = logits == "all"
        key = (id(model), all_rows, None if cache is None else cache.spec)
        if key not in self._replays:
            # The model is kept, so that its id stays its own.
            self._replays[key] = model, self._recorded(model, all_rows, cache)
        return self._replays[key][1]

    def denoise(self, model: Model, batch: Denoising) -> torch.Tensor:
        with _one_pool():
            return super().denoise(model, batch)

    def profile_denoising(self, model: Model, batch: Denoising) -> list[OpTime]:
        with _one_pool():
            return super().profile_denoising(model, batch)

    def _recorded(self, model: Model, all_rows: bool, cache: NativeCache | None) -> Replay | None:
        try:
            return Replay(
                record(model, all_rows=all_rows, cache=cache, attention_format=self.attention_format)
            )
        except Unrecordable:
            return None

    def alloc_cache(self, spec: CacheSpec, blocks: int) -> NativeCache | TorchCache:
        return TorchCache(spec, blocks) if spec.is_latent else NativeCache(spec, blocks)

    # -- one operator at a time -----------------------------------------------------------------------

    def embed(
        self, ids: torch.Tensor, weight: Weight, *, offset: int = 0, scale: float = 1.0
    ) -> torch.Tensor:
        out = torch.empty(len(ids), weight.shape[1])
        kernels.embed(ids, weight.data, offset=offset, out=out)
        return out if scale == 1 else out.mul_(scale)

    def norm(
        self,
        x: torch.Tensor,
        norm: Norm,
        *,
        shift: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        spans: TorchSpans | None = None,
    ) -> torch.Tensor:
        if shift is not None:
            return self._modulated(x, norm, shift, 1 + scale, spans)
        weight = torch.ones(x.shape[-1]) if norm.weight is None else norm.weight.data
        if norm.kind == "rms":
            if norm.changes_weight:
                weight = (weight.float() + norm.offset) * norm.scale
            return kernels.rms_norm(x, weight, norm.eps)
        return kernels.layer_norm(x, weight, None if norm.bias is None else norm.bias.data, norm.eps)

    def _modulated(
        self, x: torch.Tensor, norm: Norm, shift: torch.Tensor, factor: torch.Tensor, spans: TorchSpans
    ) -> torch.Tensor:
        """A layer norm whose weight and bias are each sequence's own: one kernel a sequence."""
        if norm.kind != "layer":
            raise InputError(f"{norm.name}: only layer norms are modulated by the cpu reading")
        if norm.bias is not None:
            shift = shift + norm.bias.data * factor
        if norm.weight is not None:
            factor = factor * norm.weight.data
        out = torch.empty_like(x)
        for i, (_, start, stop) in enumerate(spans.pieces()):
            kernels.layer_norm(x[start:stop], factor[i], shift[i].contiguous(), norm.eps, out[start:stop])
        return out

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
        vector = None if bias is None else bias.data
        if gate is None:
            return kernels.linear(x, weight.data, vector, activation, residual)
        return add_gated(residual, kernels.linear(x, weight.data, vector, activation), gate, spans)

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
        cache: KVCache | None = None,
        name: str = "attention",
    ) -> torch.Tensor:
        cos = sin = None
        if rope is not None:
            cos, sin = spans.rotation(rope, q.dtype)
            if rope.dim < q.shape[-1]:  # the kernels turn whole heads
                q, k, rope = rotate(q, cos, sin), rotate(k, cos, sin), None
                cos = sin = None
            else:
                cos, sin = (x[:, 0].contiguous() for x in (cos, sin))
        options = {"causal": mask.causal, "window": mask.window, "scale": score.scale}
        options["softcap"] = score.softcap
        if score.bias is not None:
            options["distance_bias"] = self._by_distance(score.bias)
        if cache is not None:
            sequences = kernels.Sequences.of(spans)
            if k is None:
                return kernels.attend_stored(q, cache, sequences, **options).flatten(1)
            return kernels.attend(q, k, v, cache, sequences, cos=cos, sin=sin, **options).flatten(1)
        if rope is not None:
            q, k = kernels.rotate(q, cos, sin), kernels.rotate(k, cos, sin)
        starts, key_starts = torch.tensor(spans.starts), torch.tensor(spans.key_starts)
        rounded = (x.to(TORCH_DTYPE[self.attention_format]) for x in (q, k, v))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        return kernels.attention_varlen(*rounded, starts, key_starts, **options, out=out).flatten(1)

    def store(self, k: torch.Tensor, v: torch.Tensor, *, spans: TorchSpans, cache: KVCache) -> None:
        kernels.store(k, v, cache, kernels.Sequences.of(spans))

    def _by_distance(self, bias: RelativeBias) -> torch.Tensor:
        """What the kernels read of a relative bias, made once: weights do not change."""
        table = bias.table
        if id(table) not in self._biases:
            self._biases[id(table)] = table, bias_by_distance(bias)  # the table is kept, so that its id is
        return self._biases[id(table)][1]

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        return kernels.softcap(x, cap)

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
        """Expanded for every sequence: latents are larger than the kernels' heads, and with a form that went
        by the number of rows a prompt's bits would depend on its chunks."""
        queries, stored = split(q, kv, latent, spans, rope, self)
        known = known_latents(stored, spans, cache, torch.float32)
        ends = torch.tensor([0, *accumulate(map(len, known))])
        keys, values = expand(torch.cat(known), latent, self)
        rounded = (x.to(TORCH_DTYPE[self.attention_format]) for x in (queries, keys, values))
        options = {"causal": mask.causal, "window": mask.window, "scale": score.scale}
        out = torch.empty(len(q), latent.heads, latent.value)
        starts = torch.tensor(spans.starts)
        return kernels.attention_varlen(*rounded, starts, ends, **options, out=out).flatten(1)

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return kernels.rotate(x, cos[:, 0].contiguous(), sin[:, 0].contiguous())

    def add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return kernels.add(a, b)

    def take_rows(self, x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return x if rows is None else kernels.take_rows(x, rows)
