"""Gemma, Gemma 2 and the text part of Gemma 3.

Heads of a size of their own, a gated tanh-GELU, an embedding scaled by the square root of the width, norms
whose stored weight is the difference from 1. From Gemma 2 on norms stand behind attention and MLP, too, and
layers that see only a window alternate with those that see all; Gemma 2 caps scores and logits, Gemma 3
norms queries and keys instead and rotates the two kinds of layers by different angles.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.errors import InputError
from ridgeline.models.fields import Fields
from ridgeline.models.model import Model, ModelConfig, Source, WeightMaker
from ridgeline.models.rotary import read_rope, read_ropes_by_kind
from ridgeline.ops.batch import Batch, T
from ridgeline.ops.layers import Layered
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Heads, Mask, Norm, Rope, Score, Weight

ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu_tanh_gated",
    "gelu_new": "gelu_tanh_gated",
    "gelu": "gelu_gated",
    "silu": "silu_gated",
}
#: Older files repeat the activation and the window under other names, and name a sort of cache.
HARMLESS = (
    "attention_dropout",
    "hidden_act",
    "hidden_activation",
    "cache_implementation",
    "sliding_window_size",
)
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class GemmaConfig(ModelConfig):
    """``windows`` and ``ropes`` are by layer: how many tokens to the left of itself a query sees, -1 all, and
    how it is rotated. A cap of 0 is none."""

    ropes: tuple[Rope, ...]
    windows: tuple[int, ...]
    eps: float
    activation: str
    score_scale: float
    score_cap: float
    logit_cap: float
    bias: bool
    head_norms: bool
    post_norms: bool


@dataclass(frozen=True)
class Layer(Layered):
    """``attention_norm`` and ``mlp_norm`` are those behind attention and MLP, which Gemma 1 lacks."""

    input_norm: Norm
    qkv: Weight
    qkv_bias: Weight | None
    heads: Heads
    mask: Mask
    rope: Rope
    out: Weight
    out_bias: Weight | None
    attention_norm: Norm | None
    post_norm: Norm
    gate_up: Weight
    down: Weight
    mlp_norm: Norm | None


@dataclass(frozen=True)
class Gemma(Model):
    config: GemmaConfig
    embedding: Weight
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Weight

    def forward(self, ops: Ops, batch: Batch) -> T:
        scale = rounded(math.sqrt(self.config.width), self.plain_format)
        x = ops.embed(batch.ids, self.embedding, scale=scale)
        x = ops.repeat(self.layers, lambda layer, x: decoder_layer(ops, self.config, layer, x, batch), x)
        x = ops.take_rows(x, batch.logit_rows)
        logits = ops.linear(ops.norm(x, self.final_norm), self.head, name="head")
        return ops.softcap(logits, self.config.logit_cap) if self.config.logit_cap else logits


def decoder_layer(ops: Ops, config: GemmaConfig, layer: Layer, x: T, batch: Batch) -> T:
    h = ops.linear(ops.norm(x, layer.input_norm), layer.qkv, bias=layer.qkv_bias)
    q, k, v = ops.split_heads(h, layer.heads)
    attended = ops.attend(
        q,
        k,
        v,
        spans=batch.spans,
        mask=layer.mask,
        score=Score(config.score_scale, config.score_cap),
        rope=layer.rope,
        cache=batch.layer_cache(layer.index),
    )
    x = _joined(ops, attended, layer.out, layer.out_bias, layer.attention_norm, x)
    h = ops.linear(ops.norm(x, layer.post_norm), layer.gate_up, activation=config.activation)
    return _joined(ops, h, layer.down, None, layer.mlp_norm, x)


def _joined(ops: Ops, h: T, weight: Weight, bias: Weight | None, norm: Norm | None, x: T) -> T:
    """x plus the product, normalised where there is a norm."""
    if norm is None:
        return ops.linear(h, weight, bias=bias, residual=x)
    return ops.add(x, ops.norm(ops.linear(h, weight, bias=bias), norm))


def rounded(x: float, format: str) -> float:
    """x as weights of ``format`` hold it: the embedding's scale was rounded so in training."""
    if format == "bf16":
        (bits,) = struct.unpack("<I", struct.pack("<f", x))
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        return struct.unpack("<f", struct.pack("<I", bits))[0]
    return struct.unpack("<e", struct.pack("<e", x))[0] if format == "fp16" else x


