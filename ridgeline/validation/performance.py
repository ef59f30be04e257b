"""Figures of "Transformer performance analysis": capacity, the crossover, the backward pass.

The document's formulas were pictures and are lost in its text; what they gave is derived here
from the traces. Of its last table only the rows' names are left, so the backward pass is held to
what the table's source says of it: an equal ratio for the first layer, twice the forward pass for
every other (Hobbhahn and Sevilla, "What's the backward-forward FLOP ratio for neural networks?",
Epoch, 2021).
"""

from __future__ import annotations

from functools import cache, partial

from ridgeline.hardware import Device, load_device
from ridgeline.models import Model
from ridgeline.ops.count import Count
from ridgeline.ops.formats import get_format
from ridgeline.ops.kernel import Role
from ridgeline.ops.records import Weight
from ridgeline.ops.trace import Trace
from ridgeline.validation.figures import Figure
from ridgeline.validation.passes import builtin, matrix_flops, part, plain_decoder, step

SOURCE = "Transformer performance analysis"

# -- a token's keys and values --------------------------------------------------------------------

#: What the document takes for an A100's memory bandwidth, in bytes/s.
DOCUMENT_BANDWIDTH = 1.5e12


def load_over_compute(device: Device, bandwidth: float) -> float:
    """How much longer the weights of a token's projections take to read at ``bandwidth`` than to
    multiply by, in fp16."""
    projection = part(step(builtin("documents-52b"), rows=1, keys=1), "attention.qkv", "matmul")
    weight_bytes = sum(a.bytes for a in projection.reads if a.value.role is Role.WEIGHT)
    return weight_bytes / bandwidth / (projection.flops.matrix / device.matrix_rate("fp16"))


def load_over_compute_as_printed() -> float:
    return load_over_compute(load_device("a100-40gb"), DOCUMENT_BANDWIDTH)


def load_over_compute_on(name: str) -> float:
    device = load_device(name)
    return load_over_compute(device, device.bandwidth)


KV_FIGURES = tuple(
    Figure(
        SOURCE,
        "KV cache",
        f"A100, loading over computing a token's KV, {at}",
        "",
        "208",
        compute,
        note,
        right,
    )
    for at, compute, note, right in (
        ("at 1.5 TB/s", load_over_compute_as_printed, "312 TFLOP/s over 1.5 TB/s", None),
        ("40 GB card", partial(load_over_compute_on, "a100-40gb"), "1.555 TB/s", "201"),
        ("80 GB card", partial(load_over_compute_on, "a100-80gb"), "2.039 TB/s", "153"),
    )
)


# -- a 52B model on four A100 40 GB ---------------------------------------------------------------

#: The document's own size of the model; the built-in config, whose vocabulary is our choice,
#: has 52.15e9 parameters.
PARAMETERS = 52e9
#: What the document leaves to the KV cache.
DOCUMENT_FREE_BYTES = 16e9


def weight_bytes() -> float:
    return get_format("fp16").nbytes((PARAMETERS,))


def kv_bytes_per_token() -> float:
    return builtin("documents-52b").cache_spec("fp16").bytes_per_token


def free_bytes(cards: int) -> float:
    return cards * load_device("a100-40gb").memory_bytes - weight_bytes()


CARDS_NOTE = "4 x 40 - 104 = 56 GB"
CAPACITY_FIGURES = (
    Figure(
        SOURCE,
        "Capacity",
        "52B model",
        "B parameters",
        "52",
        lambda: builtin("documents-52b").parameter_count() / 1e9,
    ),
    Figure(
        SOURCE,
        "Capacity",
        "52B model in fp16",
        "GB",
        "104",
        lambda: builtin("documents-52b").weight_bytes() / 1e9,
    ),
    Figure(
        SOURCE,
        "Capacity",
        "52B model, KV cache a token in fp16",
        "MiB",
        "2",
        lambda: kv_bytes_per_token() / 2**20,
        "the formula is lost: 2 x 64 layers x 8192 x 2 bytes",
    ),
    Figure(
        SOURCE,
        "Capacity",
        "tokens that fit in 16 GB",
        "tokens",
        "8e3",
        lambda: DOCUMENT_FREE_BYTES / kv_bytes_per_token(),
        "printed as about 8000",
    ),
    Figure(
        SOURCE,
        "Capacity",
        "left for the KV cache on three A100 40 GB",
        "GB",
        "16",
        lambda: free_bytes(3) / 1e9,
        "printed of four cards",
    ),
    Figure(
        SOURCE,
        "Capacity",
        "left for the KV cache on four A100 40 GB",
        "GB",
        "16",
        lambda: free_bytes(4) / 1e9,
        CARDS_NOTE,
        right="56",
    ),
    Figure(
        SOURCE,
        "Capacity",
        "tokens that fit on four A100 40 GB",
        "tokens",
        "8e3",
        lambda: free_bytes(4) / kv_bytes_per_token(),
        CARDS_NOTE,
        right="26.7e3",
    ),
)


# -- batching -------------------------------------------------------------------------------------


