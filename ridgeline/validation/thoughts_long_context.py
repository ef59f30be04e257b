"""Figures of "Thoughts on Transformer": long contexts, and a model larger than memory.

The Llama-2-7B table counts in units of 2^20 and gives the model an MLP of two matrices; what its
three really cost stands beside it.

Left out: the document's erratum on low-rank values (from O = VX and X = AB follows V' = O (AB)^+,
not (AB)^+ O), which is a formula and has no number to hold anything against.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ridgeline.hardware import load_device
from ridgeline.ops.formats import get_format
from ridgeline.ops.kernel import Role
from ridgeline.ops.trace import MATRIX_PARTS, Trace
from ridgeline.validation.figures import Figure
from ridgeline.validation.passes import builtin, matrix_flops, step
from ridgeline.validation.thoughts_intensity import (
    ACT_TO_ACT,
    ALL_OPERATORS,
    OPERATORS,
    SOURCE,
    document_step,
)

LONG_CONTEXT = "Long Context"

# -- FLOPs and MOPs a token -----------------------------------------------------------------------

#: The unit that the table calls 10^6.
MI = 2**20
ROWS = {**OPERATORS, "Total": ALL_OPERATORS}
GATED_FFN = frozenset({"mlp.gate_up", "mlp.down"})

#: A line for each sequence length: FLOPs and MOPs a token of each of ROWS.
LLAMA_TABLE = """
    128   4096 2048    64   32  5504 2752   9664  4832
    512   4096 2048   256  128  5504 2752   9856  4928
    4096  4096 2048  2048 1024  5504 2752  11648  5824
    32768 4096 2048  8192 8192  5504 2752  25984 12992
"""
#: Cells of the table that are wrong: the right value and why.
LLAMA_ERRATA = {
    (32768, ACT_TO_ACT, "FLOPs"): (
        "16384",
        "twice the MOPs, as in every other row; the row's own total agrees",
    ),
}


def flops_per_token(trace: Trace, operators: frozenset[str]) -> float:
    return matrix_flops(trace, operators) / MI


def mops_per_token(trace: Trace, operators: frozenset[str]) -> float:
    """Weights and cached keys and values that a step reads; the table leaves out the activations
    of the token itself, less than 2 % of it."""
    reads = (
        (op.repeat, access)
        for op in trace.ops
        if op.name in operators
        for kernel in op.parts
        if kernel.kind in MATRIX_PARTS
        for access in kernel.reads
    )
    return sum(n * a.elements for n, a in reads if a.value.role in (Role.WEIGHT, Role.CACHE)) / MI


#: The table's two columns, and what each is in a trace.
COLUMNS = {"FLOPs": flops_per_token, "MOPs": mops_per_token}


def decode(column: str, operators: frozenset[str], length: int) -> float:
    return COLUMNS[column](document_step(1, length), operators)


def gated_ffn(column: str) -> float:
    """The FFN of the real model, whatever the length."""
    return COLUMNS[column](step(builtin("llama-2-7b"), rows=1, keys=128), GATED_FFN)


def llama_table_figures() -> Iterator[Figure]:
    cells = [(operator, column) for operator in ROWS for column in COLUMNS]
    for line in LLAMA_TABLE.strip().splitlines():
        length, *printed = line.split()
        for (operator, column), cell in zip(cells, printed, strict=True):
            compute = partial(decode, column, ROWS[operator], int(length))
            right, note = LLAMA_ERRATA.get((int(length), operator, column), (None, ""))
            yield Figure(
                SOURCE,
                LONG_CONTEXT,
                f"llama-2-7b, {operator}, length {length}",
                f"Mi {column}/token",
                cell,
                compute,
                note,
                right,
            )
    for column, printed, right in (("FLOPs", "5504", "8256"), ("MOPs", "2752", "4128")):
        note = "Llama-2's MLP is gated: three matrices, not two"
        item, compute = "llama-2-7b, FFN (projections) as it really is", partial(gated_ffn, column)
        yield Figure(SOURCE, LONG_CONTEXT, item, f"Mi {column}/token", printed, compute, note, right)


# -- the key/value cache --------------------------------------------------------------------------


def kv_elements() -> float:
    """Elements of keys and values a token, all layers."""
    return builtin("llama-2-7b").cache_spec("fp16").elements_per_token


def kv_bytes() -> float:
    return get_format("fp16").nbytes((kv_elements(),))


SWAPPED = "256 Ki elements are 512 KiB in fp16: 2 x 32 layers x 4096"
KV_FIGURES = tuple(
    Figure(SOURCE, LONG_CONTEXT, f"llama-2-7b, KV cache {of}", unit, printed, compute, SWAPPED, right)
    for of, unit, printed, right, compute in (
        ("a token", "Ki elements", "512", "256", lambda: kv_elements() / 2**10),
        ("a token, fp16", "KiB", "256", "512", lambda: kv_bytes() / 2**10),
        ("of 32k tokens", "Gi elements", "16", "8", lambda: 2**15 * kv_elements() / 2**30),
        ("of 32k tokens, fp16", "GiB", "8", "16", lambda: 2**15 * kv_bytes() / 2**30),
    )
)


# -- a model larger than memory -------------------------------------------------------------------

TARGET_BYTES = 7.7e9
DRAFT_BYTES = 3.0e9
MEMORY_BYTES = 3.5e9


def pass_seconds(resident: float) -> float:
    """The least time of a pass that reads from storage all weights but the resident ones."""
    return (TARGET_BYTES - resident) / load_device("phone-ufs-3.2").storage_bandwidth


def pass_seconds_beside_draft() -> float:
    return pass_seconds(MEMORY_BYTES - DRAFT_BYTES)


OFFLOADING = "Speculative decoding on a memory-constrained device"
OFFLOADING_FIGURES = (
    Figure(SOURCE, OFFLOADING, "pass, target alone", "s", "1.05", partial(pass_seconds, MEMORY_BYTES)),
    Figure(
        SOURCE, OFFLOADING, "speed, target alone", "token/s", "0.95", lambda: 1 / pass_seconds(MEMORY_BYTES)
    ),
    Figure(
        SOURCE,
        OFFLOADING,
        "pass, draft in the same memory",
        "s",
        "1.05",
        pass_seconds_beside_draft,
        "the draft's 3.0 GB leave 0.5 GB of 3.5 GB to the target",
        right="1.8",
    ),
    Figure(
        SOURCE,
        OFFLOADING,
        "speed without speculation, draft in the same memory",
        "token/s",
        "0.95",
        lambda: 1 / pass_seconds_beside_draft(),
        "the draft's 3.0 GB leave 0.5 GB of 3.5 GB to the target",
        right="0.56",
    ),
)


FIGURES = (*llama_table_figures(), *KV_FIGURES, *OFFLOADING_FIGURES)