def build(config: GemmaConfig, make: WeightMaker) -> Gemma:
    """The model's tree of weights, under the names of Hugging Face's checkpoints."""
    embedding = make.table("embedding", Source("model.embed_tokens.weight", (config.vocab, config.width)))
    layers = tuple(_build_layer(config, make, i) for i in range(config.layers))
    final_norm = _norm(config, make, "final_norm", "model.norm", config.width)
    head = embedding
    if not config.tied:
        head = make.table("head", Source("lm_head.weight", (config.vocab, config.width)))
    return Gemma(config, embedding, layers, final_norm, head)


def _norm(config: GemmaConfig, make: WeightMaker, name: str, source: str, width: int) -> Norm:
    weight = make.vector(name, Source(f"{source}.weight", (width,)), fill=0.0)
    return Norm("rms", weight, config.eps, offset=1.0)


def _build_layer(config: GemmaConfig, make: WeightMaker, index: int) -> Layer:
    prefix, width = f"model.layers.{index}", config.width
    query, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    projections = (("q_proj", query), ("k_proj", kv), ("v_proj", kv))
    attention = f"{prefix}.self_attn"

    def norm(name: str, source: str, size: int = width) -> Norm:
        return _norm(config, make, name, f"{prefix}.{source}", size)

    qkv = (Source(f"{attention}.{p}.weight", (rows, width)) for p, rows in projections)
    biases = (Source(f"{attention}.{p}.bias", (rows,)) for p, rows in projections)
    gates = (Source(f"{prefix}.mlp.{p}_proj.weight", (config.intermediate, width)) for p in ("gate", "up"))
    head_norms: tuple[Norm, ...] = ()
    if config.head_norms:
        head_norms = (
            norm("attention.query_norm", "self_attn.q_norm", config.head_dim),
            norm("attention.key_norm", "self_attn.k_norm", config.head_dim),
        )
    # Gemma 1 calls the norm before the MLP as the others call the one behind attention.
    before_mlp = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    behind = config.post_norms
    return Layer(
        index=index,
        input_norm=norm("input_norm", "input_layernorm"),
        qkv=make.matrix("attention.qkv", *qkv),
        qkv_bias=make.vector("attention.qkv_bias", *biases, fill=0.0) if config.bias else None,
        heads=Heads(config.heads, config.kv_heads, config.head_dim, *head_norms),
        mask=Mask(causal=True, window=(config.windows[index], 0)),
        rope=config.ropes[index],
        out=make.matrix("attention.out", Source(f"{attention}.o_proj.weight", (width, query))),
        out_bias=make.vector("attention.out_bias", Source(f"{attention}.o_proj.bias", (width,)), fill=0.0)
        if config.bias
        else None,
        attention_norm=norm("attention_norm", "post_attention_layernorm") if behind else None,
        post_norm=norm("post_norm", before_mlp),
        gate_up=make.matrix("mlp.gate_up", *gates),
        down=make.matrix("mlp.down", Source(f"{prefix}.mlp.down_proj.weight", (width, config.intermediate))),
        mlp_norm=norm("mlp_norm", "post_feedforward_layernorm") if behind else None,
    )


# -- reading the config of each family ------------------------------------------------------------

#: What transformers takes for a field that the config leaves out.
GEMMA_ABSENT = {"num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192}
GEMMA2_ABSENT = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA3_ABSENT = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}


def read_gemma(raw: Mapping[str, Any], name: str) -> GemmaConfig:
    def variant(fields: Fields, layers: int, head_dim: int, trained: int) -> dict[str, Any]:
        # Old files say gelu and mean its tanh form.
        activations = {**ACTIVATIONS, "gelu": ACTIVATIONS["gelu_pytorch_tanh"]}
        return {
            "activation": fields.choice("hidden_act", activations, "gelu_pytorch_tanh"),
            "ropes": (read_rope(fields, head_dim, trained),) * layers,
            "windows": (-1,) * layers,
            "score_scale": head_dim**-0.5,
            "score_cap": 0.0,
            "logit_cap": 0.0,
            "head_norms": False,
            "post_norms": False,
        }

    return _read({**GEMMA_ABSENT, **raw}, name, variant)


