"""The closed forms of "Transformer performance analysis" for T x H x W tokens, whose pictures are lost: what
the traces' operators take, in FLOPs of products, and in elements where every part is a kernel of its own."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.models import declare, read_config
from ridgeline.models.denoising import Grid
from ridgeline.validation.diffusion import multiply_adds
from ridgeline.validation.passes import denoising_step

HEAD_DIM, HEADS = 8, 3
WIDTH = HEADS * HEAD_DIM
SHARED = {"num_attention_heads": HEADS, "attention_head_dim": HEAD_DIM, "num_layers": 1, "sample_size": 8}
VANILLA = {"_class_name": "DiTTransformer2DModel", **SHARED}
VIDEO = {
    "_class_name": "LatteTransformer3DModel",
    **SHARED,
    "cross_attention_dim": WIDTH,
    "caption_channels": 20,
    "patch_size": 2,
    "in_channels": 4,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "attention_bias": True,
}


@dataclass(frozen=True)
class Video:
    """T frames of H x W patches, and L tokens of text; rows are d wide."""

    t: int
    h: int
    w: int
    text: int
    d: int = WIDTH

    @property
    def s(self):
        return self.t * self.h * self.w


VIDEOS = st.builds(Video, *(st.integers(2, 9),) * 4)


def trace_of(raw, video):
    return denoising_step(
        declare(read_config(raw, "model")), Grid(video.h, video.w, video.t), text=video.text
    )


def flops(trace, *names):
    return sum(op.flops.matrix for op in trace.ops if op.name in names)


def moved(trace, name, *kinds):
    """Elements that these parts of the operator read and write."""
    (op,) = [op for op in trace.ops if op.name == name]
    return sum(part.elements for part in op.parts if part.kind in kinds)


@given(VIDEOS)
def test_an_mlp_multiplies_every_token_by_two_matrices_and_writes_its_results(v):
    trace, hidden = trace_of(VANILLA, v), 4 * v.d
    assert flops(trace, "mlp.up", "mlp.down") == 2 * v.s * (v.d * hidden + hidden * v.d)
    up, down = (moved(trace, f"mlp.{name}", "matmul") for name in ("up", "down"))
    assert up == v.s * v.d + v.d * hidden + v.s * hidden
    assert down == v.s * hidden + hidden * v.d + v.s * v.d


def self_attention(v, sequences, length):
    """FLOPs of three projections in, scores and values of every sequence by itself, one projection out; and
    elements of queries and keys, scores written; of weights and values read, results written."""
    products = 2 * v.s * 3 * v.d * v.d + sequences * 2 * 2 * length**2 * v.d + 2 * v.s * v.d * v.d
    scores = 2 * v.s * v.d + HEADS * sequences * length**2
    return products, scores, scores


@given(VIDEOS)
def test_vanilla_self_attention_is_over_all_tokens(v):
    trace = trace_of(VANILLA, v)
    products, scores, values = self_attention(v, 1, v.s)
    assert flops(trace, "attention.qkv", "attention", "attention.out") == products
    assert moved(trace, "attention", "scores") == scores
    assert moved(trace, "attention", "values") == values


@given(VIDEOS)
def test_spatial_self_attention_is_over_each_frame(v):
    trace = trace_of(VIDEO, v)
    products, scores, values = self_attention(v, v.t, v.h * v.w)
    names = (f"spatial.attention{part}" for part in (".qkv", "", ".out"))
    assert flops(trace, *names) == products
    assert moved(trace, "spatial.attention", "scores") == scores
    assert moved(trace, "spatial.attention", "values") == values


@given(VIDEOS)
def test_temporal_self_attention_is_over_each_place(v):
    trace = trace_of(VIDEO, v)
    products, scores, values = self_attention(v, v.h * v.w, v.t)
    names = (f"temporal.attention{part}" for part in (".qkv", "", ".out"))
    assert flops(trace, *names) == products
    assert moved(trace, "temporal.attention", "scores") == scores
    assert moved(trace, "temporal.attention", "values") == values


@given(VIDEOS)
def test_cross_attention_reads_the_text_whether_frame_by_frame_or_at_once(v):
    trace = trace_of(VIDEO, v)
    projections = 2 * v.s * v.d * v.d + 2 * v.text * 2 * v.d * v.d + 2 * v.s * v.d * v.d
    vanilla = projections + 2 * 2 * v.s * v.text * v.d
    frame_by_frame = projections + v.t * (2 * 2 * (v.h * v.w) * v.text * v.d)
    names = (f"spatial.cross.{part}" for part in ("query", "keys", "out"))
    assert flops(trace, "cross", *names) == vanilla == frame_by_frame
    weights = HEADS * v.s * v.text
    assert moved(trace, "cross", "scores") == v.s * v.d + v.text * v.d + weights
    assert moved(trace, "cross", "values") == weights + v.text * v.d + v.s * v.d


@given(VIDEOS)
@settings(max_examples=20)
def test_between_the_two_every_row_is_moved_once_there_and_once_back(v):
    trace = trace_of(VIDEO, v)
    moves = [op for op in trace.ops if op.name == "permute_rows"]
    assert [sum(p.elements for p in op.parts) for op in moves] == [2 * v.s * v.d + v.s] * 2


def test_without_modulation_the_published_multiply_adds_would_be_missed():
    """adaLN-Zero is 0.2 % of DiT-XL/2 at 256 x 256, and the figure's four digits show it."""
    width, layers = 1152, 28
    modulation = layers * 6 * width**2 / 1e9
    assert f"{multiply_adds('dit-xl-2', 256):.1f}" == "118.6"
    assert f"{multiply_adds('dit-xl-2', 256) - modulation:.1f}" == "118.4"
    gate = layers * 256 * 4 * width**2 / 1e9
    assert multiply_adds("dit-xl-2", 256) + gate > 150  # a gated MLP would have a third matrix
