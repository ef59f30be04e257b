"""PixArt: DiT's block with cross-attention to a text, and one modulation for all layers (Chen et al. 2023,
https://arxiv.org/abs/2310.00426).

The timestep alone makes six vectors, once a step; every block adds a table of its own to them (adaLN-single).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.errors import InputError
from ridgeline.models.denoising import Denoising
from ridgeline.models.diffusion import (
    ACTIVATIONS,
    FIXED_EPS,
    HARMLESS,
    Block,
    CrossAttention,
    Dense,
    DiffusionConfig,
    DiffusionModel,
    TwoLayers,
    attention_branch,
    common,
    cross_attend,
    dense,
    mlp_branch,
    read_fields,
    two_layers,
)
from ridgeline.models.diffusion_weights import (
    bare_norm,
    make_attention,
    make_dense,
    make_embedder,
    make_mlp,
    make_patches,
    make_time,
)
from ridgeline.models.fields import Fields
from ridgeline.models.model import Source, WeightMaker
from ridgeline.ops.batch import Spans, T
from ridgeline.ops.layers import Layered
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Heads, Norm, Weight

CLASS = "PixArtTransformer2DModel"
#: What the class takes where a config says nothing.
DEFAULTS = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "sample_size": 128,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "norm_eps": 1e-6,
}
#: Tokens of a prompt in the paper, and steps of its fast sampler.
TEXT_TOKENS, STEPS = 120, 20
#: Fields of this class and of its video sibling, with the values that are computed.
COMPUTED = {
    "norm_type": "ada_norm_single",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "attention_type": "default",
}


@dataclass(frozen=True)
class TextBlock:
    """A block that its ``table`` and the step's vectors modulate, and that may read the text."""

    table: Weight
    block: Block
    cross: CrossAttention | None


@dataclass(frozen=True)
class Layer(Layered):
    inner: TextBlock


@dataclass(frozen=True)
class SizeEmbedder:
    """Makes a third of a vector of an image's height, its width, and their ratio each."""

    sizes: TwoLayers
    ratio: TwoLayers


@dataclass(frozen=True)
class Trunk:
    """What surrounds the blocks of a model that is modulated by adaLN-single."""

    patches: Dense
    time: TwoLayers
    modulation: Dense
    text: TwoLayers
    final_table: Weight
    final_norm: Norm
    head: Dense
    size: SizeEmbedder | None


@dataclass(frozen=True)
class Conditions:
    """What all blocks read: six vectors a sequence side by side, the one that they were made of, the text."""

    vectors: T
    time: T
    text: T


def conditions(ops: Ops, batch: Denoising, trunk: Trunk) -> Conditions:
    size = None
    if trunk.size is not None:
        sizes = ops.unstack_rows(two_layers(ops, batch.sizes, trunk.size.sizes, "silu"), 2)
        size = ops.join_columns(sizes, two_layers(ops, batch.ratios, trunk.size.ratio, "silu"))
    time = two_layers(ops, batch.times, trunk.time, "silu", residual=size)
    vectors = dense(ops, ops.activate(time, "silu"), trunk.modulation)
    return Conditions(vectors, time, two_layers(ops, batch.text, trunk.text, "gelu_tanh"))


def text_block(
    ops: Ops, x: T, layer: TextBlock, given: Conditions, batch: Denoising, over: Spans, activation: str
) -> T:
    """Attention ``over`` these sequences, then to the text if the block reads it, then the MLP."""
    images = batch.spans.images
    modulation = ops.columns(ops.add_vector(given.vectors, layer.table), 6)
    x = attention_branch(ops, x, layer.block, modulation[:3], images, over)
    if layer.cross is not None:
        x = cross_attend(ops, x, given.text, layer.cross, batch.spans.cross)
    return mlp_branch(ops, x, layer.block, modulation[3:], images, activation)


def predict_patches(ops: Ops, x: T, trunk: Trunk, given: Conditions, images: Spans) -> T:
    """The last norm, modulated by the timestep and the trunk's own table, and the head.

    The table has a shift and a scale, and the timestep's one vector is added to each.
    """
    shift, scale = ops.columns(ops.add_vector(given.time, trunk.final_table), 2)
    return dense(ops, ops.norm(x, trunk.final_norm, shift=shift, scale=scale, spans=images), trunk.head)


