"""GPT-NeoX (Pythia too) and Falcon: attention and MLP side by side, both reading the layer's input.

Layer norms, an MLP without a gate, RoPE on all of a head or its first elements. A fused tensor holds the
projections group by group, as many query heads as share a key head before their key and value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.errors import InputError
from ridgeline.models.fields import Fields
from ridgeline.models.model import Grouping, Model, ModelConfig, Source, WeightMaker, layer_norm
from ridgeline.models.rotary import read_rope
from ridgeline.ops.batch import Batch, T
from ridgeline.ops.layers import Layered
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Heads, Mask, Norm, Rope, Score, Weight

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}


@dataclass(frozen=True)
class NeoxConfig(ModelConfig):
    """``parallel``: the MLP reads the layer's input, not what attention made of it; it has a norm of its own,
    or, with ``one_norm``, attention's. ``grouped``: the fused tensor goes group by group."""

    rope: Rope
    eps: float
    activation: str
    attention_bias: bool
    mlp_bias: bool
    parallel: bool
    one_norm: bool
    grouped: bool


@dataclass(frozen=True)
class Layer(Layered):
    """``post_norm`` None: the MLP reads what attention reads."""

    input_norm: Norm
    qkv: Weight
    qkv_bias: Weight | None
    heads: Heads
    out: Weight
    out_bias: Weight | None
    post_norm: Norm | None
    up: Weight
    up_bias: Weight | None
    down: Weight
    down_bias: Weight | None


@dataclass(frozen=True)
class Neox(Model):
    config: NeoxConfig
    embedding: Weight
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Weight

    def forward(self, ops: Ops, batch: Batch) -> T:
        x = ops.embed(batch.ids, self.embedding)
        x = ops.repeat(self.layers, lambda layer, x: decoder_layer(ops, self.config, layer, x, batch), x)
        x = ops.take_rows(x, batch.logit_rows)
        return ops.linear(ops.norm(x, self.final_norm), self.head, name="head")


def decoder_layer(ops: Ops, config: NeoxConfig, layer: Layer, x: T, batch: Batch) -> T:
    h = ops.norm(x, layer.input_norm)
    q, k, v = ops.split_heads(ops.linear(h, layer.qkv, bias=layer.qkv_bias), layer.heads)
    attended = ops.attend(
        q,
        k,
        v,
        spans=batch.spans,
        mask=Mask(causal=True),
        score=Score(config.head_dim**-0.5),
        rope=config.rope,
        cache=batch.layer_cache(layer.index),
    )
    summed = ops.linear(attended, layer.out, bias=layer.out_bias, residual=x)
    if layer.post_norm is not None:
        h = ops.norm(x if config.parallel else summed, layer.post_norm)
    h = ops.linear(h, layer.up, bias=layer.up_bias, activation=config.activation)
    return ops.linear(h, layer.down, bias=layer.down_bias, residual=summed)


@dataclass(frozen=True)
class Names:
    """What a family calls its checkpoint's modules."""

    embedding: str
    layer: str
    attention: str
    final_norm: str
    head: str


NEOX = Names("gpt_neox.embed_in", "gpt_neox.layers", "attention", "gpt_neox.final_layer_norm", "embed_out")
FALCON = Names(
    "transformer.word_embeddings", "transformer.h", "self_attention", "transformer.ln_f", "lm_head"
)


def build(config: NeoxConfig, make: WeightMaker) -> Neox:
    """The model's tree of weights, under the names of Hugging Face's checkpoints."""
    names = NEOX if config.family == "gpt_neox" else FALCON
    table = (config.vocab, config.width)
    embedding = make.table("embedding", Source(f"{names.embedding}.weight", table))
    layers = tuple(_build_layer(config, make, names, i) for i in range(config.layers))
    final_norm = layer_norm(make, "final_norm", names.final_norm, config.width, config.eps)
    head = embedding if config.tied else make.table("head", Source(f"{names.head}.weight", table))
    return Neox(config, embedding, layers, final_norm, head)


