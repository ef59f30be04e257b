"""Figures of "Fast Transformer": padding, and the memory of FlashAttention and its relatives.

Speed-ups of whole libraries are measurements on their authors' machines and are not here.
"""

from __future__ import annotations

from functools import partial

from ridgeline.ops.batch import CacheSpec
from ridgeline.ops.lowering import FUSED
from ridgeline.validation.figures import Figure
from ridgeline.validation.passes import builtin, memory_growth, step

SOURCE = "Fast Transformer"

#: BERT's batch in the document: sequences padded to 64 tokens that have 40 on average.
PADDED, AVERAGE = 64, 40


def unpadding_gain() -> float:
    """FLOPs of BERT-base's encoder on padded over packed sequences."""
    padded, packed = (encoder_flops(length) for length in (PADDED, AVERAGE))
    return padded / packed


def encoder_flops(length: int) -> float:
    trace = step(builtin("bert-base"), rows=length, keys=length)
    return sum(op.flops.matrix for op in trace.ops if op.repeat > 1)


def differential_over_plain_cache() -> float:
    """KV elements of differential attention (V1) over those of plain attention of the same width:
    each of its heads has two keys of half the size, and one value."""
    plain = CacheSpec(layers=1, kv_heads=16, head_dim=128, format="fp16")
    halves = CacheSpec(layers=1, kv_heads=32, head_dim=64, format="fp16")
    keys, values = halves.elements_per_token / 2, plain.elements_per_token / 2
    return (keys + values) / plain.elements_per_token


FIGURES = (
    Figure(
        SOURCE,
        "EffectiveTransformer",
        "BERT-base, gain from unpadding 64 to 40 tokens on average",
        "x",
        "1.5",
        unpadding_gain,
        "1.5 is a speed-up, which the ratio of FLOPs bounds, so 10 % are allowed",
        tolerance=0.1,
    ),
    Figure(
        SOURCE,
        "Dual Chunk FlashAttention",
        "FlashAttention, memory at twice the length",
        "x",
        "4.0",
        partial(memory_growth, FUSED),
        "its scores stay on the chip: linear, not O(N^2)",
        right="2.0",
    ),
    Figure(
        SOURCE,
        "Differential FlashAttention",
        "Differential attention, KV cache over plain attention's",
        "x",
        "2.0",
        differential_over_plain_cache,
        "two keys of half the size and one value (V1)",
        right="1.0",
    ),
)
