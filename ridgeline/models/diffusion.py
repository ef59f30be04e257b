"""What diffusion Transformers have in common: modulated blocks, and how time and text become vectors.

A block normalises without weights of its own. What scales and shifts the result, and what gates each
residual branch, is computed from the timestep and the condition: adaLN-Zero (Peebles and Xie 2023,
https://arxiv.org/abs/2212.09748). The MLP has two matrices and no gate of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.models.denoising import Denoising, Grid, count_denoising
from ridgeline.models.fields import Fields
from ridgeline.models.model import Model, ModelConfig
from ridgeline.ops.batch import Spans, T
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Activation, Heads, Mask, Norm, Score, Weight

#: Of the norms that a class of diffusers does not take from its config.
FIXED_EPS = 1e-6
#: What every family's MLP is: two matrices.
ACTIVATIONS = {"gelu-approximate": "gelu_tanh"}
#: Fields of diffusers' configs that do not touch the forward pass.
HARMLESS = ("_class_name", "_diffusers_version", "dropout", "norm_num_groups", "upcast_attention", "decay")


@dataclass(frozen=True)
class DiffusionConfig(ModelConfig):
    """The shape of a diffusion Transformer. It has no vocabulary, so ``vocab`` is 0.

    - ``in_channels``, ``out_channels``: of a latent pixel; ``patch``: its pixels that make a token, a side.
    - ``sample``: the side of the latent images that it was trained on; ``frames`` of them (1: no video).
    - ``downsampling``: pixels of the image that a latent pixel stands for, a side.
    - ``classes``: labels; ``text_width``, ``pooled_width``: of an encoded prompt; 0 where there is none.
    - ``text_tokens``, ``steps``: of a prompt and of a sampler, where nobody says how many.
    - ``most_places``: the most patches a side that positions reach; 0 is any number.
    - ``stretch``: what positions are divided by.
    - ``normed_heads``: whether queries and keys are normalised, head by head.
    - ``time_features``: sines and cosines that a timestep is given as; ``time_shift``: in how many steps
      fewer than half of them their frequencies reach the least.
    - ``sample_columns``: where latents are wider than high; ``frame_stride``: frames of a video that one of
      its latent frames stands for, but for the first, which stands for itself.
    - ``has_tracks``: whether there is attention within a place, over all frames.
    - ``channels_first``: whether a patch is predicted channel by channel, and not pixel by pixel.
    - ``knows_size``: whether the image's size is a condition, too.
    """

    in_channels: int
    out_channels: int
    patch: int
    sample: int
    eps: float
    activation: str
    steps: int
    classes: int = 0
    text_width: int = 0
    text_tokens: int = 0
    pooled_width: int = 0
    frames: int = 1
    downsampling: int = 8
    most_places: int = 0
    stretch: float = 1.0
    normed_heads: bool = False
    time_features: int = 256
    time_shift: int = 0
    sample_columns: int = 0
    frame_stride: int = 1
    has_tracks: bool = False
    channels_first: bool = False
    knows_size: bool = False

    @property
    def is_decoder(self) -> bool:
        return False

    @property
    def is_diffusion(self) -> bool:
        return True


@dataclass(frozen=True)
class DiffusionModel(Model):
    """Base of the families: a pass over a :class:`~ridgeline.models.denoising.Denoising`, which yields what
    is predicted of every patch, [rows, patch² * out_channels]."""

    config: DiffusionConfig

    def context(self, grid: Grid, text: int) -> int:
        """The most keys that a row sees at once."""
        return max(grid.tokens, text)

    def smallest_batch(self, ops: Any) -> Denoising:
        return count_denoising(ops, self.config, Grid(1, 1, min(self.config.frames, 2)), 1, 1)


@dataclass(frozen=True)
class Dense:
    """A matrix with its bias."""

    weight: Weight
    bias: Weight


@dataclass(frozen=True)
class TwoLayers:
    """A multilayer perceptron of two matrices."""

    up: Dense
    down: Dense


@dataclass(frozen=True)
class SelfAttention:
    """Attention over a sequence's own rows: queries, keys and values from one matrix."""

    name: str
    qkv: Dense
    heads: Heads
    out: Dense


