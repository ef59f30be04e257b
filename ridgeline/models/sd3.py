"""MMDiT, the Transformer of Stable Diffusion 3 (Esser et al. 2024, https://arxiv.org/abs/2403.03206).

Image and text are two streams with weights of their own, which meet in attention over the rows of both. The
last layer has no use for its text rows: it only takes their keys and values (and the queries, whose results
nobody reads, as the published code does). Some layers of SD3.5 attend over the image's rows once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.errors import InputError
from ridgeline.models.denoising import Denoising, Grid
from ridgeline.models.diffusion import (
    FIXED_EPS,
    HARMLESS,
    Block,
    Dense,
    DiffusionConfig,
    DiffusionModel,
    SelfAttention,
    TwoLayers,
    attend,
    common,
    dense,
    mlp_branch,
    project,
    read_fields,
    two_layers,
)
from ridgeline.models.diffusion_weights import (
    bare_norm,
    make_attention,
    make_dense,
    make_embedder,
    make_heads,
    make_mlp,
    make_patches,
    make_time,
)
from ridgeline.models.fields import Fields
from ridgeline.models.model import WeightMaker
from ridgeline.ops.batch import T
from ridgeline.ops.layers import Layered
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Heads, Norm

CLASS = "SD3Transformer2DModel"
#: What the class takes where a config says nothing.
DEFAULTS = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 96,
}
#: Tokens of a prompt (77 of CLIP, 256 of T5) and steps, as diffusers' pipeline has them.
TEXT_TOKENS, STEPS = 77 + 256, 28


@dataclass(frozen=True)
class Stream:
    """One stream's part of a layer, with what its modulation is made by."""

    modulation: Dense
    block: Block


@dataclass(frozen=True)
class LastText:
    """The text stream's part of the last layer: it is projected, and no more."""

    modulation: Dense
    norm: Norm
    qkv: Dense
    heads: Heads


@dataclass(frozen=True)
class MMDiTConfig(DiffusionConfig):
    """``dual_layers``: the numbers of the layers that attend over the image's rows once more."""

    dual_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layer(Layered):
    """``dual``, if there is one, is attention over the image's rows alone; then nine vectors modulate."""

    image: Stream
    text: Stream | LastText
    dual: SelfAttention | None


@dataclass(frozen=True)
class MMDiT(DiffusionModel):
    patches: Dense
    time: TwoLayers
    pooled: TwoLayers
    text: Dense
    layers: tuple[Layer, ...]
    final_modulation: Dense
    final_norm: Norm
    head: Dense

    def context(self, grid: Grid, text: int) -> int:
        return grid.tokens + text

    def forward(self, ops: Ops, batch: Denoising) -> T:
        images = batch.spans.images
        x = dense(ops, batch.patches, self.patches, residual=batch.positions)
        pooled = two_layers(ops, batch.pooled, self.pooled, "silu")
        condition = ops.activate(two_layers(ops, batch.times, self.time, "silu", residual=pooled), "silu")
        text = dense(ops, batch.text, self.text)

        def layer(layer: Layer, streams: tuple[T, T]) -> tuple[T, T]:
            return self._layer(ops, layer, streams, condition, batch)

        x, _ = ops.repeat(self.layers, layer, (x, text))
        # Here the class takes the scale first.
        scale, shift = ops.columns(dense(ops, condition, self.final_modulation), 2)
        return dense(ops, ops.norm(x, self.final_norm, shift=shift, scale=scale, spans=images), self.head)

    def _layer(
        self, ops: Ops, layer: Layer, streams: tuple[T, T], condition: T, batch: Denoising
    ) -> tuple[T, T]:
        x, text = streams
        spans, activation = batch.spans, self.config.activation
        parts = {"first": spans.images, "second": spans.text}
        image, other = layer.image, layer.text
        modulation = ops.columns(dense(ops, condition, image.modulation), 6 if layer.dual is None else 9)
        h = ops.norm(x, image.block.norm, shift=modulation[0], scale=modulation[1], spans=spans.images)
        own = project(ops, h, image.block.attention)
        if isinstance(other, LastText):
            scale, shift = ops.columns(dense(ops, condition, other.modulation), 2)
            h = ops.norm(text, other.norm, shift=shift, scale=scale, spans=spans.text)
            theirs = ops.split_heads(dense(ops, h, other.qkv), other.heads)
        else:
            of_text = ops.columns(dense(ops, condition, other.modulation), 6)
            h = ops.norm(text, other.block.norm, shift=of_text[0], scale=of_text[1], spans=spans.text)
            theirs = project(ops, h, other.block.attention)
        q, k, v = (ops.join_rows(a, b, **parts) for a, b in zip(own, theirs, strict=True))
        attended = attend(ops, q, k, v, spans.joint, image.block.attention.heads, "joint")
        a, b = ops.split_rows(attended, **parts)
        before = x
        x = dense(ops, a, image.block.attention.out, residual=x, gate=modulation[2], spans=spans.images)
        if layer.dual is not None:
            shift, scale, gate = modulation[6:]
            h = ops.norm(before, image.block.norm, shift=shift, scale=scale, spans=spans.images)
            a = attend(ops, *project(ops, h, layer.dual), spans.images, layer.dual.heads, layer.dual.name)
            x = dense(ops, a, layer.dual.out, residual=x, gate=gate, spans=spans.images)
        x = mlp_branch(ops, x, image.block, modulation[3:6], spans.images, activation)
        if isinstance(other, LastText):
            return x, text
        text = dense(ops, b, other.block.attention.out, residual=text, gate=of_text[2], spans=spans.text)
        return x, mlp_branch(ops, text, other.block, of_text[3:], spans.text, activation)


