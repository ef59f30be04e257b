"""The cpu reading: native kernels on packed weights.

Activations are float32 from operator to operator; weights and cache have formats of their own. An operator
is one kernel: a linear layer with its bias, activation and residual, attention with its rotation and cache.
``run`` records a model's pass once and replays it; the methods run one operator at a time, to the same bits.
What a recording does not serve, such as latents cached in fp16, is walked through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from ridgeline import kernels
from ridgeline.ops.attend_latent import expand, known_latents, split
from ridgeline.ops.batch import CacheSpec, Memory, Span, Wanted
from ridgeline.ops.latent import Latent
from ridgeline.ops.lowering import CPU
from ridgeline.ops.memory import keep_freed_memory
from ridgeline.ops.mixture import Experts, Router
from ridgeline.ops.native_cache import NativeCache
from ridgeline.ops.record import record, record_denoising, record_encoder
from ridgeline.ops.recording import Recording, Unrecordable
from ridgeline.ops.records import Activation, Mask, Norm, RelativeBias, Rope, Score, Weight
from ridgeline.ops.reference import Reference
from ridgeline.ops.relative import bias_by_distance
from ridgeline.ops.replay import Replay
from ridgeline.ops.routing import Routes
from ridgeline.ops.torch_batch import TORCH_DTYPE, TorchCache, TorchLayerCache, TorchSpans

if TYPE_CHECKING:
    from ridgeline.kernels import KVCache
    from ridgeline.models.denoising import Denoising
    from ridgeline.models.model import EncoderDecoder, Model
    from ridgeline.ops.profile import OpTime


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
        replay = self._replay(model, logits, cache, memory)
        if replay is None:
            given = {"logits": logits, "cache": cache, "segments": segments, "memory": memory}
            return super().run(model, ids, spans, **given)
        return replay.run(ids, spans, logits, cache, segments, memory)

    def encode(
        self,
        model: EncoderDecoder,
        ids: Sequence[int],
        spans: Sequence[Span],
        cache: NativeCache | None = None,
    ) -> Memory:
        replay = self._recorded(
            model,
            ("encode", None if cache is None else cache.spec),
            partial(record_encoder, model, cache=cache),
        )
        if replay is None:
            return super().encode(model, ids, spans, cache)
        return Memory(tuple(spans), replay.encode(ids, spans, cache), cache)

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
        replay = self._replay(model, logits, cache, memory)
        if replay is None:
            given = {"logits": logits, "cache": cache, "segments": segments, "memory": memory}
            return super().profile(model, ids, spans, **given)
        return replay.profile(ids, spans, logits, cache, segments, memory)

    def denoise(self, model: Model, batch: Denoising) -> torch.Tensor:
        return self._denoising(model, batch).denoise(batch)

    def profile_denoising(self, model: Model, batch: Denoising) -> list[OpTime]:
        return self._denoising(model, batch).profile_denoising(batch)

    def _replay(
        self, model: Model, logits: Wanted, cache: NativeCache | None, memory: Memory | None
    ) -> Replay | None:
        """The recorded pass; None of a model whose pass can't be."""
        all_rows, read = logits == "all", None
        if memory is not None:
            read = "states" if memory.cache is None else memory.cache.spec
        key = (all_rows, None if cache is None else cache.spec, read)
        how = {"all_rows": all_rows, "cache": cache, "memory": memory}
        return self._recorded(model, key, partial(record, model, **how))

    def _denoising(self, model: Model, batch: Denoising) -> Replay:
        given = tuple(f.name for f in fields(batch) if getattr(batch, f.name) is not None)
        return self._recorded(model, given, partial(record_denoising, model, batch))

    def _recorded(self, model: Model, key: tuple, note: Callable[..., Recording]) -> Replay | None:
        """What ``note`` records of the model, once for each ``key``; None if it can't be."""
        key = (id(model), *key)
        if key not in self._replays:
            try:
                replay = Replay(note(attention_format=self.attention_format))
            except Unrecordable:
                replay = None
            # The model is kept, so that its id stays its own.
            self._replays[key] = model, replay
        return self._replays[key][1]

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
        weight, bias = (None if w is None else w.data for w in (norm.weight, norm.bias))
        if weight is not None and norm.changes_weight:
            weight = (weight.float() + norm.offset) * norm.scale
        if shift is not None:
            given = (shift, scale, spans.sequences)
            return kernels.modulated_norm(x, weight, bias, norm.eps, *given, kind=norm.kind)
        if norm.kind == "rms":
            return kernels.rms_norm(x, weight, norm.eps)
        return kernels.layer_norm(x, weight, bias, norm.eps)

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
        given = (residual, gate, spans.sequences)
        return kernels.modulated_linear(x, weight.data, vector, activation, *given)

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
            cos, sin = (x[:, 0].contiguous() for x in spans.rotation(rope, q.dtype))
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
            q, k = _turned(q, cos, sin), _turned(k, cos, sin)
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

    def route(self, x: torch.Tensor, router: Router) -> Routes:
        bias = None if router.bias is None else router.bias.data
        options = {"scoring": router.scoring, "normalised": router.normalised, "scale": router.scale}
        groups = {"groups": router.groups, "open_groups": router.open_groups}
        logits = self.linear(x, router.weight)
        return Routes(
            *kernels.route(
                logits, router.chosen, bias=bias, group_score=router.group_score, **options, **groups
            )
        )

    def experts(
        self, x: torch.Tensor, routes: Routes, experts: Experts, *, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        matrices = experts.gate_up.data, experts.down.data
        return kernels.mix_experts(x, routes.experts, routes.weights, *matrices, experts.activation, residual)

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return kernels.rotate(x, cos[:, 0].contiguous(), sin[:, 0].contiguous())

    def add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return kernels.add(a, b)

    def take_rows(self, x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return x if rows is None else kernels.take_rows(x, rows)

    def activate(self, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        return kernels.activate(x, activation)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads, their first elements turned by each row's angles: as many as there are angles for."""
    y = x.clone()
    turning = y[..., : cos.shape[1]]
    kernels.rotate(turning, cos, sin, out=turning)
    return y
