"""T5, 1.0 and 1.1 (Flan-T5 too): an encoder, and a decoder that reads it by cross-attention.

RMS norms, no biases, scores that are not scaled but have a learned bias by distance, which all layers of a
stack share; ReLU, or from 1.1 on a gated GELU; heads of a size of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.errors import InputError
from ridgeline.models.fields import Fields
from ridgeline.models.model import EncoderDecoder, ModelConfig, Source, WeightMaker
from ridgeline.ops.batch import Batch, T
from ridgeline.ops.layers import Layered
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Heads, Mask, Norm, RelativeBias, Score, Weight

#: What ``feed_forward_proj`` stands for; T5 1.1 says gelu and means its tanh form.
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "gated-gelu": "gelu_tanh_gated",
    "gated-silu": "silu_gated",
    "gated-relu": "relu_gated",
}
#: Positions are relative and set no limit; this one keeps a mistyped length from being taken for one.
WINDOW = 1 << 20


@dataclass(frozen=True)
class T5Config(ModelConfig):
    """``layers`` are the decoder's; ``start`` is the token that a decoder begins with; ``scaled`` says that
    the decoder's output is divided by the square root of the width before the head."""

    encoder_layers: int
    eps: float
    activation: str
    buckets: int
    max_distance: int
    scaled: bool
    start: int

    @property
    def is_encoder_decoder(self) -> bool:
        return True


@dataclass(frozen=True)
class EncoderLayer(Layered):
    """``bias`` is the stack's: its table is one weight."""

    input_norm: Norm
    qkv: Weight
    heads: Heads
    bias: RelativeBias
    out: Weight
    post_norm: Norm
    up: Weight
    down: Weight


@dataclass(frozen=True)
class DecoderLayer(EncoderLayer):
    cross_norm: Norm
    cross_query: Weight
    cross_kv: Weight
    cross_out: Weight


@dataclass(frozen=True)
class T5(EncoderDecoder):
    config: T5Config
    embedding: Weight
    encoder_layers: tuple[EncoderLayer, ...]
    encoder_norm: Norm
    layers: tuple[DecoderLayer, ...]
    final_norm: Norm
    head: Weight

    def encode(self, ops: Ops, batch: Batch) -> T:
        config = self.config
        x = ops.embed(batch.ids, self.embedding)
        x = ops.repeat(self.encoder_layers, lambda layer, x: encoder_layer(ops, config, layer, x, batch), x)
        states = ops.norm(x, self.encoder_norm)
        if batch.memory is None or batch.memory.cache is None:
            return states

        def remember(layer: DecoderLayer, states: T) -> T:
            k, v = cross_keys_and_values(ops, config, layer, states)
            ops.store(k, v, spans=batch.spans, cache=batch.memory.layer_cache(layer.index))
            return states

        return ops.repeat(self.layers, remember, states)

    def forward(self, ops: Ops, batch: Batch) -> T:
        config = self.config
        x = ops.embed(batch.ids, self.embedding)
        x = ops.repeat(self.layers, lambda layer, x: decoder_layer(ops, config, layer, x, batch), x)
        x = ops.take_rows(x, batch.logit_rows)
        return ops.linear(ops.norm(x, self.final_norm), self.head, name="head")


def encoder_layer(ops: Ops, config: T5Config, layer: EncoderLayer, x: T, batch: Batch) -> T:
    x = self_attention(ops, layer, x, batch, Mask(causal=False))
    return feed_forward(ops, config, layer, x)


def decoder_layer(ops: Ops, config: T5Config, layer: DecoderLayer, x: T, batch: Batch) -> T:
    x = self_attention(ops, layer, x, batch, Mask(causal=True))
    x = cross_attention(ops, config, layer, x, batch)
    return feed_forward(ops, config, layer, x)


def self_attention(ops: Ops, layer: EncoderLayer, x: T, batch: Batch, mask: Mask) -> T:
    q, k, v = ops.split_heads(ops.linear(ops.norm(x, layer.input_norm), layer.qkv), layer.heads)
    cache = batch.layer_cache(layer.index) if mask.causal else None
    score = Score(1.0, bias=layer.bias)
    attended = ops.attend(q, k, v, spans=batch.spans, mask=mask, score=score, cache=cache)
    return ops.linear(attended, layer.out, residual=x)


def cross_attention(ops: Ops, config: T5Config, layer: DecoderLayer, x: T, batch: Batch) -> T:
    """Every row sees all of its sequence's memory: of a filled cache, or of the encoder's states."""
    memory = batch.memory
    query = ops.linear(ops.norm(x, layer.cross_norm), layer.cross_query)
    q, _, _ = ops.split_heads(query, Heads(config.heads, 0, config.head_dim))
    cache = memory.layer_cache(layer.index)
    k = v = None
    if cache is None:
        k, v = cross_keys_and_values(ops, config, layer, memory.states)
    attended = ops.attend(
        q,
        k,
        v,
        spans=memory.spans,
        mask=Mask(causal=False),
        score=Score(1.0),
        cache=cache,
        name="cross.attention",
    )
    return ops.linear(attended, layer.cross_out, residual=x)


def cross_keys_and_values(ops: Ops, config: T5Config, layer: DecoderLayer, states: T) -> tuple[T, T]:
    heads = Heads(0, config.heads, config.head_dim)
    _, k, v = ops.split_heads(ops.linear(states, layer.cross_kv), heads)
    return k, v


def feed_forward(ops: Ops, config: T5Config, layer: EncoderLayer, x: T) -> T:
    h = ops.linear(ops.norm(x, layer.post_norm), layer.up, activation=config.activation)
    return ops.linear(h, layer.down, residual=x)


