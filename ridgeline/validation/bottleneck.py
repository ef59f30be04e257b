"""Figures of "Real bottleneck of the Transformer": what the document says in words, as ratios."""

from __future__ import annotations

from functools import partial

from ridgeline.ops.lowering import FUSED, NAIVE_ATTENTION, UNFUSED
from ridgeline.validation.figures import Figure
from ridgeline.validation.passes import (
    LONG,
    batched_attention_intensity,
    long_step,
    matrix_flops,
    memory_growth,
)

SOURCE = "Real bottleneck of the Transformer"

ATTENTION = frozenset({"attention"})


def attention_flops_growth() -> float:
    one, two = (matrix_flops(long_step(length=n), ATTENTION) for n in (LONG, 2 * LONG))
    return two / one


def flops_after_fusion() -> float:
    """FLOPs of all kernels with Flash attention, over those with every part a kernel of its own."""
    fused, unfused = (
        sum(kernel.flops.total * op.repeat for op, kernel in long_step().lowered(lowering).kernels())
        for lowering in (FUSED, UNFUSED)
    )
    return fused / unfused


FIGURES = (
    Figure(
        SOURCE,
        "Roofline",
        "intensity of attention's matrix products, batch 64 over batch 1",
        "x",
        "1.0",
        batched_attention_intensity,
        "said in words: a larger batch brings no relief",
    ),
    Figure(
        SOURCE,
        "Long text",
        "attention's FLOPs at twice the length",
        "x",
        "4.0",
        attention_flops_growth,
        "said in words: quadratic in computation",
    ),
    Figure(
        SOURCE,
        "Long text",
        "attention's memory at twice the length, scores in memory",
        "x",
        "4.0",
        partial(memory_growth, NAIVE_ATTENTION),
        "said in words: quadratic in storage",
    ),
    Figure(
        SOURCE,
        "Long text",
        "FLOPs of Flash attention over those of separate kernels",
        "x",
        "1.0",
        flops_after_fusion,
        "said in words: on-chip memory saves traffic, not computation",
    ),
)
