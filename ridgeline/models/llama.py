"""Llama and the families that share its block: Mistral, Qwen2, Qwen3, Phi-3, SmolLM, TinyLlama.

Pre-norm RMS, grouped-query attention with RoPE, gated MLP. The families differ in biases, in
norms on the query and key heads, and in which layers see only a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.errors import InputError
from ridgeline.models.fields import Fields
from ridgeline.models.model import Model, ModelConfig, Source, WeightMaker
from ridgeline.models.rotary import read_rope
from ridgeline.ops.batch import Batch, T
from ridgeline.ops.layers import Layered
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Heads, Mask, Norm, Rope, Score, Weight

ACTIVATIONS = {
    "silu": "silu_gated",
    "swish": "silu_gated",
    "gelu": "gelu_gated",
    "gelu_pytorch_tanh": "gelu_tanh_gated",
    "relu": "relu_gated",
}


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """``windows`` holds, per layer, how many tokens to the left of itself a query sees; -1 all. ``fused``
    checkpoints hold query, key and value in one tensor, and gate and up in another."""

    rope: Rope
    eps: float
    activation: str
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    head_norms: bool
    windows: tuple[int, ...]
    fused: bool


@dataclass(frozen=True)
class AttentionLayer(Layered):
    """A layer up to its MLP, whatever that is."""

    input_norm: Norm
    qkv: Weight
    qkv_bias: Weight | None
    heads: Heads
    mask: Mask
    out: Weight
    out_bias: Weight | None
    post_norm: Norm


@dataclass(frozen=True)
class Layer(AttentionLayer):
    gate_up: Weight
    gate_up_bias: Weight | None
    down: Weight
    down_bias: Weight | None


@dataclass(frozen=True)
class Llama(Model):
    config: LlamaConfig
    embedding: Weight
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Weight

    def forward(self, ops: Ops, batch: Batch) -> T:
        x = ops.embed(batch.ids, self.embedding)
        x = ops.repeat(self.layers, lambda layer, x: self.body(ops, layer, x, batch), x)
        x = ops.take_rows(x, batch.logit_rows)
        return ops.linear(ops.norm(x, self.final_norm), self.head, name="head")

    def body(self, ops: Ops, layer: Layered, x: T, batch: Batch) -> T:
        """One layer."""
        return decoder_layer(ops, self.config, layer, x, batch)


def decoder_layer(ops: Ops, config: LlamaConfig, layer: Layer, x: T, batch: Batch) -> T:
    x = attention_block(ops, config, layer, x, batch)
    h = ops.norm(x, layer.post_norm)
    h = ops.linear(h, layer.gate_up, bias=layer.gate_up_bias, activation=config.activation)
    return ops.linear(h, layer.down, bias=layer.down_bias, residual=x)


def attention_block(ops: Ops, config: LlamaConfig, layer: AttentionLayer, x: T, batch: Batch) -> T:
    """x + attention of the normalised x."""
    q, k, v = ops.split_heads(
        ops.linear(ops.norm(x, layer.input_norm), layer.qkv, bias=layer.qkv_bias), layer.heads
    )
    attended = ops.attend(
        q,
        k,
        v,
        spans=batch.spans,
        mask=layer.mask,
        score=Score(config.head_dim**-0.5),
        rope=config.rope,
        cache=batch.layer_cache(layer.index),
    )
    return ops.linear(attended, layer.out, bias=layer.out_bias, residual=x)


def build(config: LlamaConfig, make: WeightMaker) -> Llama:
    """The model's tree of weights, under the names of Hugging Face's checkpoints."""
    return build_trunk(config, make, Llama, build_layer)


def build_trunk(
    config: LlamaConfig,
    make: WeightMaker,
    model: type[Model],
    layer: Callable[[LlamaConfig, WeightMaker, int], Layered],
) -> Model:
    """A ``model`` of the fields of :class:`Llama`, whose layers ``layer`` builds."""
    embedding = make.table("embedding", Source("model.embed_tokens.weight", (config.vocab, config.width)))
    layers = tuple(layer(config, make, i) for i in range(config.layers))
    final_norm = _norm(config, make, "final_norm", "model.norm", config.width)
    head = embedding
    if not config.tied:
        head = make.table("head", Source("lm_head.weight", (config.vocab, config.width)))
    return model(config, embedding, layers, final_norm, head)


def _norm(config: LlamaConfig, make: WeightMaker, name: str, source: str, width: int) -> Norm:
    return Norm("rms", make.vector(name, Source(f"{source}.weight", (width,)), fill=1.0), config.eps)


def build_layer(config: LlamaConfig, make: WeightMaker, index: int) -> Layer:
    attention = attention_weights(config, make, index)
    stack, bias = _stacks(make, f"model.layers.{index}")
    gates = (("gate_proj", config.intermediate), ("up_proj", config.intermediate))
    if config.fused:
        gates = (("gate_up_proj", 2 * config.intermediate),)
    down = (("down_proj", config.width),)
    return Layer(
        **attention,
        gate_up=stack("mlp.gate_up", "mlp", gates, config.width),
        gate_up_bias=bias(config.mlp_bias, "mlp.gate_up_bias", "mlp", gates),
        down=stack("mlp.down", "mlp", down, config.intermediate),
        down_bias=bias(config.mlp_bias, "mlp.down_bias", "mlp", down),
    )


def _stacks(make: WeightMaker, prefix: str) -> tuple[Callable[..., Weight], Callable[..., Weight | None]]:
    """Functions that make a matrix, or a bias if it is there, of several modules' stacked."""

    def stack(name: str, module: str, parts: tuple[tuple[str, int], ...], width: int) -> Weight:
        return make.matrix(
            name, *(Source(f"{prefix}.{module}.{p}.weight", (rows, width)) for p, rows in parts)
        )

    def bias(present: bool, name: str, module: str, parts: tuple[tuple[str, int], ...]) -> Weight | None:
        if not present:
            return None
        return make.vector(
            name, *(Source(f"{prefix}.{module}.{p}.bias", (rows,)) for p, rows in parts), fill=0.0
        )

    return stack, bias


