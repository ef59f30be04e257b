"""The GPU reading: Triton's kernels for attention, norms, rotations and quantised weights, PyTorch's
products.

Activations and cache are in the weights' plain dtype. With a cache and one row a sequence, or the few that
verify a proposal, a step is a CUDA graph (:mod:`ridgeline.ops.gpu_graph`); other steps run operator by
operator. Without a GPU the same code runs under Triton's interpreter, on the CPU, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ridgeline.errors import OutOfMemory
from ridgeline.kernels import triton as kernels
from ridgeline.kernels.fp8 import Fp8Linear
from ridgeline.kernels.linear import PackedLinear
from ridgeline.kernels.triton.runtime import with_index
from ridgeline.ops.batch import Batch, CacheSpec, Memory, Span, Wanted
from ridgeline.ops.gpu_batch import NO_ANGLES, Angles, GpuCache, GpuSpans, denoising_on, free_bytes, gigabytes
from ridgeline.ops.gpu_graph import DecodeGraphs
from ridgeline.ops.gpu_latent import GpuLatentCache, attend_latent
from ridgeline.ops.latent import Latent, Mla
from ridgeline.ops.lowering import GPU, GPU_INVARIANT, GPU_QUANTISED
from ridgeline.ops.mixture import Experts, Router
from ridgeline.ops.records import Activation, Mask, Norm, RelativeBias, Rope, Score, Weight
from ridgeline.ops.reference import Reference
from ridgeline.ops.relative import bias_by_distance
from ridgeline.ops.routing import Routes
from ridgeline.ops.torch_batch import TorchSpans
from ridgeline.ops.torch_diffusion import modulate, multiply_by_sequence

if TYPE_CHECKING:
    from ridgeline.models.denoising import Denoising
    from ridgeline.models.model import Model
    from ridgeline.ops.profile import OpTime, Profile


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
        super().__init__(dtype, with_index(device), mla)
        self.lowering = GPU_INVARIANT if invariant else GPU_QUANTISED if quantised else GPU
        self.invariant = invariant
        self.schedule = "invariant" if invariant else "auto"
        self._graphs = DecodeGraphs(self)
        self._made: dict[int, tuple[Weight, torch.Tensor]] = {}
        self._plain: dict[int, torch.Tensor] = {}

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
        plain = segments is None and memory is None and cache is not None
        with self._memory(f"a step of {sum(s.rows for s in spans)} tokens", "token_budget or cache_tokens"):
            if plain and self._graphs.can_run(model, spans, logits, cache):
                return self._graphs.run(model, ids, spans, cache)
            given = {"logits": logits, "cache": cache, "segments": segments, "memory": memory}
            return super().run(model, ids, spans, **given)

    @contextmanager
    def _memory(self, what: str, lower: str) -> Iterator[None]:
        """Inside, memory that runs short is said in a line; what was taken meanwhile is given back."""
        try:
            yield
        except torch.OutOfMemoryError:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            free = gigabytes(free_bytes(self.device))
            raise OutOfMemory(f"the GPU has {free} free, and {what} takes more: lower {lower}") from None

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
        """The seconds are the device's, of each operator behind another: without what the host takes to issue
        it (:mod:`ridgeline.ops.gpu_profile`)."""
        profile = self._profile()
        given = {"logits": logits, "cache": cache, "segments": segments, "memory": memory}
        model.forward(profile, self.batch(ids, spans, **given))
        return profile.take()

    def denoise(self, model: Model, batch: Denoising) -> torch.Tensor:
        return super().denoise(model, denoising_on(batch, self.device))

    def profile_denoising(self, model: Model, batch: Denoising) -> list[OpTime]:
        """As :meth:`profile`, of a denoising step."""
        profile = self._profile()
        model.forward(profile, denoising_on(batch, self.device))
        return profile.take()

    def _profile(self) -> Profile:
        from ridgeline.ops.gpu_profile import GpuProfile
        from ridgeline.ops.profile import Profile

        return GpuProfile(self) if self.device.type == "cuda" else Profile(self)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def prepare(self, model: Model, cache: GpuCache | GpuLatentCache, sequences: int, rows: int = 1) -> None:
        """Compile, and record the graphs of, decode steps of up to so many sequences, and steps of up to so
        many ``rows`` of a few, so that serving takes no more memory and compiles nothing for them later."""
        self._graphs.prepare(model, cache, sequences, rows)

    def release(self, cache: GpuCache | GpuLatentCache) -> None:
        self._graphs.release(cache)

    def free_bytes(self, model: Model) -> float:
        """What is free on the GPU, where the weights lie already."""
        return free_bytes(self.device)

    def alloc_cache(self, spec: CacheSpec, blocks: int) -> GpuCache | GpuLatentCache:
        return (GpuLatentCache if spec.is_latent else GpuCache)(spec, blocks, self.device)

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
        weight = self._ones(x.shape[-1]) if norm.weight is None else self._norm_weight(norm)
        if norm.kind == "rms":
            y = kernels.rms_norm(x, weight, norm.eps)
        else:
            y = kernels.layer_norm(x, weight, None if norm.bias is None else norm.bias.data, norm.eps)
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
            out = torch.zeros_like(q) if spans.has_padding else None
            return kernels.attend(q, k, v, cache, sequences, **turn, **options, out=out).flatten(1)
        most = {
            "max_rows": max((span.rows for span in spans), default=0),
            "max_keys": max((span.keys for span in spans), default=0),
        }
        return kernels.attention_varlen(q, k, v, *spans.starts_on_device(), **options, **most).flatten(1)

    def store(self, k: torch.Tensor, v: torch.Tensor, *, spans: TorchSpans, cache: kernels.KVCache) -> None:
        kernels.store(k, v, cache, GpuSpans.of(spans).sequences(cache.tokens))

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
        cache: torch.Tensor | None = None,
    ) -> torch.Tensor:
        given = {"spans": GpuSpans.of(spans), "mask": mask, "score": score, "rope": rope, "cache": cache}
        return attend_latent(self, q, kv, latent, **given)

    def route(self, x: torch.Tensor, router: Router) -> Routes:
        """In float32, logits included: what decides between two experts is not rounded."""
        weight = self._once(router.weight, lambda: _tensor(router.weight.data).float())
        if self.invariant:
            logits = kernels.linear_invariant(x.float(), kernels.GpuLinear.plain(weight))
        else:
            logits = torch.nn.functional.linear(x.float(), weight)
        return Routes(
            *kernels.route(
                logits,
                router.chosen,
                scoring=router.scoring,
                normalised=router.normalised,
                scale=router.scale,
                bias=None if router.bias is None else router.bias.data,
                groups=router.groups,
                open_groups=router.open_groups,
                group_score=router.group_score,
            )
        )

    def experts(
        self, x: torch.Tensor, routes: Routes, experts: Experts, *, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        gate_up, down = (self._stacked(weight) for weight in (experts.gate_up, experts.down))
        gate_up = replace(gate_up, gated=True)
        chosen = routes.experts, routes.weights
        options = {"residual": residual, "invariant": self.invariant}
        return kernels.mixture(x, *chosen, gate_up, down, experts.activation, **options)

    def _stacked(self, weight: Weight) -> kernels.GpuExperts:
        data = weight.data
        if isinstance(data, kernels.GpuExperts) and data.scales is not None:
            return data
        return kernels.GpuExperts.plain(_tensor(data).to(self.dtype))

    def take_rows(self, x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return x if rows is None else kernels.take_rows(x, rows)

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        return kernels.softcap(x, cap)

    # -- what follows from weights, made once: they do not change ----------------------------------------

    def _norm_weight(self, norm: Norm) -> torch.Tensor:
        """What the normalised vector is multiplied with."""
        if not norm.changes_weight:
            return norm.weight.data
        return self._once(norm.weight, lambda: (norm.weight.data.float() + norm.offset) * norm.scale)

    def _options(self, mask: Mask, score: Score) -> dict[str, Any]:
        policy = {"causal": mask.causal, "window": mask.window, "scale": score.scale}
        return policy | {"softcap": score.softcap, "schedule": self.schedule}

    def _ones(self, width: int) -> torch.Tensor:
        """The weight of a norm that has none."""
        if width not in self._plain:
            self._plain[width] = torch.ones(width, dtype=self.dtype, device=self.device)
        return self._plain[width]

    def _by_distance(self, bias: RelativeBias | None) -> torch.Tensor | None:
        return None if bias is None else self._once(bias.table, lambda: bias_by_distance(bias))

    def _once(self, weight: Weight, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if id(weight) not in self._made:
            self._made[id(weight)] = weight, make()  # the weight is kept, so that its id stays its own
        return self._made[id(weight)][1]

    def plain(self, weight: Weight) -> torch.Tensor:
        """The matrix as a tensor, a quantised one unpacked once: for products that have no kernel for it."""
        packed = isinstance(weight.data, kernels.GpuLinear) and weight.data.scales is not None
        return self._once(weight, lambda: self._data(weight)) if packed else self._data(weight)

    def _data(self, weight: Weight) -> torch.Tensor:
        return _tensor(weight.data).to(self.dtype)


def _tensor(data: torch.Tensor | kernels.GpuLinear | kernels.GpuExperts) -> torch.Tensor:
    """A weight's numbers."""
    if isinstance(data, torch.Tensor):
        return data
    return data.data if data.scales is None else data.unpack()


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

    Raises OutOfMemory if the weights take more memory than is free: before anything is moved, where that
    shows.
    """
    device = with_index(device)
    needed, free = model.weight_bytes(), free_bytes(device)
    short = OutOfMemory(
        f"the weights take {gigabytes(needed)} and the GPU has {gigabytes(free)} free: choose a smaller "
        "format (--weights int8, int4-g128), or the cpu"
    )
    if needed > free:
        raise short
    try:
        for weight in model.weights():
            weight.data, weight.stored = _moved(weight.data, device), None
    except torch.OutOfMemoryError:
        raise short from None
    return model


def _moved(data: Any, device: torch.device) -> Any:
    if isinstance(data, tuple):
        return kernels.GpuExperts.of(data, device)
    if isinstance(data, PackedLinear | Fp8Linear):
        return kernels.GpuLinear.of(data, device)
    return data.to(device)