def extra_traffic_percent() -> float:
    """By how much one more sequence of 512 tokens lengthens a decode step that memory binds."""
    one, two = (step(builtin("documents-52b"), rows=1, keys=512, sequences=n).bytes for n in (1, 2))
    return 100 * (two / one - 1)


BATCH_FIGURES = (
    Figure(
        SOURCE,
        "KV cache",
        "52B model, extra time of decoding a second sequence of 512 tokens",
        "%",
        "1",
        extra_traffic_percent,
        "the document gives no length; 512 tokens are our choice",
    ),
)


# -- where attention overtakes the MLP ------------------------------------------------------------

ATTENTION = frozenset({"attention.qkv", "attention", "attention.out"})
MLP = frozenset({"mlp.up", "mlp.down"})


@cache
def wide_layer() -> Model:
    """in_d = mid_d = out_d = 1536, and an MLP of four times that."""
    return plain_decoder("width 1536", width=1536, intermediate=4 * 1536, heads=12, layers=1, vocab=1)


def crossover() -> float:
    """The first length at which attention takes as many FLOPs as the MLP, from one swept trace."""
    import numpy

    lengths = numpy.arange(1, 8193)
    trace = step(wide_layer(), rows=lengths, keys=lengths)
    reached = matrix_flops(trace, ATTENTION) >= matrix_flops(trace, MLP)
    return lengths[reached.argmax()]


CROSSOVER_FIGURES = (
    Figure(
        SOURCE,
        "Discussion",
        "length at which attention overtakes the MLP, dim 1536",
        "tokens",
        "3e3",
        crossover,
        "printed as about 3K: 8 s d^2 + 4 s^2 d = 16 s d^2 at s = 2d; at 4d if only visible pairs count",
    ),
)


# -- backward of a three-layer MLP ----------------------------------------------------------------

MLP_WIDTH, MLP_ROWS = 512, 128


@cache
def mlp_training() -> Trace:
    """Three layers of one width, forward and backward; the input needs no gradient."""
    ops = Count(activations="fp32", train=True)
    x = ops.input("input", (MLP_ROWS, MLP_WIDTH), "fp32")
    for name, activation in (("hidden1", "relu"), ("hidden2", "relu"), ("output", None)):
        x = ops.linear(x, Weight(name, (MLP_WIDTH, MLP_WIDTH), "fp32"), activation=activation)
    return ops.trace(x).backward()


def backward_over_forward(layer: str) -> float:
    forward, backward = (
        matrix_flops(mlp_training(), frozenset({name})) for name in (layer, f"{layer}.backward")
    )
    return backward / forward


BACKWARD_FIGURES = tuple(
    Figure(
        SOURCE,
        "Backward",
        f"three-layer MLP, {layer}: FLOPs backward over forward",
        "x",
        printed,
        partial(backward_over_forward, layer),
        note,
    )
    for layer, printed, note in (
        ("hidden1", "1", "the gradient of its weights alone"),
        ("hidden2", "2", "the gradients of its weights and of its input"),
        ("output", "2", "the gradients of its weights and of its input"),
    )
)


# -- model parallelism ----------------------------------------------------------------------------


@cache
def pipelined(stages: int) -> tuple[float, float]:
    """Seconds a token of the 52B model on A100s, and tokens a second, in so many stages with a sequence
    each."""
    from ridgeline.analysis.parallel import parallel
    from ridgeline.predict.layout import Layout

    config = builtin("documents-52b").config
    layout = Layout(pipeline=stages)
    tpot = parallel(config, "a100-40gb:4", layout, prompt=512, output=2, batch=stages).figures.tpot_seconds
    return tpot, stages / tpot


def divided_flops(ranks: int) -> float:
    """FLOPs of the layers' matrix products on one of so many tensor-parallel ranks, over those of one
    alone."""
    from ridgeline.models.sharding import shard

    whole, part = (
        matrix_flops(step(model, rows=1, keys=512), ATTENTION | MLP)
        for model in (builtin("documents-52b"), shard(builtin("documents-52b"), ranks))
    )
    return part / whole


PARALLEL_NOTE = "one sequence a stage; the head makes the last stage a little longer"
PARALLEL_FIGURES = (
    Figure(
        SOURCE,
        "Model parallelism",
        "pipeline of four, latency of a token over that of one card",
        "x",
        "1",
        lambda: pipelined(4)[0] / pipelined(1)[0],
        PARALLEL_NOTE,
        tolerance=0.05,
    ),
    Figure(
        SOURCE,
        "Model parallelism",
        "pipeline of four, throughput over that of one card",
        "x",
        "4",
        lambda: pipelined(4)[1] / pipelined(1)[1],
        PARALLEL_NOTE,
        tolerance=0.05,
    ),
    Figure(
        SOURCE,
        "Model parallelism",
        "tensor parallelism over four, FLOPs of a card's matrix products over those of one alone",
        "x",
        "0.25",
        lambda: divided_flops(4),
        "every matrix and every head is on one card",
    ),
)


FIGURES = (
    *KV_FIGURES,
    *CAPACITY_FIGURES,
    *BATCH_FIGURES,
    *CROSSOVER_FIGURES,
    *BACKWARD_FIGURES,
    *PARALLEL_FIGURES,
)