def read_gemma2(raw: Mapping[str, Any], name: str) -> GemmaConfig:
    def variant(fields: Fields, layers: int, head_dim: int, trained: int) -> dict[str, Any]:
        kinds = _kinds(fields, layers, period=2)
        return {
            "activation": _activation(fields),
            "ropes": (read_rope(fields, head_dim, trained),) * layers,
            "windows": _windows(fields, kinds),
            "score_scale": _positive(fields, "query_pre_attn_scalar") ** -0.5,
            "score_cap": _cap(fields, "attn_logit_softcapping"),
            "logit_cap": _cap(fields, "final_logit_softcapping"),
            "head_norms": False,
            "post_norms": True,
        }

    return _read({**GEMMA2_ABSENT, **raw}, name, variant)


def read_gemma3(raw: Mapping[str, Any], name: str) -> GemmaConfig:
    def variant(fields: Fields, layers: int, head_dim: int, trained: int) -> dict[str, Any]:
        saved = fields.size("_sliding_window_pattern", 6)  # as transformers 5 writes it
        kinds = _kinds(fields, layers, fields.size("sliding_window_pattern", saved))
        if fields.take("attn_logit_softcapping", float, None) is not None:
            raise InputError(f"{name}: attn_logit_softcapping is not supported: Gemma 3 caps no scores")
        ropes = read_ropes_by_kind(fields, head_dim, trained)
        return {
            "activation": _activation(fields),
            "ropes": tuple(ropes[kind] for kind in kinds),
            "windows": _windows(fields, kinds),
            "score_scale": _positive(fields, "query_pre_attn_scalar") ** -0.5,
            "score_cap": 0.0,
            "logit_cap": _cap(fields, "final_logit_softcapping"),
            "head_norms": True,
            "post_norms": True,
        }

    return _read({**GEMMA3_ABSENT, **raw}, name, variant)


def _read(raw: Mapping[str, Any], name: str, read_variant: Any) -> GemmaConfig:
    fields = Fields(raw, name)
    heads, kv_heads = fields.size("num_attention_heads"), fields.size("num_key_value_heads")
    if heads % kv_heads:
        raise InputError(
            f"{name}: num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}"
        )
    layers, head_dim = fields.layers("num_hidden_layers"), fields.size("head_dim")
    trained = fields.size("max_position_embeddings")
    config = GemmaConfig(
        name=name,
        family=raw["model_type"],
        architecture=raw["architectures"][0],
        format=fields.format(),
        vocab=fields.size("vocab_size"),
        width=fields.size("hidden_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=fields.size("intermediate_size"),
        window=trained,
        eps=fields.take("rms_norm_eps", float, 1e-6),
        bias=fields.take("attention_bias", bool, False),
        tied=fields.take("tie_word_embeddings", bool, True),
        **read_variant(fields, layers, head_dim, trained),
    )
    if any(rope.by_request for rope in config.ropes):
        raise InputError(
            f"{name}: RoPE that depends on a request's length is not supported for {config.family}"
        )
    fields.finish(harmless=HARMLESS, defaults={"use_bidirectional_attention": False})
    return config


def _activation(fields: Fields) -> str:
    return fields.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")


def _kinds(fields: Fields, layers: int, period: int) -> tuple[str, ...]:
    """Each layer's kind: every ``period``-th sees all, unless ``layer_types`` says otherwise."""
    kinds = fields.take("layer_types", list, None)
    if kinds is None:
        return tuple(SLIDING if (i + 1) % period else FULL for i in range(layers))
    if len(kinds) != layers or not all(kind in (SLIDING, FULL) for kind in kinds):
        raise InputError(
            f"{fields.where}: layer_types must name {FULL} or {SLIDING} for each of {layers} layers"
        )
    return tuple(kinds)


def _windows(fields: Fields, kinds: tuple[str, ...]) -> tuple[int, ...]:
    """A config's window counts the query's own token among its keys; ours does not."""
    window = fields.size("sliding_window", None)
    if window is None and SLIDING in kinds:
        raise InputError(f"{fields.where}: layer_types names {SLIDING}, which needs a sliding_window")
    return tuple(window - 1 if kind == SLIDING else -1 for kind in kinds)


def _positive(fields: Fields, field: str) -> float:
    value = fields.take(field, float)
    if value <= 0:
        raise InputError(f"{fields.where}: {field} must be above 0, not {value}")
    return value


def _cap(fields: Fields, field: str) -> float:
    return 0.0 if fields.take(field, float, None) is None else _positive(fields, field)
