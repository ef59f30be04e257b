"""A packed batch and a key/value cache on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ridgeline.errors import InputError, OutOfMemory
from ridgeline.kernels import triton as kernels
from ridgeline.ops.batch import CacheSpec
from ridgeline.ops.formats import get_format
from ridgeline.ops.records import Rope
from ridgeline.ops.torch_batch import TorchSpans

if TYPE_CHECKING:
    from ridgeline.models.denoising import Denoising


class Angles(NamedTuple):
    """cos and sin, float32 [angles, dim], and the one that each row takes; its own if ``positions`` is
    None."""

    cos: torch.Tensor
    sin: torch.Tensor
    positions: torch.Tensor | None


NO_ANGLES = Angles(None, None, None)


@dataclass
class GpuSpans(TorchSpans):
    """Spans with what the GPU's kernels read, made once a step and used by all layers."""

    #: Whether there are rows that belong to no sequence, which attention leaves out.
    has_padding = False
    _made: dict[int, kernels.Sequences] = field(default_factory=dict)
    _angles: dict[Rope, Angles] = field(default_factory=dict)
    latents: dict[tuple[int, ...], Any] = field(default_factory=dict)
    _on_device: tuple[torch.Tensor, ...] = ()

    @classmethod
    def of(cls, spans: TorchSpans, device: torch.device | None = None) -> GpuSpans:
        """Those of a step as they are, plain ones with what is missing, on ``device``, by default their
        own."""
        return cls(spans.items, device or spans.device) if type(spans) is TorchSpans else spans

    def sequences(self, tokens: int) -> kernels.Sequences:
        """The sequences in a cache whose blocks hold so many tokens."""
        if tokens not in self._made:
            self._made[tokens] = kernels.Sequences.of(self.items, self.device, tokens)
        return self._made[tokens]

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Each row's sequence's row of x: [sequences, ...] -> [rows, ...]."""
        return x[TorchSpans.sequences.fget(self)]  # the name is taken here, by what kernels read

    def angles(self, rope: Rope) -> Angles:
        if rope not in self._angles:
            cos, sin = self.rotation(rope, torch.float32)
            self._angles[rope] = Angles(cos[:, 0].contiguous(), sin[:, 0].contiguous(), None)
        return self._angles[rope]

    def starts_on_device(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the rows and the keys of sequences begin, where attention has no cache."""
        if not self._on_device:
            starts = (self.starts, self.key_starts)
            self._on_device = tuple(torch.tensor(x, dtype=torch.int32).to(self.device) for x in starts)
        return self._on_device


def denoising_on(batch: Denoising, device: torch.device) -> Denoising:
    """A denoising step with its tensors and spans on the GPU."""

    def moved(x: torch.Tensor | TorchSpans | None) -> torch.Tensor | GpuSpans | None:
        if isinstance(x, TorchSpans):
            return x if isinstance(x, GpuSpans) else GpuSpans(x.items, device)
        return x if x is None else x.to(device)

    spans = replace(batch.spans, **{f.name: moved(getattr(batch.spans, f.name)) for f in fields(batch.spans)})
    tensors = {f.name: moved(getattr(batch, f.name)) for f in fields(batch) if f.name != "spans"}
    return replace(batch, spans=spans, **tensors)


#: About the standard deviation of a random int8 element, by whose inverse a random cache is scaled.
INT8_SPREAD = 74.0


class GpuCache:
    """A cache of keys and values in ``blocks`` blocks of any size, allocated at once.

    Raises InputError for a format that the kernels don't read, and if the device's memory does not hold it.
    """

    def __init__(self, spec: CacheSpec, blocks: int, device: torch.device) -> None:
        if spec.format not in kernels.KV_FORMATS:
            known = ", ".join(kernels.KV_FORMATS)
            raise InputError(f"a GPU's cache can't be kept as {spec.format}: choose one of {known}")
        if len(set(spec.sizes)) > 1:
            raise InputError("a GPU's cache holds keys and values of one size; give a model that has them")
        self.spec = spec
        self.blocks = blocks
        shape = (2, spec.layers, blocks, spec.block_size, spec.kv_heads, spec.head_dim)
        has_scales = get_format(spec.format).is_quantised
        scales = (2, spec.layers, blocks if has_scales else 0, spec.kv_heads, spec.block_size)
        self._data = allocated(shape, kernels.KV_FORMATS[spec.format], spec, blocks, device)
        self._scales = allocated(scales, torch.float32, spec, blocks, device)
        pieces = (self._data, self._scales) if has_scales else (self._data,)
        self._layers = [kernels.KVCache(*(x for p in pieces for x in p[:, i])) for i in range(spec.layers)]

    def layer(self, index: int) -> kernels.KVCache:
        return self._layers[index]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy block ``source`` to block ``target`` in every layer, for each of ``pairs`` in turn."""
        for source, target in pairs:
            self._data[:, :, target] = self._data[:, :, source]
            if len(self._scales[0, 0]):
                self._scales[:, :, target] = self._scales[:, :, source]

    def randomise(self) -> None:
        """Fill every slot with numbers of variance 1, as if tokens had been computed: for timing a long
        context."""
        if self.spec.format == "int8":
            self._data.random_(-127, 128)
            self._scales.fill_(1 / INT8_SPREAD)
        elif self.spec.format == "fp8":
            for layer in self._data.flatten(0, 1):  # noise is float32, four times as large
                layer.copy_(
                    torch.randn(layer.shape, device=layer.device).to(torch.float8_e4m3fn).view(torch.uint8)
                )
            self._scales.fill_(1)
        else:
            self._data.normal_()


def allocated(
    shape: tuple[int, ...], dtype: torch.dtype, spec: CacheSpec, blocks: int, device: torch.device
) -> torch.Tensor:
    """The memory of a cache. Raises OutOfMemory if the device has less."""
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except torch.OutOfMemoryError:
        tokens, free = blocks * spec.block_size, gigabytes(free_bytes(device))
        raise OutOfMemory(
            f"the GPU has {free} free, and a cache of {tokens} tokens takes "
            f"{gigabytes(tokens * spec.bytes_per_token)}: lower cache_tokens or max_tokens"
        ) from None


def free_bytes(device: torch.device) -> int:
    """Bytes of the device's memory that are free, PyTorch's own reserve included."""
    if device.type != "cuda":
        from ridgeline.hardware.host import this_host

        return this_host().memory_bytes
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