@dataclass(frozen=True)
class CrossAttention:
    """Attention over a text's rows."""

    query: Dense
    keys: Dense
    heads: Heads
    out: Dense


@dataclass(frozen=True)
class Block:
    """What a stream of rows goes through: attention and an MLP, each normalised, modulated and gated."""

    norm: Norm
    attention: SelfAttention
    mlp_norm: Norm
    mlp: TwoLayers


def dense(ops: Ops, x: T, layer: Dense, **options: Any) -> T:
    return ops.linear(x, layer.weight, bias=layer.bias, **options)


def two_layers(ops: Ops, x: T, layers: TwoLayers, activation: Activation, **options: Any) -> T:
    return dense(ops, dense(ops, x, layers.up, activation=activation), layers.down, **options)


def project(ops: Ops, x: T, attention: SelfAttention) -> tuple[T, T, T]:
    """Queries, keys and values: [rows, heads, dim] each."""
    return ops.split_heads(dense(ops, x, attention.qkv), attention.heads)


def attend(ops: Ops, q: T, k: T, v: T, spans: Spans, heads: Heads, name: str) -> T:
    """Every row sees every key of its sequence: nothing is causal, and there is no cache."""
    score = Score(heads.dim**-0.5)
    return ops.attend(q, k, v, spans=spans, mask=Mask(causal=False), score=score, name=name)


def cross_attend(ops: Ops, x: T, text: T, layer: CrossAttention, spans: Spans) -> T:
    """x + attention of its rows over the text's; neither normalised nor gated (PixArt-alpha)."""
    q, _, _ = ops.split_heads(dense(ops, x, layer.query), _queries(layer.heads))
    _, k, v = ops.split_heads(dense(ops, text, layer.keys), _keys(layer.heads))
    a = attend(ops, q, k, v, spans, layer.heads, "cross")
    return dense(ops, a, layer.out, residual=x)


def attention_branch(
    ops: Ops, x: T, block: Block, modulation: tuple[T, T, T], images: Spans, over: Spans
) -> T:
    """x + gate * attention of the modulated rows, ``over`` these sequences; ``modulation`` is shift, scale
    and gate of each of ``images``."""
    shift, scale, gate = modulation
    h = ops.norm(x, block.norm, shift=shift, scale=scale, spans=images)
    q, k, v = project(ops, h, block.attention)
    a = attend(ops, q, k, v, over, block.attention.heads, block.attention.name)
    return dense(ops, a, block.attention.out, residual=x, gate=gate, spans=images)


def mlp_branch(
    ops: Ops, x: T, block: Block, modulation: tuple[T, T, T], images: Spans, activation: Activation
) -> T:
    """x + gate * MLP of the modulated rows."""
    shift, scale, gate = modulation
    h = ops.norm(x, block.mlp_norm, shift=shift, scale=scale, spans=images)
    return two_layers(ops, h, block.mlp, activation, residual=x, gate=gate, spans=images)


def _queries(heads: Heads) -> Heads:
    return Heads(heads.query, 0, heads.dim)


def _keys(heads: Heads) -> Heads:
    return Heads(0, heads.kv, heads.dim)


# -- config -------------------------------------------------------------------------------------------


def read_fields(raw: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> Fields:
    """The fields of a config of diffusers, those that it leaves out at the defaults of the class."""
    return Fields({**defaults, **{k: v for k, v in raw.items() if v is not None}}, name)


def common(fields: Fields, name: str, family: str, architecture: str) -> dict[str, Any]:
    """What all families read alike."""
    heads, head_dim = fields.size("num_attention_heads"), fields.size("attention_head_dim")
    width, patch, sample = heads * head_dim, fields.size("patch_size"), fields.size("sample_size")
    channels = fields.size("in_channels")
    return {
        "name": name,
        "family": family,
        "architecture": architecture,
        "format": fields.format(),
        "vocab": 0,
        "width": width,
        "layers": fields.layers("num_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": head_dim,
        "intermediate": 4 * width,
        "window": (sample // patch) ** 2,
        "tied": False,
        "in_channels": channels,
        "out_channels": fields.size("out_channels", channels),
        "patch": patch,
        "sample": sample,
        "sample_columns": sample,
    }