@dataclass(frozen=True)
class PixArt(DiffusionModel):
    trunk: Trunk
    layers: tuple[Layer, ...]

    def forward(self, ops: Ops, batch: Denoising) -> T:
        images, activation = batch.spans.images, self.config.activation
        given = conditions(ops, batch, self.trunk)
        x = dense(ops, batch.patches, self.trunk.patches, residual=batch.positions)
        x = ops.repeat(
            self.layers,
            lambda layer, x: text_block(ops, x, layer.inner, given, batch, images, activation),
            x,
        )
        return predict_patches(ops, x, self.trunk, given, images)


def build(config: DiffusionConfig, make: WeightMaker) -> PixArt:
    """The model's tree of weights, under the names of diffusers' checkpoints."""
    trunk = build_trunk(config, make)
    layers = (
        Layer(i, build_block(config, make, "", f"transformer_blocks.{i}", reads_text=True))
        for i in range(config.layers)
    )
    return PixArt(config, trunk, tuple(layers))


def build_trunk(config: DiffusionConfig, make: WeightMaker) -> Trunk:
    width = config.width
    return Trunk(
        make_patches(make, config),
        make_time(make, config, "adaln_single.emb"),
        make_dense(make, "modulation", 6 * width, width, "adaln_single.linear"),
        make_embedder(make, "text", "caption_projection", config.text_width, width),
        make.vector("final_table", Source("scale_shift_table", (2, width)), fill=0.0),
        bare_norm("final_norm", FIXED_EPS),
        make_dense(make, "head", config.patch**2 * config.out_channels, width, "proj_out"),
        _build_size(config, make) if config.knows_size else None,
    )


def _build_size(config: DiffusionConfig, make: WeightMaker) -> SizeEmbedder:
    third, source = config.width // 3, "adaln_single.emb"
    return SizeEmbedder(
        make_embedder(make, "sizes", f"{source}.resolution_embedder", config.time_features, third),
        make_embedder(make, "ratio", f"{source}.aspect_ratio_embedder", config.time_features, third),
    )


def build_block(
    config: DiffusionConfig, make: WeightMaker, role: str, prefix: str, *, reads_text: bool
) -> TextBlock:
    """A block of the checkpoint's module ``prefix``; the names of its weights begin with ``role``."""
    width = config.width
    table = make.vector(f"{role}table", Source(f"{prefix}.scale_shift_table", (6, width)), fill=0.0)
    own = (f"{prefix}.attn1.{module}" for module in ("to_q", "to_k", "to_v", "to_out.0"))
    attention = make_attention(make, config, f"{role}attention", *own)
    cross = None
    if reads_text:
        name, other = f"{role}cross", f"{prefix}.attn2"
        cross = CrossAttention(
            make_dense(make, f"{name}.query", width, width, f"{other}.to_q"),
            make_dense(make, f"{name}.keys", 2 * width, width, f"{other}.to_k", f"{other}.to_v"),
            Heads(config.heads, config.heads, config.head_dim),
            make_dense(make, f"{name}.out", width, width, f"{other}.to_out.0"),
        )
    mlp = make_mlp(make, config, f"{role}mlp", f"{prefix}.ff")
    norms = (bare_norm(f"{role}{name}_norm", config.eps) for name in ("input", "post"))
    return TextBlock(table, Block(next(norms), attention, next(norms), mlp), cross)


def read(raw: Mapping[str, Any], name: str) -> DiffusionConfig:
    fields = read_fields(raw, DEFAULTS, name)
    sample = fields.size("sample_size")
    config = DiffusionConfig(
        **common(fields, name, "pixart", CLASS),
        **read_text(fields),
        steps=STEPS,
        stretch=fields.take("interpolation_scale", float, float(max(sample // 64, 1))),
        knows_size=fields.take("use_additional_conditions", bool, sample == 128),
    )
    if config.knows_size and config.width % 3:
        raise InputError(f"{name}: width {config.width} must be a multiple of 3 to know the image's size")
    harmless = (*HARMLESS, "num_embeds_ada_norm")  # the class looks nothing up by it
    fields.finish(harmless=harmless, defaults={**COMPUTED, "cross_attention_dim": config.width})
    return config


def read_text(fields: Fields) -> dict[str, Any]:
    """What this class and its video sibling read alike."""
    return {
        "eps": fields.take("norm_eps", float),
        "activation": fields.choice("activation_fn", ACTIVATIONS),
        "text_width": fields.size("caption_channels"),
        "text_tokens": TEXT_TOKENS,
    }
