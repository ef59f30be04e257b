"""Figures of "Thoughts on Transformer": arithmetic intensity.

The document counts elements, not bytes, a multiply-add as two operations, the full square of
query-key pairs, and an MLP of two matrices. Its model is therefore traced as a plain decoder of
Llama-2-7B's size, unfused.

Left out: the two latency charts, which are pictures of measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

from ridgeline.hardware import load_device
from ridgeline.models import Model
from ridgeline.ops.kernel import Kernel
from ridgeline.ops.trace import MATRIX_PARTS, Trace
from ridgeline.validation.figures import Figure
from ridgeline.validation.passes import intensity, part, plain_decoder, step

SOURCE = "Thoughts on Transformer"

PROJECTIONS = "MHA (projections)"
ACT_TO_ACT = "MHA (act-to-act matmuls)"
FFN = "FFN (projections)"
#: The document's classes of operators, by their names in the trace.
OPERATORS = {
    PROJECTIONS: frozenset({"attention.qkv", "attention.out"}),
    ACT_TO_ACT: frozenset({"attention"}),
    FFN: frozenset({"mlp.up", "mlp.down"}),
}
ALL_OPERATORS = frozenset().union(*OPERATORS.values())


@cache
def document_model() -> Model:
    """Llama-2-7B as the document has it, with two matrices in the MLP."""
    return plain_decoder(
        "llama-2-7b, plain", width=4096, intermediate=11008, heads=32, layers=32, vocab=32000
    )


@cache
def document_step(rows: int, keys: int) -> Trace:
    return step(document_model(), rows=rows, keys=keys)


# -- arithmetic intensity -------------------------------------------------------------------------

QUERIES = (1, 2, 4, 8, 128, 512, 4096)
LENGTHS = (128, 512, 4096, 32000)

#: Per operator its kernel in the trace, and the printed table: a row for each of LENGTHS, a
#: column for each of QUERIES.
INTENSITY_TABLES = {
    "MHA (casting)": (
        ("attention.out", "matmul"),
        """
        1.999024 3.996098 7.984405 15.93774 240.9412 -        -
        1.999024 3.996098 7.984405 15.93774 240.9412 819.2    -
        1.999024 3.996098 7.984405 15.93774 240.9412 819.2    2730.667
        1.999024 3.996098 7.984405 15.93774 240.9412 819.2    2730.667
        """,
    ),
    "MHA (act-to-act)": (
        ("attention", "scores"),
        """
        1.969231 3.878788 7.529412 14.22222 85.33333 -        -
        1.980658 3.923372 7.699248 14.84058 113.7778 170.6667 -
        1.984016 3.936569 7.750237 15.03119 126.0308 199.8049 240.9412
        1.984435 3.938219 7.756636 15.05528 127.7445 204.1467 247.2833
        """,
    ),
    "FFN": (
        ("mlp.up", "matmul"),
        """
        1.999330 3.997322 7.989295 15.95724 245.4746 -        -
        1.999330 3.997322 7.989295 15.95724 245.4746 874.0844 -
        1.999330 3.997322 7.989295 15.95724 245.4746 874.0844 3453.490
        1.999330 3.997322 7.989295 15.95724 245.4746 874.0844 3453.490
        """,
    ),
}

#: Long enough for 2 d/h to be reached to within half a unit.
VERY_LONG = 2**24


def operator_intensity(kernel: tuple[str, str], rows: int, keys: int) -> float:
    return intensity(part(document_step(rows, keys), *kernel))


def layer_products(rows: int, keys: int) -> list[Kernel]:
    """The matrix products of a layer."""
    ops = document_step(rows, keys).ops
    return [k for op in ops if op.name in ALL_OPERATORS for k in op.parts if k.kind in MATRIX_PARTS]


def layer_intensity(rows: int, keys: int) -> float:
    """FLOPs an element of all matrix products of a layer together."""
    products = layer_products(rows, keys)
    return sum(k.flops.matrix for k in products) / sum(k.elements for k in products)


def layer_intensity_in_bytes(rows: int, keys: int) -> float:
    products = layer_products(rows, keys)
    return sum(k.flops.matrix for k in products) / sum(k.bytes for k in products)


def intensity_figures() -> Iterator[Figure]:
    unit = "FLOP/element"
    for operator, (kernel, table) in INTENSITY_TABLES.items():
        for keys, line in zip(LENGTHS, table.strip().splitlines(), strict=True):
            for rows, cell in zip(QUERIES, line.split(), strict=True):
                if cell == "-":  # more new tokens than the sequence has
                    continue
                item = f"{operator}, n={rows}, l={keys}"
                compute = partial(operator_intensity, kernel, rows, keys)
                yield Figure(SOURCE, "Prefill: arithmetic intensity", item, unit, cell, compute)
    yield Figure(
        SOURCE,
        "Prefill: arithmetic intensity",
        "MHA (act-to-act), upper limit for large n and l",
        unit,
        "256",
        partial(operator_intensity, ("attention", "scores"), VERY_LONG, VERY_LONG),
        "2 d/h",
    )
    for rows, section in ((1, "Decode"), (2, "Prefill"), (4, "Prefill"), (8, "Prefill")):
        item = f"all matrix products of a layer, n={rows}, l=4096"
        compute = partial(layer_intensity, rows, 4096)
        note = "the document's 2n, for an n that is small beside d/h"
        yield Figure(SOURCE, f"{section}: arithmetic intensity", item, unit, str(2 * rows), compute, note)


# -- a decode step on the RTX 4060 ----------------------------------------------------------------

RTX_4060_FLOPS = 15.39e12


def bandwidth() -> float:
    return load_device("rtx-4060").bandwidth


GPU_FIGURES = (
    Figure(
        SOURCE,
        "Decode: arithmetic intensity",
        "RTX 4060, floating-point rate",
        "TFLOP/s",
        "15.39",
        lambda: load_device("rtx-4060").vector_rate("fp32") / 1e12,
        "fp32 at NVIDIA's boost clock of 2.46 GHz; 15.39 is a board at 2.505 GHz, so 2 % are allowed",
        tolerance=0.02,
    ),
    Figure(
        SOURCE,
        "Decode: arithmetic intensity",
        "RTX 4060, memory bandwidth",
        "GB/s",
        "768",
        lambda: bandwidth() / 1e9,
        "17 Gbit/s x 128 bits; 768 GB/s is another card's",
        right="272",
    ),
    Figure(
        SOURCE,
        "Decode: arithmetic intensity",
        "RTX 4060, the document's FLOP/s over the bandwidth",
        "FLOP/byte",
        "20",
        lambda: RTX_4060_FLOPS / bandwidth(),
        "printed as 20 to 30 times; it follows from the wrong bandwidth",
        right="57",
    ),
    Figure(
        SOURCE,
        "Decode: arithmetic intensity",
        "decode intensity to hold against that ratio, l=4096",
        "FLOP/byte",
        "2",
        partial(layer_intensity_in_bytes, 1, 4096),
        "2 is FLOPs an element; an element of fp16 has two bytes",
        right="1",
    ),
)


FIGURES = (*intensity_figures(), *GPU_FIGURES)
