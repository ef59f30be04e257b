"""Figures of the papers on attention's dataflows: traffic and exponentials."""

from __future__ import annotations

from functools import partial

from ridgeline.hardware import load_device
from ridgeline.predict.dataflows import DATAFLOWS, AttentionShape, Dataflow, paper_tiles
from ridgeline.validation.figures import Figure

FLASH = "Dao et al. 2022, arXiv:2205.14135, FlashAttention"
FLASH3 = "Shah et al. 2024, arXiv:2407.08608, FlashAttention-3"


def dataflow(name: str) -> Dataflow:
    return next(flow for flow in DATAFLOWS if flow.name == name)


# -- FlashAttention's traffic ---------------------------------------------------------------------

#: One head, long enough for the term of N^2 d^2 / M to stand alone; M in elements.
LONG, HEAD, ON_CHIP = 2**16, 64, 2**15


def elements_moved(*, length: int = LONG, on_chip: int = ON_CHIP) -> float:
    """Elements that one head moves with the tiles of the paper's algorithm."""
    shape = AttentionShape(1, 1, HEAD, length, length, causal=False)
    launches = dataflow("flash v1").launches(shape, paper_tiles(on_chip, HEAD), float("inf"))
    return sum(launch.bytes for launch in launches) / shape.element_bytes


IO_NOTE = "Theta(N^2 d^2 / M) of theorem 2"
FLASH_FIGURES = (
    Figure(
        FLASH,
        "theorem 2",
        "traffic at twice the length",
        "x",
        "4.0",
        lambda: elements_moved(length=2 * LONG) / elements_moved(),
        IO_NOTE,
    ),
    Figure(
        FLASH,
        "theorem 2",
        "traffic with twice the on-chip memory",
        "x",
        "0.50",
        lambda: elements_moved(on_chip=2 * ON_CHIP) / elements_moved(),
        IO_NOTE,
    ),
)


# -- exponentials ---------------------------------------------------------------------------------


def head_of(dim: int) -> AttentionShape:
    return AttentionShape(1, 1, dim, 4096, 4096, causal=False, format="fp16")


def matrix_over_exp(dim: int) -> float:
    """FLOPs of both products for every exponential of the softmax."""
    work = head_of(dim).work
    return (work["scores"].matrix + work["values"].matrix) / work["softmax"].exp


def exp_over_matrix_time(dim: int) -> float:
    """Time of the exponentials over that of the products, in % on an H100."""
    device = load_device("h100-sxm")
    return 100 * device.matrix_rate("fp16") / device.exp_rate / matrix_over_exp(dim)


EXP_NOTE = "the device file has 16 a clock and SM, 3.865 T/s; the paper's 3.9 T/s gives 49.5 %"
EXP_FIGURES = (
    Figure(
        FLASH3, "section 3.1", "FLOPs an exponential, heads of 128", "", "512", partial(matrix_over_exp, 128)
    ),
    Figure(
        FLASH3,
        "section 3.1",
        "H100, exponentials over products in time, heads of 128",
        "%",
        "50",
        partial(exp_over_matrix_time, 128),
        EXP_NOTE,
    ),
    Figure(
        FLASH3,
        "section 3.1",
        "H100, exponentials a second",
        "T/s",
        "3.9",
        lambda: load_device("h100-sxm").exp_rate / 1e12,
    ),
)

FIGURES = (*FLASH_FIGURES, *EXP_FIGURES)
