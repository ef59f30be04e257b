"""Latte: a Transformer that denoises latent videos of a text (Ma et al. 2024,
https://arxiv.org/abs/2401.03048).

Layers come in pairs of PixArt's blocks: one attends within a frame and to the text (spatial), the other
within a place, over all frames (temporal). In between rows are brought into the other order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.models.denoising import Denoising, Grid
from ridgeline.models.diffusion import (
    HARMLESS,
    DiffusionConfig,
    DiffusionModel,
    common,
    dense,
    read_fields,
)
from ridgeline.models.model import WeightMaker
from ridgeline.models.pixart import (
    COMPUTED,
    TextBlock,
    Trunk,
    build_block,
    build_trunk,
    conditions,
    predict_patches,
    read_text,
    text_block,
)
from ridgeline.ops.batch import T
from ridgeline.ops.layers import Layered
from ridgeline.ops.protocol import Ops

CLASS = "LatteTransformer3DModel"
#: What the class takes where a config says nothing, some of which is then refused.
DEFAULTS = {
    "num_attention_heads": 16,
    "attention_head_dim": 88,
    "num_layers": 1,
    "sample_size": 64,
    "video_length": 16,
    "norm_eps": 1e-5,
    "activation_fn": "geglu",
    "norm_type": "layer_norm",
    "norm_elementwise_affine": True,
    "attention_bias": False,
}
#: Steps of diffusers' pipeline.
STEPS = 50


@dataclass(frozen=True)
class Layer(Layered):
    """A spatial and a temporal block. The ``first`` pair adds what tells frames apart."""

    first: bool
    spatial: TextBlock
    temporal: TextBlock


@dataclass(frozen=True)
class Latte(DiffusionModel):
    trunk: Trunk
    layers: tuple[Layer, ...]

    def context(self, grid: Grid, text: int) -> int:
        return max(grid.places, grid.frames, text)

    def forward(self, ops: Ops, batch: Denoising) -> T:
        spans, activation = batch.spans, self.config.activation
        given = conditions(ops, batch, self.trunk)

        def layer(layer: Layer, x: T) -> T:
            x = text_block(ops, x, layer.spatial, given, batch, spans.frames, activation)
            x = ops.permute_rows(x, batch.by_place)
            if layer.first and batch.moments is not None:
                x = ops.add(x, batch.moments)
            x = text_block(ops, x, layer.temporal, given, batch, spans.tracks, activation)
            return ops.permute_rows(x, batch.by_frame)

        x = dense(ops, batch.patches, self.trunk.patches, residual=batch.positions)
        return predict_patches(ops, ops.repeat(self.layers, layer, x), self.trunk, given, spans.images)


def build(config: DiffusionConfig, make: WeightMaker) -> Latte:
    """The model's tree of weights, under the names of diffusers' checkpoints."""
    trunk = build_trunk(config, make)
    layers = (
        Layer(
            i,
            i == 0,
            build_block(config, make, "spatial.", f"transformer_blocks.{i}", reads_text=True),
            build_block(config, make, "temporal.", f"temporal_transformer_blocks.{i}", reads_text=False),
        )
        for i in range(config.layers)
    )
    return Latte(config, trunk, tuple(layers))


def read(raw: Mapping[str, Any], name: str) -> DiffusionConfig:
    fields = read_fields(raw, DEFAULTS, name)
    config = DiffusionConfig(
        **common(fields, name, "latte", CLASS),
        **read_text(fields),
        steps=STEPS,
        frames=fields.size("video_length"),
        has_tracks=True,
        stretch=float(max(fields.size("sample_size") // 64, 1)),
    )
    fields.finish(
        harmless=(*HARMLESS, "num_embeds_ada_norm"),
        defaults={**COMPUTED, "cross_attention_dim": config.width},
    )
    return config
