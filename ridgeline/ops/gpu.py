"""The GPU reading: Triton's kernels for attention, norms, rotations and quantised weights, PyTorch's
products.

Activations and cache are in the weights' plain dtype. With a cache and one row a sequence a step is a CUDA
graph (:mod:`ridgeline.ops.gpu_graph`); other steps run operator by operator. Without a GPU the same code runs
under Triton's interpreter, on the CPU, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ridgeline.errors import InputError
from ridgeline.kernels import triton as kernels
from ridgeline.kernels.fp8 import Fp8Linear
from ridgeline.kernels.linear import PackedLinear
from ridgeline.kernels.triton.arguments import MOST_HEAD_DIM
from ridgeline.kernels.triton.runtime import default_device
from ridgeline.ops import torch_cpu
from ridgeline.ops.batch import Batch, CacheSpec, Memory, Span, Wanted
from ridgeline.ops.gpu_batch import NO_ANGLES, Angles, GpuCache, GpuSpans, free_bytes, gigabytes
from ridgeline.ops.gpu_graph import DecodeGraphs
from ridgeline.ops.latent import Mla
from ridgeline.ops.lowering import GPU, GPU_INVARIANT, GPU_QUANTISED
from ridgeline.ops.records import Activation, Mask, Norm, RelativeBias, Rope, Score, Weight
from ridgeline.ops.reference import Reference
from ridgeline.ops.relative import bias_by_distance
from ridgeline.ops.torch_batch import TorchCache, TorchLayerCache, TorchSpans
from ridgeline.ops.torch_diffusion import modulate, multiply_by_sequence

if TYPE_CHECKING:
    from ridgeline.models.model import Model
    from ridgeline.ops.profile import OpTime


class Gpu(Reference):
    """The operators on a GPU, for weights that lie there (:func:`to_gpu`). ``dtype`` is that of activations;
    ``quantised`` says whether the weights of linear layers are, which decides what its kernels merge. With
    ``invariant`` a row's bits do not depend on the other rows of a step, nor on how its sequence was cut into
    steps: products and attention sum in one order, and latents are always expanded.

    Raises InputError where there is no GPU, or no Triton.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
        *,
        quantised: bool = False,
        invariant: bool = False,
    ) -> None:
        mla = Mla.EXPANDED if invariant else Mla.AUTO
        super().__init__(dtype, default_device() if device is None else device, mla)
        self.lowering = GPU_INVARIANT if invariant else GPU_QUANTISED if quantised else GPU
        self.invariant = invariant
        self._schedule = "invariant" if invariant else "auto"
        self._graphs = DecodeGraphs(self)
        self._made: dict[int, tuple[Weight, torch.Tensor]] = {}
        self._units: dict[int, torch.Tensor] = {}

    # -- whole passes ---------------------------------------------------------------------------------

    def batch(
        self,
        ids: torch.Tensor | Sequence[int],
        spans: Sequence[Span],
        *,
        logits: Wanted = "last",
        cache: GpuCache | None = None,
        segments: torch.Tensor | None = None,
        memory: Memory | None = None,
    ) -> Batch:
        batch = super().batch(ids, spans, logits=logits, cache=cache, segments=segments, memory=memory)
        if batch.memory is not None:
            memory = replace(batch.memory, spans=GpuSpans.of(batch.memory.spans))
        return replace(batch, spans=GpuSpans.of(batch.spans), memory=memory)

    def run(
        self,
        model: Model,
        ids: torch.Tensor | Sequence[int],
        spans: Sequence[Span],
        *,
        logits: Wanted = "last",
        cache: GpuCache | None = None,
        segments: torch.Tensor | Sequence[int] | None = None,
        memory: Memory | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        plain = segments is None and memory is None and isinstance(cache, GpuCache)
        if plain and self._graphs.can_run(model, spans, logits):
            return self._graphs.run(model, ids, spans, cache)
        given = {"logits": logits, "cache": cache, "segments": segments, "memory": memory}
        return super().run(model, ids, spans, **given)

    def profile(
        self,
        model: Model,
        ids: torch.Tensor | Sequence[int],
        spans: Sequence[Span],
        *,
        logits: Wanted = "last",
        cache: GpuCache | None = None,
        segments: torch.Tensor | Sequence[int] | None = None,
        memory: Memory | None = None,
    ) -> list[OpTime]:
        """The device is waited for after each operator: its launch is part of its time, unlike in a graph."""
        from ridgeline.ops.profile import Profile

        profile = Profile(self, self.synchronise)
        given = {"logits": logits, "cache": cache, "segments": segments, "memory": memory}
        model.forward(profile, self.batch(ids, spans, **given))
        return profile.take()

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def prepare(self, model: Model, cache: GpuCache | TorchCache, sequences: int) -> None:
        """Compile, and record the graphs of, decode steps of up to so many sequences, so that serving takes
        no more memory and compiles nothing for them later."""
        if isinstance(cache, GpuCache):
            self._graphs.prepare(model, cache, sequences)

    def free_bytes(self, model: Model) -> float:
        """What is free on the GPU, where the weights lie already."""
        return free_bytes(self.device)

    def alloc_cache(self, spec: CacheSpec, blocks: int) -> GpuCache | TorchCache:
        return (
            TorchCache(spec, blocks, self.device) if spec.is_latent else GpuCache(spec, blocks, self.device)
        )

    # -- one operator at a time -----------------------------------------------------------------------

    def embed(
        self, ids: torch.Tensor, weight: Weight, *, offset: int = 0, scale: float = 1.0
    ) -> torch.Tensor:
        rows = kernels.embed(ids, weight.data, offset=offset).to(self.dtype)
        return rows if scale == 1 else rows * scale

    def norm(
        self,
        x: torch.Tensor,
        norm: Norm,
        *,
        shift: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        spans: TorchSpans | None = None,
    ) -> torch.Tensor:
        bias = None if norm.bias is None else norm.bias.data
        if norm.weight is None:  # PyTorch's own means are summed in an order that depends on the rows
            weight = self._ones(x.shape[-1])
        else:
            weight = self._norm_weight(norm)
        if norm.kind == "rms":
            y = kernels.rms_norm(x, weight, norm.eps)
        else:
            y = kernels.layer_norm(x, weight, bias, norm.eps)
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
        packed, vector = weight.data, None if bias is None else bias.data
        is_quantised = isinstance(packed, kernels.GpuLinear) and packed.scales is not None
        if self.invariant and gate is None:
            if not is_quantised:
                gated = activation is not None and activation.endswith("_gated")
                packed = kernels.GpuLinear.plain(self._data(weight), gated=gated)
            return kernels.linear_invariant(x, packed, vector, activation, residual)
        if is_quantised and gate is None:
            return kernels.linear(x, packed, vector, activation, residual)
        matrix = self._data(weight)
        y = torch.nn.functional.linear(x, matrix, None if vector is None else vector.to(self.dtype))
        if activation is not None:
            y = kernels.activate(y, activation)
        if gate is not None:
            y = multiply_by_sequence(y, gate, spans)
        return y if residual is None else y.add_(residual)

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
        cache: kernels.KVCache | None = None,
        name: str = "attention",
    ) -> torch.Tensor:
        spans = GpuSpans.of(spans)
        angles = NO_ANGLES if rope is None else spans.angles(rope)
        options = self._options(mask, score) | {"distance_bias": self._by_distance(score.bias)}
        if cache is not None and k is None:
            return kernels.attend_stored(q, cache, spans.sequences(cache.tokens), **options).flatten(1)
        if rope is not None and (cache is None or rope.dim < q.shape[-1]):
            q, k, angles = _turned(q, angles), _turned(k, angles), NO_ANGLES
        if cache is not None:
            sequences, turn = spans.sequences(cache.tokens), angles._asdict()
            return kernels.attend(q, k, v, cache, sequences, **turn, **options).flatten(1)
        most = {
            "max_rows": max((span.rows for span in spans), default=0),
            "max_keys": max((span.keys for span in spans), default=0),
        }
        return kernels.attention_varlen(q, k, v, *spans.starts_on_device(), **options, **most).flatten(1)

    def store(
        self, k: torch.Tensor, v: torch.Tensor, *, spans: TorchSpans, cache: kernels.KVCache | TorchLayerCache
    ) -> None:
        if isinstance(cache, TorchLayerCache):
            cache.append(spans, k, v)
        else:
            kernels.store(k, v, cache, GpuSpans.of(spans).sequences(cache.tokens))

    def attend_sequence(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask, score: Score
    ) -> torch.Tensor:
        keys, values = keys.to(self.dtype), values.to(self.dtype)
        if max(q.shape[-1], values.shape[-1]) > MOST_HEAD_DIM:  # latents that no head's keys were made of
            return torch_cpu.attention(q, keys, values, mask, score)
        k, v = (x.transpose(0, 1)[None] for x in (keys, values))
        return kernels.attention(
            q[None].contiguous(), k.contiguous(), v.contiguous(), **self._options(mask, score)
        )[0]

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return kernels.rotate(x.contiguous(), *(a[:, 0].float().contiguous() for a in (cos, sin)))

    def take_rows(self, x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return x if rows is None else kernels.take_rows(x, rows)

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        return kernels.softcap(x, cap)

    # -- what follows from weights, made once: they do not change ----------------------------------------

    def _norm_weight(self, norm: Norm) -> torch.Tensor:
        if not norm.changes_weight:
            return norm.weight.data
        return self._once(norm.weight, lambda: (norm.weight.data.float() + norm.offset) * norm.scale)

    def _options(self, mask: Mask, score: Score) -> dict[str, Any]:
        policy = {"causal": mask.causal, "window": mask.window, "scale": score.scale}
        return policy | {"softcap": score.softcap, "schedule": self._schedule}

    def _by_distance(self, bias: RelativeBias | None) -> torch.Tensor | None:
        return None if bias is None else self._once(bias.table, lambda: bias_by_distance(bias))

    def _ones(self, size: int) -> torch.Tensor:
        if size not in self._units:
            self._units[size] = torch.ones(size, device=self.device)
        return self._units[size]

    def _once(self, weight: Weight, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if id(weight) not in self._made:
            self._made[id(weight)] = weight, make()  # the weight is kept, so that its id stays its own
        return self._made[id(weight)][1]

    def _data(self, weight: Weight) -> torch.Tensor:
        packed = isinstance(weight.data, kernels.GpuLinear)
        return (weight.data.unpack() if packed else weight.data).to(self.dtype)


def _turned(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """x [rows, heads, dim] rotated, or the first of its elements that there are angles for."""
    dim = angles.cos.shape[-1]
    if dim == x.shape[-1]:
        return kernels.rotate(x, *angles)
    x = x.clone()
    kernels.rotate(x[..., :dim], *angles, out=x[..., :dim])
    return x


def to_gpu(model: Model, device: torch.device | str | None = None) -> Model:
    """``model`` with its weights moved to the GPU, quantised ones into the layout of its kernels.

    Raises InputError, before anything is moved, if the weights take more memory than is free.
    """
    device = default_device() if device is None else torch.device(device)
    needed, free = model.weight_bytes(), free_bytes(device)
    if needed > free:
        raise InputError(
            f"the weights take {gigabytes(needed)} and the GPU has {gigabytes(free)} free: choose a smaller "
            "format (--weights int8, int4-g128), or the cpu"
        )
    for weight in model.weights():
        weight.data, weight.stored = _moved(weight.data, device), None
    return model


def _moved(data: Any, device: torch.device) -> Any:
    if isinstance(data, tuple):
        return tuple(_moved(one, device) for one in data)
    if isinstance(data, PackedLinear | Fp8Linear):
        return kernels.GpuLinear.of(data, device)
    return data.to(device)