def _build_layer(config: NeoxConfig, make: WeightMaker, names: Names, index: int) -> Layer:
    prefix, width = f"{names.layer}.{index}", config.width
    attention = f"{prefix}.{names.attention}"
    group = config.heads // config.kv_heads
    grouping = Grouping((group, 1, 1), config.head_dim) if config.grouped else None
    qkv_rows = (config.heads + 2 * config.kv_heads) * config.head_dim
    query = config.heads * config.head_dim

    def linear(
        name: str, source: str, rows: int, columns: int, bias: bool, grouping: Grouping | None = None
    ) -> tuple[Weight, Weight | None]:
        weight = make.matrix(name, Source(f"{source}.weight", (rows, columns), grouping))
        if not bias:
            return weight, None
        return weight, make.vector(f"{name}_bias", Source(f"{source}.bias", (rows,), grouping), fill=0.0)

    def norm(name: str, source: str) -> Norm:
        return layer_norm(make, name, f"{prefix}.{source}", width, config.eps)

    two = config.family == "falcon" and config.parallel and not config.one_norm
    return Layer(
        index,
        norm("input_norm", "ln_attn" if two else "input_layernorm"),
        *linear(
            "attention.qkv",
            f"{attention}.query_key_value",
            qkv_rows,
            width,
            config.attention_bias,
            grouping,
        ),
        Heads(config.heads, config.kv_heads, config.head_dim),
        *linear("attention.out", f"{attention}.dense", width, query, config.attention_bias),
        None if config.one_norm else norm("post_norm", "ln_mlp" if two else "post_attention_layernorm"),
        *linear("mlp.up", f"{prefix}.mlp.dense_h_to_4h", config.intermediate, width, config.mlp_bias),
        *linear("mlp.down", f"{prefix}.mlp.dense_4h_to_h", width, config.intermediate, config.mlp_bias),
    )


# -- reading the config of each family ------------------------------------------------------------


def read_neox(raw: Mapping[str, Any], name: str) -> NeoxConfig:
    # Old names of RoPE's fields.
    old = {"rope_theta": raw.get("rotary_emb_base"), "partial_rotary_factor": raw.get("rotary_pct")}
    raw = {k: v for k, v in raw.items() if k not in ("rotary_emb_base", "rotary_pct")}
    fields = Fields({**{k: v for k, v in old.items() if v is not None}, **raw}, name)
    heads, head_dim = (
        fields.size("num_attention_heads"),
        fields.head_dim("hidden_size", "num_attention_heads"),
    )
    window = fields.size("max_position_embeddings", 2048)
    config = NeoxConfig(
        name=name,
        family="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        format=fields.format(),
        vocab=fields.size("vocab_size"),
        width=fields.size("hidden_size"),
        layers=fields.layers("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        intermediate=fields.size("intermediate_size"),
        window=window,
        tied=fields.take("tie_word_embeddings", bool, False),
        rope=read_rope(fields, head_dim, window, share=0.25),
        eps=fields.take("layer_norm_eps", float, 1e-5),
        activation=fields.choice("hidden_act", ACTIVATIONS, "gelu"),
        attention_bias=fields.take("attention_bias", bool, True),
        mlp_bias=True,
        parallel=fields.take("use_parallel_residual", bool, True),
        one_norm=False,
        grouped=True,
    )
    fields.finish(harmless=("attention_dropout", "hidden_dropout"))
    return config


def read_falcon(raw: Mapping[str, Any], name: str) -> NeoxConfig:
    fields = Fields(raw, name)
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_dim = fields.head_dim("hidden_size", "num_attention_heads")
    window = fields.size("max_position_embeddings", 2048)
    new, single = (
        fields.take("new_decoder_architecture", bool, False),
        fields.take("multi_query", bool, True),
    )
    given = fields.size("num_kv_heads", heads)
    kv_heads = given if new else (1 if single else heads)
    if heads % kv_heads:
        raise InputError(f"{name}: num_attention_heads={heads} is not a multiple of num_kv_heads={kv_heads}")
    # The new architecture has no layer that is not parallel.
    parallel = fields.take("parallel_attn", bool, True)
    if new and not parallel:
        raise InputError(f"{name}: parallel_attn=False is not supported with new_decoder_architecture")
    norms = fields.size("num_ln_in_parallel_attn", 2 if new else 1)
    if norms > (2 if new else 1):
        raise InputError(f"{name}: num_ln_in_parallel_attn={norms} is not supported for this architecture")
    bias = fields.take("bias", bool, False)
    config = NeoxConfig(
        name=name,
        family="falcon",
        architecture="FalconForCausalLM",
        format=fields.format(),
        vocab=fields.size("vocab_size"),
        width=width,
        layers=fields.layers("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=fields.size("ffn_hidden_size", 4 * width),
        window=window,
        tied=fields.take("tie_word_embeddings", bool, True),
        rope=read_rope(fields, head_dim, window),
        eps=fields.take("layer_norm_epsilon", float, 1e-5),
        activation=fields.choice("activation", ACTIVATIONS, "gelu"),
        attention_bias=bias,
        mlp_bias=bias,
        parallel=parallel,
        one_norm=parallel and norms == 1,
        grouped=new or not single,
    )
    fields.finish(
        harmless=("attention_dropout", "hidden_dropout", "ff_factor"),
        defaults={"alibi": False, "apply_residual_connection_post_layernorm": False},
    )
    return config
