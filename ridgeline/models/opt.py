"""OPT: GPT-2's block with ReLU, separate projections, and positions offset by two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ridgeline.models.fields import Fields
from ridgeline.models.gpt2 import GPT2, Layer, PreNormConfig, make_layer
from ridgeline.models.model import Source, WeightMaker, layer_norm
from ridgeline.ops.records import Weight

#: The table of positions begins with two rows that a packed, unpadded batch never reads.
POSITION_OFFSET = 2
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}


def build(config: PreNormConfig, make: WeightMaker) -> GPT2:
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
    return GPT2(config, embedding, positions, layers, final_norm, head, POSITION_OFFSET)


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
    return make_layer(
        config,
        index,
        input_norm=layer_norm(make, "input_norm", f"{prefix}.self_attn_layer_norm", width, config.eps),
        qkv=linear("attention.qkv", 3 * width, width, *projections),
        out=linear("attention.out", width, width, "self_attn.out_proj"),
        post_norm=layer_norm(make, "post_norm", f"{prefix}.final_layer_norm", width, config.eps),
        up=linear("mlp.up", config.intermediate, width, "fc1"),
        down=linear("mlp.down", width, config.intermediate, "fc2"),
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
