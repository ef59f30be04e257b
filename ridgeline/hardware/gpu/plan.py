"""The shapes that are timed on a GPU: fixed, and chosen without any model in mind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Outputs and inputs of weights.
Weights = tuple[tuple[int, int], ...]
#: Query heads, key/value heads and the size of a head.
Heads = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class GpuPlan:
    """What is timed within ``seconds``; what there is no time for is left out, the finest steps first.

    ``rows`` of 16-bit products with ``weights``; ``quantised_rows`` with ``quantised_weights`` of
    ``formats``, and ``rare_rows`` with ``rare_weights`` of ``rare_formats``. ``decode_keys`` cached tokens of
    ``decode_sequences`` for each of ``heads``, in ``caches``; ``prompts`` are rows and cached tokens;
    ``encodes`` rows and sequences. Element-wise kernels run over ``element_rows`` of ``widths``;
    ``vocabularies`` are sampled from. No work takes more than ``most_bytes``. ``copied`` bytes show a
    bandwidth.
    """

    seconds: float = 90.0
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    weights: Weights = (
        *((1024, 1024), (4096, 1024), (1024, 4096), (2048, 2048), (4096, 4096), (8192, 8192)),
        *((16384, 4096), (4096, 16384), (32768, 4096), (131072, 2048)),
    )
    formats: tuple[str, ...] = ("int4-g128", "int8")
    quantised_rows: tuple[int, ...] = (1, 4, 16, 32, 128, 512, 2048)
    quantised_weights: Weights = ((1024, 1024), (4096, 4096), (16384, 4096), (4096, 16384))
    rare_formats: tuple[str, ...] = ("int4-g32", "int4-g64", "int4-g32-zp", "int4-g64-zp", "int4-g128-zp")
    rare_rows: tuple[int, ...] = (1, 16, 64, 1024)
    rare_weights: Weights = ((2048, 2048), (16384, 4096))
    caches: tuple[str, ...] = ("bf16",)
    heads: Heads = ((32, 8, 128), (16, 16, 64), (32, 8, 64), (16, 8, 256), (32, 32, 128))
    decode_keys: tuple[int, ...] = (128, 1024, 8192, 32768)
    decode_sequences: tuple[int, ...] = (1, 8, 64)
    prompts: tuple[tuple[int, int], ...] = ((128, 0), (512, 0), (2048, 0), (8192, 0), (512, 4096))
    encodes: tuple[tuple[int, int], ...] = ((128, 1), (512, 1), (512, 8), (4096, 1))
    element_rows: tuple[int, ...] = (1, 16, 128, 1024, 8192)
    widths: tuple[int, ...] = (768, 4608, 15360)
    vocabularies: tuple[int, ...] = (32768, 131072)
    most_bytes: int = 4 << 30
    copied: int = 1 << 30

    @classmethod
    def usual(cls) -> GpuPlan:
        """Every format of weights and caches that the kernels read."""
        from ridgeline import loading
        from ridgeline.kernels.triton import KV_FORMATS
        from ridgeline.ops.formats import get_format

        names = (*loading.FORMATS, *loading.GPU_FORMATS)
        quantised = [name for name in names if get_format(name).is_quantised]
        rare = tuple(name for name in quantised if name not in cls.formats)
        return cls(rare_formats=rare, caches=("bf16", *(c for c in KV_FORMATS if get_format(c).bits < 16)))


def spread(items: Sequence) -> list:
    """The same in another order: the first, the last, the middle, and so on to finer steps, so that however
    many are taken they cover all."""
    order, steps = [], len(items)
    seen: set[int] = set()
    denominator = 1
    while len(order) < steps:
        for numerator in range(denominator + 1):
            place = round(numerator * (steps - 1) / denominator) if steps > 1 else 0
            if place not in seen:
                seen.add(place)
                order.append(items[place])
        denominator *= 2
    return order
