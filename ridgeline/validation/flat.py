"""Figures of "FLAT versus Flash attention": what the document says in words, as ratios.

Its latency shares of OPT-1.3B (attention 47.93 %, fully connected 32.20 %, activation and norm
19.87 %; matrix products 66 % of attention) were measured by the authors of DSQ (arXiv:2303.05295)
on a machine and at lengths they do not name, so they cannot be recomputed here; ``ridgeline breakdown``
predicts the same classes for any hardware file and shows them beside it.
"""

from __future__ import annotations

from functools import partial

from ridgeline.ops.lowering import FUSED, NAIVE_ATTENTION
from ridgeline.validation.figures import Figure
from ridgeline.validation.passes import batched_attention_intensity, memory_growth

SOURCE = "FLAT versus Flash attention"

FIGURES = (
    Figure(
        SOURCE,
        "Abstract",
        "attention's memory at twice the length, scores in memory",
        "x",
        "4.0",
        partial(memory_growth, NAIVE_ATTENTION),
        "said in words: quadratic growth",
    ),
    Figure(
        SOURCE,
        "Abstract",
        "attention's memory at twice the length, tailored dataflow",
        "x",
        "2.0",
        partial(memory_growth, FUSED),
        "said in words: linear growth",
    ),
    Figure(
        SOURCE,
        "Introduction and background",
        "operational intensity of L/A, batch 64 over batch 1",
        "x",
        "1.0",
        batched_attention_intensity,
        "said in words: a larger batch does not help activation-activation operators",
    ),
)