def build(config: T5Config, make: WeightMaker) -> T5:
    """The model's tree of weights, under the names of Hugging Face's checkpoints."""
    embedding = make.table("embedding", Source("shared.weight", (config.vocab, config.width)))
    encoder_bias = _bias(config, make, "encoder", bidirectional=True)
    encoder = tuple(
        EncoderLayer(i, **_shared_parts(config, make, f"encoder.block.{i}.layer", 1, encoder_bias))
        for i in range(config.encoder_layers)
    )
    encoder_norm = _norm(config, make, "encoder_norm", "encoder.final_layer_norm")
    decoder_bias = _bias(config, make, "decoder", bidirectional=False)
    decoder = tuple(_decoder_layer(config, make, i, decoder_bias) for i in range(config.layers))
    scale = config.width**-0.5 if config.scaled else 1.0
    final_norm = _norm(config, make, "final_norm", "decoder.final_layer_norm", scale)
    head = embedding
    if not config.tied:
        head = make.table("head", Source("lm_head.weight", (config.vocab, config.width)))
    return T5(config, embedding, encoder, encoder_norm, decoder, final_norm, head)


def _bias(config: T5Config, make: WeightMaker, stack: str, *, bidirectional: bool) -> RelativeBias:
    name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    table = make.table(f"{stack}.bias", Source(name, (config.buckets, config.heads)))
    return RelativeBias(table, config.max_distance, bidirectional)


def _norm(config: T5Config, make: WeightMaker, name: str, source: str, scale: float = 1.0) -> Norm:
    weight = make.vector(name, Source(f"{source}.weight", (config.width,)), fill=1.0)
    return Norm("rms", weight, config.eps, scale=scale)


def _attention(config: T5Config, make: WeightMaker, source: str, name: str, parts: str) -> Weight:
    """The projections that ``parts`` names, q, k and v, stacked."""
    inner = config.heads * config.head_dim
    return make.matrix(name, *(Source(f"{source}.{p}.weight", (inner, config.width)) for p in parts))


def _out(config: T5Config, make: WeightMaker, source: str, name: str) -> Weight:
    inner = config.heads * config.head_dim
    return make.matrix(name, Source(f"{source}.o.weight", (config.width, inner)))


def _shared_parts(
    config: T5Config, make: WeightMaker, prefix: str, mlp: int, bias: RelativeBias
) -> dict[str, Any]:
    """What layers of encoder and decoder have in common; the MLP is sublayer number ``mlp``."""
    attention, dense = f"{prefix}.0.SelfAttention", f"{prefix}.{mlp}.DenseReluDense"
    ups = ("wi_0", "wi_1") if config.activation.endswith("_gated") else ("wi",)
    rows = (config.intermediate, config.width)
    return {
        "input_norm": _norm(config, make, "input_norm", f"{prefix}.0.layer_norm"),
        "qkv": _attention(config, make, attention, "attention.qkv", "qkv"),
        "heads": Heads(config.heads, config.kv_heads, config.head_dim),
        "bias": bias,
        "out": _out(config, make, attention, "attention.out"),
        "post_norm": _norm(config, make, "post_norm", f"{prefix}.{mlp}.layer_norm"),
        "up": make.matrix("mlp.up", *(Source(f"{dense}.{up}.weight", rows) for up in ups)),
        "down": make.matrix("mlp.down", Source(f"{dense}.wo.weight", rows[::-1])),
    }


def _decoder_layer(config: T5Config, make: WeightMaker, index: int, bias: RelativeBias) -> DecoderLayer:
    prefix = f"decoder.block.{index}.layer"
    cross = f"{prefix}.1.EncDecAttention"
    return DecoderLayer(
        index,
        **_shared_parts(config, make, prefix, 2, bias),
        cross_norm=_norm(config, make, "cross_norm", f"{prefix}.1.layer_norm"),
        cross_query=_attention(config, make, cross, "cross.query", "q"),
        cross_kv=_attention(config, make, cross, "cross.kv", "kv"),
        cross_out=_out(config, make, cross, "cross.out"),
    )


def read(raw: Mapping[str, Any], name: str) -> T5Config:
    fields = Fields(raw, name)
    heads, encoder_layers = fields.size("num_heads", 8), fields.layers("num_layers")
    tied = fields.take("tie_word_embeddings", bool, True)
    config = T5Config(
        name=name,
        family="t5",
        architecture=raw["architectures"][0],
        format=fields.format(),
        vocab=fields.size("vocab_size"),
        width=fields.size("d_model"),
        layers=fields.layers("num_decoder_layers", encoder_layers),
        heads=heads,
        kv_heads=heads,
        head_dim=fields.size("d_kv", 64),
        intermediate=fields.size("d_ff"),
        window=WINDOW,
        tied=tied,
        encoder_layers=encoder_layers,
        eps=fields.take("layer_norm_epsilon", float, 1e-6),
        activation=fields.choice("feed_forward_proj", ACTIVATIONS, "relu"),
        buckets=fields.size("relative_attention_num_buckets", 32),
        max_distance=fields.size("relative_attention_max_distance", 128),
        # T5 1.1 neither ties nor scales, and older files say the one to mean both.
        scaled=fields.take("scale_decoder_outputs", bool, tied),
        start=fields.take("decoder_start_token_id", int, fields.take("pad_token_id", int, 0)),
    )
    if config.buckets < 4 or config.max_distance <= config.buckets // 2:
        raise InputError(
            f"{name}: relative_attention_num_buckets={config.buckets} must be at least 4, and "
            f"relative_attention_max_distance={config.max_distance} more than half of it"
        )
    fields.finish(
        harmless=("dropout_rate", "initializer_factor", "n_positions", "dense_act_fn", "is_gated_act"),
        defaults={"is_encoder_decoder": True},
    )
    return config