def build(config: MMDiTConfig, make: WeightMaker) -> MMDiT:
    """The model's tree of weights, under the names of diffusers' checkpoints."""
    width, embedder = config.width, "time_text_embed"
    return MMDiT(
        config,
        make_patches(make, config),
        make_time(make, config, embedder),
        make_embedder(make, "pooled", f"{embedder}.text_embedder", config.pooled_width, width),
        make_dense(make, "text", width, config.text_width, "context_embedder"),
        tuple(_build_layer(config, make, i) for i in range(config.layers)),
        make_dense(make, "final_modulation", 2 * width, width, "norm_out.linear"),
        bare_norm("final_norm", FIXED_EPS),
        make_dense(make, "head", config.patch**2 * config.out_channels, width, "proj_out"),
    )


def _build_layer(config: MMDiTConfig, make: WeightMaker, index: int) -> Layer:
    prefix, width = f"transformer_blocks.{index}", config.width
    last, dual = index == config.layers - 1, None
    own, own_norms, theirs, their_norms = (
        tuple(f"{prefix}.attn.{module}" for module in modules)
        for modules in (
            ("to_q", "to_k", "to_v", "to_out.0"),
            ("norm_q", "norm_k"),
            ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            ("norm_added_q", "norm_added_k"),
        )
    )
    if not config.normed_heads:
        own_norms = their_norms = None
    if index in config.dual_layers:
        modules = (module.replace(".attn.", ".attn2.") for module in own)
        norms = own_norms and tuple(module.replace(".attn.", ".attn2.") for module in own_norms)
        dual = make_attention(make, config, "dual.attention", *modules, norms)
    image = Stream(
        make_dense(make, "modulation", (6 if dual is None else 9) * width, width, f"{prefix}.norm1.linear"),
        _block(config, make, "", make_attention(make, config, "attention", *own, own_norms), f"{prefix}.ff"),
    )
    vectors = 2 if last else 6
    modulation = make_dense(make, "text.modulation", vectors * width, width, f"{prefix}.norm1_context.linear")
    if last:
        qkv = make_dense(make, "text.attention.qkv", 3 * width, width, *theirs[:3])
        heads = make_heads(make, config, "text.attention", their_norms)
        text = LastText(modulation, bare_norm("text.input_norm", FIXED_EPS), qkv, heads)
        return Layer(index, image, text, dual)
    attention = make_attention(make, config, "text.attention", *theirs, their_norms)
    text = Stream(modulation, _block(config, make, "text.", attention, f"{prefix}.ff_context"))
    return Layer(index, image, text, dual)


def _block(
    config: DiffusionConfig, make: WeightMaker, role: str, attention: SelfAttention, mlp: str
) -> Block:
    return Block(
        bare_norm(f"{role}input_norm", FIXED_EPS),
        attention,
        bare_norm(f"{role}post_norm", FIXED_EPS),
        make_mlp(make, config, f"{role}mlp", mlp),
    )


def read(raw: Mapping[str, Any], name: str) -> MMDiTConfig:
    fields = read_fields(raw, DEFAULTS, name)
    config = MMDiTConfig(
        **common(fields, name, "sd3", CLASS),
        eps=FIXED_EPS,
        activation="gelu_tanh",
        steps=STEPS,
        text_width=fields.size("joint_attention_dim"),
        text_tokens=TEXT_TOKENS,
        pooled_width=fields.size("pooled_projection_dim"),
        most_places=fields.size("pos_embed_max_size"),
        normed_heads=fields.choice("qk_norm", {"": False, "rms_norm": True}, ""),
        dual_layers=_dual_layers(fields),
    )
    projected = fields.size("caption_projection_dim")
    if projected != config.width:
        raise InputError(
            f"{name}: caption_projection_dim={projected} must be {config.width}, the width of both streams"
        )
    fields.finish(harmless=HARMLESS)
    return config


def _dual_layers(fields: Fields) -> tuple[int, ...]:
    given = fields.take("dual_attention_layers", list, [])
    if not all(type(index) is int and 0 <= index < fields.layers("num_layers") for index in given):
        raise InputError(f"{fields.where}: dual_attention_layers must be numbers of layers, not {given}")
    return tuple(given)
