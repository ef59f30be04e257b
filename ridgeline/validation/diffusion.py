"""Figures of diffusion Transformers: what their papers print, and what a document says of video attention.

"Transformer performance analysis" gives the FLOPs and the traffic of an MLP and of vanilla, spatial and
temporal attention over s = T x H x W tokens. Its formulas were pictures and are lost in its text; what it
says about them in words is held here, and so are the ratios that the closed forms have, which the notes
give. The tests hold every operator of the traces against the closed forms themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

from ridgeline.models import Model, read_config
from ridgeline.models.denoising import Grid, grid_of
from ridgeline.models.registry import declare
from ridgeline.ops.trace import Trace
from ridgeline.validation.figures import Figure
from ridgeline.validation.passes import builtin, denoising_step, matrix_flops
from ridgeline.validation.performance import SOURCE as DOCUMENT

DIT = "Peebles and Xie 2023, arXiv:2212.09748, DiT"
PIXART = "Chen et al. 2023, arXiv:2310.00426, PixArt-alpha"
STABILITY = "Stability AI 2024, model cards, Stable Diffusion 3 Medium and 3.5 Large"

# -- what the papers print --------------------------------------------------------------------------------

#: Model, side of the image, parameters in M, and "Gflops": multiply-adds of one pass without guidance.
# fmt: off
PUBLISHED = (
    ("dit-s-2", 256, "33", "6.06"),
    ("dit-b-2", 256, "130", "23.01"),
    ("dit-l-2", 256, "458", "80.71"),
    ("dit-xl-2", 256, "675", "118.64"),
    ("dit-xl-2", 512, "675", "524.60"),
)
# fmt: on
#: The paper's counter adds about an operation an element of each norm: 0.02 % of DiT-XL/2.
NORMS_COUNTED = 2e-4
MULTIPLY_ADDS = 'printed as "Gflops"; multiply-adds, of which its counter takes norms to have some, too'


def multiply_adds(model: str, side: int) -> float:
    """Billions in the matrix products of one image's pass."""
    built = builtin(model)
    return denoising_step(built, grid_of(built.config, side)).flops.matrix / 2 / 1e9


def millions(model: str) -> float:
    return builtin(model).parameter_count() / 1e6


def dit_figures() -> Iterator[Figure]:
    for model, side, parameters, work in PUBLISHED:
        name = f"{model} at {side} x {side}"
        # A figure of few digits is held to those.
        loose = NORMS_COUNTED if float(work) > 50 else None
        compute = partial(multiply_adds, model, side)
        yield Figure(
            DIT, "all models", name, "G multiply-adds", work, compute, MULTIPLY_ADDS, tolerance=loose
        )
        if side == 256:
            yield Figure(DIT, "all models", model, "M parameters", parameters, partial(millions, model))


PARAMETER_FIGURES = (
    Figure(
        PIXART,
        "table 2",
        "pixart-alpha-xl-2",
        "B parameters",
        "0.6",
        lambda: millions("pixart-alpha-xl-2") / 1e3,
    ),
    Figure(STABILITY, "model", "sd3-medium", "B parameters", "2", lambda: millions("sd3-medium") / 1e3),
    Figure(STABILITY, "model", "sd3.5-large", "B parameters", "8.1", lambda: millions("sd3.5-large") / 1e3),
)

# -- attention of videos ----------------------------------------------------------------------------------

#: 16 frames of 16 x 16 patches, as Latte cuts a video of 256 x 256 pixels.
VIDEO = Grid(16, 16, frames=16)
TEXT = 120
WIDTH = 1152


@cache
def vanilla() -> Model:
    """Blocks whose rows attend to all s = T x H x W of a video: DiT's."""
    return declare(
        read_config({"_class_name": "DiTTransformer2DModel", "num_layers": 1, "out_channels": 8}, "vanilla")
    )


@cache
def full_step(frames: int = VIDEO.frames) -> Trace:
    return denoising_step(vanilla(), Grid(VIDEO.rows, VIDEO.columns, frames))


@cache
def video_step() -> Trace:
    return denoising_step(builtin("latte-1"), VIDEO, text=TEXT)


def layer_flops(trace: Trace, operator: str) -> float:
    """FLOPs of the operators of this name, those of one layer."""
    found = [op for op in trace.ops if op.name == operator]
    return found[0].flops.matrix


def growth(operators: tuple[str, ...]) -> float:
    """The FLOPs of twice as many frames over those of as many, attention over all tokens."""
    once, twice = (matrix_flops(full_step(n), frozenset(operators)) for n in (VIDEO.frames, 2 * VIDEO.frames))
    return twice / once


def over_vanilla(operator: str) -> float:
    """Scores and values of an attention within frames or places, over those of attention over all tokens."""
    return layer_flops(video_step(), operator) / layer_flops(full_step(), "attention")


def cross_over_vanilla() -> float:
    """Cross-attention frame by frame over that of all tokens at once: every token reads the whole text."""
    one, all_frames = (
        layer_flops(denoising_step(builtin("latte-1"), Grid(16, 16, frames), text=TEXT), "cross")
        for frames in (1, VIDEO.frames)
    )
    return VIDEO.frames * one / all_frames


SECTION = "Video attention"
VIDEO_FIGURES = (
    Figure(
        DOCUMENT,
        SECTION,
        "MLP, FLOPs at twice the tokens",
        "x",
        "2",
        partial(growth, ("mlp.up", "mlp.down")),
        "said to grow linearly; 16 s d^2",
    ),
    Figure(
        DOCUMENT,
        SECTION,
        "vanilla self-attention, scores and values at twice the tokens",
        "x",
        "4",
        partial(growth, ("attention",)),
        "said to grow with the square; 4 s^2 d",
    ),
    Figure(
        DOCUMENT,
        SECTION,
        "spatial cross-attention, FLOPs over vanilla cross-attention",
        "x",
        "1",
        cross_over_vanilla,
        "said to be the same; T (H W) L is s L",
    ),
    Figure(
        DOCUMENT,
        SECTION,
        "spatial self-attention, scores and values over vanilla, T = 16",
        "x",
        "0.0625",
        partial(over_vanilla, "spatial.attention"),
        "the formula is lost: 4 T (H W)^2 d of 4 (T H W)^2 d",
    ),
    Figure(
        DOCUMENT,
        SECTION,
        "temporal self-attention, scores and values over vanilla, H W = 256",
        "x",
        "0.00390625",
        partial(over_vanilla, "temporal.attention"),
        "the formula is lost: 4 H W T^2 d of 4 (T H W)^2 d",
    ),
)


PAPER_FIGURES = (*dit_figures(), *PARAMETER_FIGURES)
