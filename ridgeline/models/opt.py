"""OPT: GPT-2's block with ReLU, separate projections, and positions offset by two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.models.fields import Fields
from ridgeline.models.gpt2 import Layer, PreNormConfig, block
from ridgeline.models.model import Model, Source, WeightMaker, layer_norm
from ridgeline.ops.protocol import Batch, Heads, Norm, Ops, T, Weight

#: The table of positions begins with two rows that a packed, unpadded batch never reads.
POSITION_OFFSET = 2
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}


@dataclass(frozen=True)
class OPT(Model):
    config: PreNormConfig
    embedding: Weight
    positions: Weight
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Weight

    def forward(self, ops: Ops, batch: Batch) -> T:
        positions = ops.embed(batch.positions, self.positions, offset=POSITION_OFFSET)
        x = ops.add(ops.embed(batch.ids, self.embedding), positions)
        x = ops.repeat(self.layers, lambda layer, x: block(ops, self.config, layer, x, batch), x)
        x = ops.take_rows(x, batch.logit_rows)
        return ops.linear(ops.norm(x, self.final_norm), self.head, name="head")


def build(config: PreNormConfig, make: WeightMaker) -> OPT:
    """The model's tree of weights, under the names of Hugging Face's checkpoints."""
    width = config.width
    embedding = make.table("embedding", Source("model.decoder.embed_tokens.weight", (config.vocab, width)))
    rows = config.window + POSITION_OFFSET
    positions = make.table("positions", Source("model.decoder.embed_positions.weight", (rows, width)))
    layers = tuple(_build_layer(config, make, i) for i in range(config.layers))
    final_norm = layer_norm(make, "final_norm", "model.decoder.final_layer_norm", width, config.eps)
    head = embedding
    if not config.tied:
        head = make.table("head", Source("lm_head.weight", (config.vocab, width)))
    return OPT(config, embedding, positions, layers, final_norm, head)


def _build_layer(config: PreNormConfig, make: WeightMaker, index: int) -> Layer:
    prefix = f"model.decoder.layers.{index}"
    width = config.width

    def linear(name: str, rows: int, columns: int, *modules: str) -> tuple[Weight, Weight]:
        each = rows // len(modules)
        return (
            make.matrix(name, *(Source(f"{prefix}.{m}.weight", (each, columns)) for m in modules)),
            make.vector(f"{name}_bias", *(Source(f"{prefix}.{m}.bias", (each,)) for m in modules), fill=0.0),
        )

    projections = (f"self_attn.{p}_proj" for p in "qkv")
    qkv, qkv_bias = linear("attention.qkv", 3 * width, width, *projections)
    out, out_bias = linear("attention.out", width, width, "self_attn.out_proj")
    up, up_bias = linear("mlp.up", config.intermediate, width, "fc1")
    down, down_bias = linear("mlp.down", width, config.intermediate, "fc2")
    return Layer(
        index=index,
        input_norm=layer_norm(make, "input_norm", f"{prefix}.self_attn_layer_norm", width, config.eps),
        qkv=qkv,
        qkv_bias=qkv_bias,
        heads=Heads(config.heads, config.kv_heads, config.head_dim),
        out=out,
        out_bias=out_bias,
        post_norm=layer_norm(make, "post_norm", f"{prefix}.final_layer_norm", width, config.eps),
        up=up,
        up_bias=up_bias,
        down=down,
        down_bias=down_bias,
    )


def read(raw: Mapping[str, Any], name: str) -> PreNormConfig:
    fields = Fields(raw, name)
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    config = PreNormConfig(
        name=name,
        family="opt",
        architecture="OPTForCausalLM",
        format=fields.format(),
        vocab=fields.size("vocab_size"),
        width=width,
        layers=fields.layers("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=fields.head_dim("hidden_size", "num_attention_heads"),
        intermediate=fields.size("ffn_dim"),
        window=fields.size("max_position_embeddings", 2048),
        eps=1e-5,  # PyTorch's default: OPT's config has no field for it
        activation=fields.choice("activation_function", ACTIVATIONS, "relu"),
        tied=fields.take("tie_word_embeddings", bool, True),
    )
    fields.finish(
        harmless=("attention_dropout", "activation_dropout", "dropout", "init_std", "layerdrop"),
        defaults={
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "word_embed_proj_dim": width,
        },
    )
    return config
