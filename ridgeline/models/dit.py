"""DiT: a Transformer that denoises latent images of a class (Peebles and Xie 2023,
https://arxiv.org/abs/2212.09748).

Time and class become one vector, from which every block makes six that modulate it (adaLN-Zero). diffusers
keeps that embedder once in every block, all of them copies: here it is what the paper has, one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.models.denoising import Denoising
from ridgeline.models.diffusion import (
    ACTIVATIONS,
    FIXED_EPS,
    HARMLESS,
    Block,
    Dense,
    DiffusionConfig,
    DiffusionModel,
    TwoLayers,
    attention_branch,
    common,
    dense,
    mlp_branch,
    read_fields,
    two_layers,
)
from ridgeline.models.diffusion_weights import (
    bare_norm,
    make_attention,
    make_dense,
    make_mlp,
    make_patches,
    make_time,
)
from ridgeline.models.model import Source, WeightMaker
from ridgeline.ops.batch import T
from ridgeline.ops.layers import Layered
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Norm, Weight

CLASS = "DiTTransformer2DModel"
#: What the class takes where a config says nothing.
DEFAULTS = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_eps": 1e-5,
}
#: Steps of the paper's sampler.
STEPS = 250
_COPY = re.compile(r"^transformer_blocks\.\d+\.norm1\.emb\.(.+)$")


@dataclass(frozen=True)
class Layer(Layered):
    modulation: Dense
    block: Block


@dataclass(frozen=True)
class DiT(DiffusionModel):
    patches: Dense
    time: TwoLayers
    labels: Weight
    layers: tuple[Layer, ...]
    final_modulation: Dense
    final_norm: Norm
    head: Dense

    def forward(self, ops: Ops, batch: Denoising) -> T:
        images = batch.spans.images
        x = dense(ops, batch.patches, self.patches, residual=batch.positions)
        label = ops.embed(batch.labels, self.labels)
        condition = ops.activate(two_layers(ops, batch.times, self.time, "silu", residual=label), "silu")

        def layer(layer: Layer, x: T) -> T:
            modulation = ops.columns(dense(ops, condition, layer.modulation), 6)
            x = attention_branch(ops, x, layer.block, modulation[:3], images, images)
            return mlp_branch(ops, x, layer.block, modulation[3:], images, self.config.activation)

        x = ops.repeat(self.layers, layer, x)
        shift, scale = ops.columns(dense(ops, condition, self.final_modulation), 2)
        return dense(ops, ops.norm(x, self.final_norm, shift=shift, scale=scale, spans=images), self.head)

    def copied(self, tensor: str) -> Weight | None:
        """The embedder that a block of the checkpoint has."""
        found = _COPY.match(tensor)
        return None if found is None else self._embedder().get(found.group(1))

    def _embedder(self) -> dict[str, Weight]:
        time = "timestep_embedder.linear"
        return {
            f"{time}_1.weight": self.time.up.weight,
            f"{time}_1.bias": self.time.up.bias,
            f"{time}_2.weight": self.time.down.weight,
            f"{time}_2.bias": self.time.down.bias,
            "class_embedder.embedding_table.weight": self.labels,
        }


def build(config: DiffusionConfig, make: WeightMaker) -> DiT:
    """The model's tree of weights, under the names of diffusers' checkpoints."""
    width, embedder = config.width, "transformer_blocks.0.norm1.emb"
    labels = Source(f"{embedder}.class_embedder.embedding_table.weight", (config.classes + 1, width))
    return DiT(
        config,
        make_patches(make, config),
        make_time(make, config, embedder),
        make.table("labels", labels),
        tuple(_build_layer(config, make, i) for i in range(config.layers)),
        make_dense(make, "final_modulation", 2 * width, width, "proj_out_1"),
        bare_norm("final_norm", FIXED_EPS),
        make_dense(make, "head", config.patch**2 * config.out_channels, width, "proj_out_2"),
    )


def _build_layer(config: DiffusionConfig, make: WeightMaker, index: int) -> Layer:
    prefix = f"transformer_blocks.{index}"
    own = (f"{prefix}.attn1.{module}" for module in ("to_q", "to_k", "to_v", "to_out.0"))
    return Layer(
        index,
        make_dense(make, "modulation", 6 * config.width, config.width, f"{prefix}.norm1.linear"),
        Block(
            bare_norm("input_norm", FIXED_EPS),
            make_attention(make, config, "attention", *own),
            bare_norm("post_norm", config.eps),
            make_mlp(make, config, "mlp", f"{prefix}.ff"),
        ),
    )


def read(raw: Mapping[str, Any], name: str) -> DiffusionConfig:
    fields = read_fields(raw, DEFAULTS, name)
    config = DiffusionConfig(
        **common(fields, name, "dit", CLASS),
        eps=fields.take("norm_eps", float),
        activation=fields.choice("activation_fn", ACTIVATIONS),
        steps=STEPS,
        classes=fields.size("num_embeds_ada_norm"),
        time_shift=1,
    )
    fields.finish(
        harmless=HARMLESS,
        defaults={
            "norm_type": "ada_norm_zero",
            "attention_bias": True,
            "norm_elementwise_affine": False,
            "attention_type": "default",
        },
    )
    return config
