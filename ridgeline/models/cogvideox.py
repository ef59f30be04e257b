"""CogVideoX: a Transformer that denoises latent videos with full attention (Yang et al. 2024,
https://arxiv.org/abs/2408.06072).

All patches of all frames and the text's tokens are one sequence, with the same weights for both; only what
modulates them is each one's own (expert adaLN).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.models.denoising import Denoising, Grid
from ridgeline.models.diffusion import (
    ACTIVATIONS,
    FIXED_EPS,
    HARMLESS,
    Block,
    Dense,
    DiffusionConfig,
    DiffusionModel,
    SelfAttention,
    TwoLayers,
    attention_branch,
    common,
    dense,
    mlp_branch,
    read_fields,
    two_layers,
)
from ridgeline.models.diffusion_weights import (
    make_dense,
    make_mlp,
    make_patches,
)
from ridgeline.models.model import WeightMaker, layer_norm
from ridgeline.ops.batch import T
from ridgeline.ops.layers import Layered
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Heads, Norm

CLASS = "CogVideoXTransformer3DModel"
#: What the class takes where a config says nothing.
DEFAULTS = {
    "num_attention_heads": 30,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 512,
    "text_embed_dim": 4096,
    "num_layers": 30,
    "sample_width": 90,
    "sample_height": 60,
    "sample_frames": 49,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 226,
    "activation_fn": "gelu-approximate",
    "norm_eps": 1e-5,
    "spatial_interpolation_scale": 1.875,
}
#: Steps of diffusers' pipeline.
STEPS = 50


@dataclass(frozen=True)
class CogVideoXConfig(DiffusionConfig):
    """``time_width``: of the vector that a timestep becomes."""

    time_width: int = 512


@dataclass(frozen=True)
class Layer(Layered):
    attention_modulation: Dense
    mlp_modulation: Dense
    block: Block


@dataclass(frozen=True)
class CogVideoX(DiffusionModel):
    patches: Dense
    text: Dense
    time: TwoLayers
    layers: tuple[Layer, ...]
    last_norm: Norm
    final_modulation: Dense
    final_norm: Norm
    head: Dense

    def context(self, grid: Grid, text: int) -> int:
        return grid.tokens + text

    def forward(self, ops: Ops, batch: Denoising) -> T:
        spans = batch.spans
        parts = {"first": spans.images, "second": spans.text}
        condition = ops.activate(two_layers(ops, batch.times, self.time, "silu"), "silu")
        video = dense(ops, batch.patches, self.patches, residual=batch.positions)
        x = ops.join_rows(video, dense(ops, batch.text, self.text), **parts)

        def modulation(layer: Dense) -> tuple[T, ...]:
            """Shift, scale and gate of each video, and after it those of its text."""
            return ops.columns(ops.stack_columns(dense(ops, condition, layer), 2), 3)

        def layer(layer: Layer, x: T) -> T:
            given = modulation(layer.attention_modulation)
            x = attention_branch(ops, x, layer.block, given, spans.segments, spans.joint)
            given = modulation(layer.mlp_modulation)
            return mlp_branch(ops, x, layer.block, given, spans.segments, self.config.activation)

        x, _ = ops.split_rows(ops.repeat(self.layers, layer, x), **parts)
        shift, scale = ops.columns(dense(ops, condition, self.final_modulation), 2)
        x = ops.norm(
            ops.norm(x, self.last_norm), self.final_norm, shift=shift, scale=scale, spans=spans.images
        )
        return dense(ops, x, self.head)


def build(config: CogVideoXConfig, make: WeightMaker) -> CogVideoX:
    """The model's tree of weights, under the names of diffusers' checkpoints."""
    width, time = config.width, config.time_width
    return CogVideoX(
        config,
        make_patches(make, config, "patch_embed"),
        make_dense(make, "text", width, config.text_width, "patch_embed.text_proj"),
        TwoLayers(
            make_dense(make, "time.up", time, config.time_features, "time_embedding.linear_1"),
            make_dense(make, "time.down", time, time, "time_embedding.linear_2"),
        ),
        tuple(_build_layer(config, make, i) for i in range(config.layers)),
        layer_norm(make, "last_norm", "norm_final", width, config.eps),
        make_dense(make, "final_modulation", 2 * width, time, "norm_out.linear"),
        layer_norm(make, "final_norm", "norm_out.norm", width, config.eps),
        make_dense(make, "head", config.patch**2 * config.out_channels, width, "proj_out"),
    )


def _build_layer(config: CogVideoXConfig, make: WeightMaker, index: int) -> Layer:
    prefix, width, time = f"transformer_blocks.{index}", config.width, config.time_width
    own = f"{prefix}.attn1"
    qkv = make_dense(make, "attention.qkv", 3 * width, width, *(f"{own}.to_{p}" for p in "qkv"))
    norms = (_head_norm(make, which, f"{own}.norm_{which[0]}", config) for which in ("query", "key"))
    heads = Heads(config.heads, config.heads, config.head_dim, *norms)
    out = make_dense(make, "attention.out", width, width, f"{own}.to_out.0")
    return Layer(
        index,
        make_dense(make, "attention.modulation", 6 * width, time, f"{prefix}.norm1.linear"),
        make_dense(make, "mlp.modulation", 6 * width, time, f"{prefix}.norm2.linear"),
        Block(
            layer_norm(make, "input_norm", f"{prefix}.norm1.norm", width, config.eps),
            SelfAttention("attention", qkv, heads, out),
            layer_norm(make, "post_norm", f"{prefix}.norm2.norm", width, config.eps),
            make_mlp(make, config, "mlp", f"{prefix}.ff"),
        ),
    )


def _head_norm(make: WeightMaker, which: str, source: str, config: CogVideoXConfig) -> Norm:
    return layer_norm(make, f"attention.{which}_norm", source, config.head_dim, FIXED_EPS)


def read(raw: Mapping[str, Any], name: str) -> CogVideoXConfig:
    fields = read_fields(
        {**raw, "sample_size": raw.get("sample_height")}, DEFAULTS | {"sample_size": 60}, name
    )
    shared = common(fields, name, "cogvideox", CLASS)
    config = CogVideoXConfig(
        **{**shared, "sample_columns": fields.size("sample_width")},
        eps=fields.take("norm_eps", float),
        activation=fields.choice("activation_fn", ACTIVATIONS),
        steps=STEPS,
        text_width=fields.size("text_embed_dim"),
        text_tokens=fields.size("max_text_seq_length"),
        frames=fields.size("sample_frames"),
        stretch=fields.take("spatial_interpolation_scale", float),
        normed_heads=True,
        time_features=shared["width"],
        frame_stride=fields.size("temporal_compression_ratio"),
        channels_first=True,
        time_width=fields.size("time_embed_dim"),
    )
    fields.finish(
        harmless=(*HARMLESS, "sample_height"),
        defaults={
            "attention_bias": True,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "norm_elementwise_affine": True,
            "patch_bias": True,
            "temporal_interpolation_scale": 1.0,
            "timestep_activation_fn": "silu",
        },
    )
    return config
