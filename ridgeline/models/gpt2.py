"""GPT-2: learned positions, pre-norm layer norm, biases everywhere, a tied head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.models.fields import Fields
from ridgeline.models.model import Model, ModelConfig, Source, WeightMaker, layer_norm
from ridgeline.ops.batch import Batch, T
from ridgeline.ops.layers import Layered
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Heads, Mask, Norm, Score, Weight

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}


@dataclass(frozen=True)
class PreNormConfig(ModelConfig):
    """The config of GPT-2 and of OPT, which shares its block."""

    eps: float
    activation: str


@dataclass(frozen=True)
class Layer(Layered):
    input_norm: Norm
    qkv: Weight
    qkv_bias: Weight
    heads: Heads
    out: Weight
    out_bias: Weight
    post_norm: Norm
    up: Weight
    up_bias: Weight
    down: Weight
    down_bias: Weight


@dataclass(frozen=True)
class GPT2(Model):
    """``position_offset`` is the row of the table that the first position reads (OPT's is 2)."""

    config: PreNormConfig
    embedding: Weight
    positions: Weight
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Weight
    position_offset: int = 0

    def forward(self, ops: Ops, batch: Batch) -> T:
        positions = ops.embed(batch.positions, self.positions, offset=self.position_offset)
        x = ops.add(ops.embed(batch.ids, self.embedding), positions)
        x = ops.repeat(self.layers, lambda layer, x: block(ops, self.config, layer, x, batch), x)
        x = ops.take_rows(x, batch.logit_rows)
        return ops.linear(ops.norm(x, self.final_norm), self.head, name="head")


def block(ops: Ops, config: PreNormConfig, layer: Layer, x: T, batch: Batch) -> T:
    qkv = ops.linear(ops.norm(x, layer.input_norm), layer.qkv, bias=layer.qkv_bias)
    q, k, v = ops.split_heads(qkv, layer.heads)
    attended = ops.attend(
        q,
        k,
        v,
        spans=batch.spans,
        mask=Mask(causal=True),
        score=Score(config.head_dim**-0.5),
        cache=batch.layer_cache(layer.index),
    )
    x = ops.linear(attended, layer.out, bias=layer.out_bias, residual=x)
    h = ops.norm(x, layer.post_norm)
    h = ops.linear(h, layer.up, bias=layer.up_bias, activation=config.activation)
    return ops.linear(h, layer.down, bias=layer.down_bias, residual=x)


def build(config: PreNormConfig, make: WeightMaker) -> GPT2:
    """The model's tree of weights; the checkpoint stores its matrices as [in, out]."""
    width = config.width
    embedding = make.table("embedding", Source("transformer.wte.weight", (config.vocab, width)))
    positions = make.table("positions", Source("transformer.wpe.weight", (config.window, width)))
    layers = tuple(_build_layer(config, make, i) for i in range(config.layers))
    final_norm = layer_norm(make, "final_norm", "transformer.ln_f", width, config.eps)
    head = embedding
    if not config.tied:
        head = make.table("head", Source("lm_head.weight", (config.vocab, width)))
    return GPT2(config, embedding, positions, layers, final_norm, head)


def _build_layer(config: PreNormConfig, make: WeightMaker, index: int) -> Layer:
    prefix = f"transformer.h.{index}"
    width = config.width

    def matrix(name: str, source: str, rows: int, columns: int) -> tuple[Weight, Weight]:
        return (
            make.matrix(name, Source(f"{prefix}.{source}.weight", (columns, rows)), transposed=True),
            make.vector(f"{name}_bias", Source(f"{prefix}.{source}.bias", (rows,)), fill=0.0),
        )

    return make_layer(
        config,
        index,
        input_norm=layer_norm(make, "input_norm", f"{prefix}.ln_1", width, config.eps),
        qkv=matrix("attention.qkv", "attn.c_attn", 3 * width, width),
        out=matrix("attention.out", "attn.c_proj", width, width),
        post_norm=layer_norm(make, "post_norm", f"{prefix}.ln_2", width, config.eps),
        up=matrix("mlp.up", "mlp.c_fc", config.intermediate, width),
        down=matrix("mlp.down", "mlp.c_proj", width, config.intermediate),
    )


def make_layer(
    config: PreNormConfig,
    index: int,
    *,
    input_norm: Norm,
    qkv: tuple[Weight, Weight],
    out: tuple[Weight, Weight],
    post_norm: Norm,
    up: tuple[Weight, Weight],
    down: tuple[Weight, Weight],
) -> Layer:
    """A layer from its norms and its matrices, each with its bias."""
    return Layer(
        index,
        input_norm,
        *qkv,
        Heads(config.heads, config.kv_heads, config.head_dim),
        *out,
        post_norm,
        *up,
        *down,
    )


def read(raw: Mapping[str, Any], name: str) -> PreNormConfig:
    fields = Fields(raw, name)
    width, heads = fields.size("n_embd"), fields.size("n_head")
    config = PreNormConfig(
        name=name,
        family="gpt2",
        architecture="GPT2LMHeadModel",
        format=fields.format(),
        vocab=fields.size("vocab_size"),
        width=width,
        layers=fields.layers("n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=fields.head_dim("n_embd", "n_head"),
        intermediate=fields.size("n_inner", 4 * width),
        window=fields.size("n_positions", 1024),
        eps=fields.take("layer_norm_epsilon", float, 1e-5),
        activation=fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
        tied=fields.take("tie_word_embeddings", bool, True),
    )
    fields.finish(
        harmless=(
            "attn_pdrop",
            "embd_pdrop",
            "resid_pdrop",
            "n_ctx",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ),
        defaults={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
        },
    )
    return config