def attention_weights(config: LlamaConfig, make: WeightMaker, index: int) -> dict[str, Any]:
    """The fields of an :class:`AttentionLayer`."""
    prefix = f"model.layers.{index}"
    stack, bias = _stacks(make, prefix)
    query, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    projections = (("q_proj", query), ("k_proj", kv), ("v_proj", kv))
    if config.fused:
        projections = (("qkv_proj", query + 2 * kv),)

    def head_norm(name: str, source: str) -> Norm | None:
        if not config.head_norms:
            return None
        return _norm(config, make, name, f"{prefix}.self_attn.{source}", config.head_dim)

    out = (("o_proj", config.width),)
    return {
        "index": index,
        "input_norm": _norm(config, make, "input_norm", f"{prefix}.input_layernorm", config.width),
        "qkv": stack("attention.qkv", "self_attn", projections, config.width),
        "qkv_bias": bias(config.qkv_bias, "attention.qkv_bias", "self_attn", projections),
        "heads": Heads(
            config.heads,
            config.kv_heads,
            config.head_dim,
            head_norm("attention.query_norm", "q_norm"),
            head_norm("attention.key_norm", "k_norm"),
        ),
        "mask": Mask(causal=True, window=(config.windows[index], 0)),
        "out": stack("attention.out", "self_attn", out, query),
        "out_bias": bias(config.out_bias, "attention.out_bias", "self_attn", out),
        "post_norm": _norm(config, make, "post_norm", f"{prefix}.post_attention_layernorm", config.width),
    }


# -- reading the config of each family ------------------------------------------------------------


#: What transformers takes for a field that the config leaves out; null has a meaning of its own.
MISTRAL_ABSENT = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
QWEN2_ABSENT = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}
QWEN3_ABSENT = {**QWEN2_ABSENT, "head_dim": 128}
PHI3_ABSENT = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


