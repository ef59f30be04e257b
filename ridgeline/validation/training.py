"""Figures of the papers on training: what activations, weights and states take, and utilisation."""

from __future__ import annotations

from functools import cache, partial

from ridgeline.analysis.training_step import Recipe, count_training, shared_out
from ridgeline.hardware import load_device
from ridgeline.ops.batch import Span
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.count_training import TrainingCount
from ridgeline.ops.lowering import UNFUSED
from ridgeline.ops.optimizer import get_optimizer, step
from ridgeline.ops.records import Weight
from ridgeline.ops.trace import Trace
from ridgeline.validation.figures import Figure
from ridgeline.validation.passes import builtin, plain_decoder

MEGATRON = "Korthikanti et al. 2022, arXiv:2205.05198, activation recomputation"
ZERO = "Rajbhandari et al. 2020, arXiv:1910.02054, ZeRO"

# -- activations ----------------------------------------------------------------------------------

#: GPT-3's layer at its length: a heads of width h, s tokens, one sequence.
HEADS, WIDTH, LENGTH = 96, 12288, 2048


@cache
def layers(number: int) -> Trace:
    """GPT-3's layers, unfused in fp16 with dropout, forward."""
    shape = {"width": WIDTH, "intermediate": 4 * WIDTH, "heads": HEADS, "vocab": 1000}
    model = plain_decoder("gpt-3's layers", layers=number, **shape)
    ops = TrainingCount(activations="fp16", lowering=UNFUSED, train=True, dropout=True)
    return ops.trace(ops.cross_entropy(model.forward(ops, ops.batch([Span(LENGTH)], logits="all"))))


def kept_a_layer(recompute: str) -> float:
    """Activation memory that one more layer takes, in units of s b h bytes."""
    few, many = (layers(n).backward(recompute).memory().activations for n in (4, 5))
    return (many - few) / (LENGTH * WIDTH)


def extra_flops(recompute: str) -> float:
    """Matrix operations that recomputation adds to a layer's training, in %, all pairs counted."""
    recipe = Recipe(kernels="unfused", precision="mixed", recompute=recompute)
    some, none = (
        count_training(builtin("gpt3-175b"), Span(LENGTH), r, pairs=Pairs.SQUARE).flops.matrix
        for r in (recipe, Recipe(kernels="unfused"))
    )
    return 100 * (some / none - 1)


#: The paper's iteration of GPT-3: sequences, A100s, seconds.
SEQUENCES, GPUS, SECONDS = 64, 64, 13.75


def published_mfu() -> float:
    """Model FLOPs of the paper's iteration over what its GPUs could do in that time, in %."""
    trace = count_training(builtin("gpt3-175b"), Span(LENGTH), Recipe(kernels="unfused"), pairs=Pairs.SQUARE)
    peak = load_device("a100-80gb").matrix_rate("fp16") * GPUS * SECONDS
    return 100 * trace.flops.matrix * SEQUENCES / peak


UNIT = "s b h bytes"
MEGATRON_FIGURES = (
    Figure(
        MEGATRON,
        "section 4.1",
        "GPT-3, activations a layer, nothing recomputed: 34 + 5 a s / h",
        UNIT,
        "114",
        partial(kept_a_layer, "none"),
        "of which the masks and results of dropout are 2 + 3 a s / h",
    ),
    Figure(
        MEGATRON,
        "table 2",
        "GPT-3, activations a layer, selective recomputation",
        UNIT,
        "34",
        partial(kept_a_layer, "selective"),
    ),
    Figure(
        MEGATRON,
        "table 2",
        "GPT-3, activations a layer, full recomputation",
        UNIT,
        "2",
        partial(kept_a_layer, "full"),
    ),
    Figure(
        MEGATRON,
        "abstract, section 5",
        "GPT-3, activations saved by selective recomputation",
        "%",
        "70",
        lambda: 100 * (1 - kept_a_layer("selective") / kept_a_layer("none")),
    ),
    Figure(
        MEGATRON,
        "section 5",
        "GPT-3, extra FLOPs of selective recomputation",
        "%",
        "2.7",
        partial(extra_flops, "selective"),
        "2.7 is s / 6h, as many as attention's products take in a whole step; making the scores again "
        "takes one of their six",
        right="0.45",
    ),
    Figure(
        MEGATRON,
        "table 5",
        "GPT-3, 64 sequences on 64 A100 in 13.75 s: model FLOPs utilisation",
        "%",
        "51.4",
        published_mfu,
        "all query-key pairs counted",
    ),
)


# -- weights, gradients and states ----------------------------------------------------------------

#: The paper's example: parameters and devices.
PARAMETERS, DEVICES = (75_000, 100_000), 64


@cache
def example() -> Trace:
    """A step of Adam on 7.5e9 parameters in mixed precision."""
    ops = TrainingCount(activations="fp16", train=True)
    x = ops.input("x", (1, PARAMETERS[1]), "fp16")
    y = ops.linear(x, Weight("parameters", PARAMETERS, "fp16"))
    return step(ops.trace(y).backward(), get_optimizer("adam"), master="fp32")


def gigabytes(zero: int) -> float:
    memory = shared_out(example(), zero, DEVICES, 0)
    return (memory.weights + memory.gradients + memory.states) / 1e9


ZERO_FIGURES = tuple(
    Figure(
        ZERO,
        "figure 1",
        f"7.5B parameters on 64 devices, {stage}",
        "GB",
        printed,
        partial(gigabytes, zero),
        "Adam, mixed precision: 2 + 2 + 12 bytes a parameter",
    )
    for zero, stage, printed in (
        (0, "no sharding", "120"),
        (1, "states shared out", "31.4"),
        (2, "and gradients", "16.6"),
        (3, "and weights", "1.9"),
    )
)

FIGURES = (*MEGATRON_FIGURES, *ZERO_FIGURES)