def read_variant_of(
    kind: type[LlamaConfig],
    raw: Mapping[str, Any],
    name: str,
    read_variant: Callable[[Fields, int], dict[str, Any]],
    harmless: tuple[str, ...] = (),
    rotary_share: float | None = None,
) -> LlamaConfig:
    """A config of this block as a record of ``kind``, whose further fields ``read_variant`` reads."""
    fields = Fields(raw, name)
    width, heads, layers = (
        fields.size("hidden_size"),
        fields.size("num_attention_heads"),
        fields.layers("num_hidden_layers"),
    )
    kv_heads = fields.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise InputError(
            f"{name}: num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}"
        )
    head_dim = fields.size("head_dim", None) or fields.head_dim("hidden_size", "num_attention_heads")
    trained = fields.size("max_position_embeddings", 2048)
    rope = read_rope(fields, head_dim, trained, rotary_share)
    config = kind(
        name=name,
        family=raw["model_type"],
        architecture=raw["architectures"][0],
        format=fields.format(),
        vocab=fields.size("vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=fields.size("intermediate_size"),
        window=_window(rope, trained),
        rope=rope,
        eps=fields.take("rms_norm_eps", float, 1e-6),
        activation=fields.choice("hidden_act", ACTIVATIONS, "silu"),
        tied=fields.take("tie_word_embeddings", bool, False),
        **read_variant(fields, layers),
    )
    fields.finish(
        harmless=("attention_dropout", "mlp_dropout", "rope_interleaved", "is_llama_config", *harmless),
        defaults={"pretraining_tp": 1, "partial_rotary_factor": 1.0},
    )
    return config


def read_llama(raw: Mapping[str, Any], name: str) -> LlamaConfig:
    def variant(fields: Fields, layers: int) -> dict[str, Any]:
        bias = fields.take("attention_bias", bool, False)
        mlp_bias = fields.take("mlp_bias", bool, False)
        return variant_fields(qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias, windows=(-1,) * layers)

    return read_variant_of(LlamaConfig, raw, name, variant)


def read_mistral(raw: Mapping[str, Any], name: str) -> LlamaConfig:
    def variant(fields: Fields, layers: int) -> dict[str, Any]:
        return variant_fields(windows=(left_of(fields.size("sliding_window", None)),) * layers)

    return read_variant_of(LlamaConfig, {**MISTRAL_ABSENT, **raw}, name, variant)


def read_qwen2(raw: Mapping[str, Any], name: str) -> LlamaConfig:
    def variant(fields: Fields, layers: int) -> dict[str, Any]:
        return variant_fields(qkv_bias=True, windows=_qwen_windows(fields, layers))

    return read_variant_of(LlamaConfig, {**QWEN2_ABSENT, **raw}, name, variant)


def read_qwen3(raw: Mapping[str, Any], name: str) -> LlamaConfig:
    def variant(fields: Fields, layers: int) -> dict[str, Any]:
        bias = fields.take("attention_bias", bool, False)
        windows = _qwen_windows(fields, layers)
        return variant_fields(qkv_bias=bias, out_bias=bias, head_norms=True, windows=windows)

    return read_variant_of(LlamaConfig, {**QWEN3_ABSENT, **raw}, name, variant)


def read_phi3(raw: Mapping[str, Any], name: str) -> LlamaConfig:
    def variant(fields: Fields, layers: int) -> dict[str, Any]:
        windows = (left_of(fields.size("sliding_window", None)),) * layers
        return variant_fields(windows=windows, fused=True)

    raw, dropout = {**PHI3_ABSENT, **raw}, ("resid_pdrop", "embd_pdrop")
    return read_variant_of(LlamaConfig, raw, name, variant, dropout, rotary_share=1.0)


def variant_fields(
    *,
    windows: tuple[int, ...],
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    head_norms: bool = False,
    fused: bool = False,
) -> dict[str, Any]:
    return {
        "qkv_bias": qkv_bias,
        "out_bias": out_bias,
        "mlp_bias": mlp_bias,
        "head_norms": head_norms,
        "windows": windows,
        "fused": fused,
    }


def _window(rope: Rope, trained: int) -> int:
    """Dynamic scaling takes requests beyond the trained length; the others' configs already say
    the stretched one."""
    if rope.scaling is not None and rope.scaling.kind == "dynamic":
        return int(trained * rope.scaling.factor)
    return trained


def left_of(window: int | None) -> int:
    """A config's window counts the query's own token among its keys; ours does not."""
    return -1 if window is None else window - 1


def _qwen_windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """Layers from ``max_window_layers`` on slide, unless ``layer_types`` names each layer's kind."""
    sliding = fields.take("use_sliding_window", bool, False)
    window = fields.size("sliding_window", None)
    first = fields.take("max_window_layers", int, 28)
    kinds = fields.take("layer_types", list, None)
    left = left_of(window) if sliding else -1
    if kinds is None:
        return tuple(left if i >= first else -1 for i in range(layers))
    known = ("full_attention", "sliding_attention")
    if len(kinds) != layers or not all(kind in known for kind in kinds):
        raise InputError(
            f"{fields.where}: layer_types must name {' or '.join(known)} for each of {layers} layers"
        )
    if left < 0 and "sliding_attention" in kinds:
        raise InputError(
            f"{fields.where}: layer_types names sliding_attention, which needs a sliding_window and "
            "use_sliding_window=true"
        )
    return tuple(left if kind == "sliding_attention" else -1 for kind in kinds)
