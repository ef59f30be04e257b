"""BERT, the encoder: bidirectional, post-norm, learned positions and token types.

``BertForMaskedLM`` ends in vocabulary logits, ``BertModel`` in hidden states and a pooled first
token.
"""

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

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}
ARCHITECTURES = ("BertForMaskedLM", "BertModel")


@dataclass(frozen=True)
class BertConfig(ModelConfig):
    eps: float
    activation: str
    segment_types: int

    @property
    def is_decoder(self) -> bool:
        return False


@dataclass(frozen=True)
class Layer(Layered):
    qkv: Weight
    qkv_bias: Weight
    heads: Heads
    out: Weight
    out_bias: Weight
    attention_norm: Norm
    up: Weight
    up_bias: Weight
    down: Weight
    down_bias: Weight
    output_norm: Norm


@dataclass(frozen=True)
class Encoder(Model):
    """The trunk that both architectures share."""

    config: BertConfig
    embedding: Weight
    positions: Weight
    segments: Weight
    embedding_norm: Norm
    layers: tuple[Layer, ...]

    def encode(self, ops: Ops, batch: Batch) -> T:
        x = ops.add(ops.embed(batch.ids, self.embedding), ops.embed(batch.segments, self.segments))
        x = ops.add(x, ops.embed(batch.positions, self.positions))
        x = ops.norm(x, self.embedding_norm)
        return ops.repeat(self.layers, lambda layer, x: encoder_layer(ops, self.config, layer, x, batch), x)


@dataclass(frozen=True)
class MaskedLM(Encoder):
    transform: Weight
    transform_bias: Weight
    transform_norm: Norm
    head: Weight
    head_bias: Weight

    def forward(self, ops: Ops, batch: Batch) -> T:
        x = ops.take_rows(self.encode(ops, batch), batch.logit_rows)
        x = ops.linear(x, self.transform, bias=self.transform_bias, activation=self.config.activation)
        return ops.linear(ops.norm(x, self.transform_norm), self.head, bias=self.head_bias, name="head")


@dataclass(frozen=True)
class PooledEncoder(Encoder):
    pooler: Weight
    pooler_bias: Weight

    def forward(self, ops: Ops, batch: Batch) -> T:
        """Hidden states of the rows that are wanted.

        The pooler runs too, as in any pass of ``BertModel``, so that costs and times are of the whole
        model; :meth:`encode_and_pool` also returns its vectors.
        """
        hidden, _ = self.encode_and_pool(ops, batch)
        return ops.take_rows(hidden, batch.logit_rows)

    def encode_and_pool(self, ops: Ops, batch: Batch) -> tuple[T, T]:
        """Hidden states of all rows, [rows, width], and the pooled vector of each sequence from its first
        row: tanh(W h + b), [sequences, width]."""
        hidden = self.encode(ops, batch)
        first = ops.take_rows(hidden, batch.first_rows)
        return hidden, ops.linear(first, self.pooler, bias=self.pooler_bias, activation="tanh")


def encoder_layer(ops: Ops, config: BertConfig, layer: Layer, x: T, batch: Batch) -> T:
    q, k, v = ops.split_heads(ops.linear(x, layer.qkv, bias=layer.qkv_bias), layer.heads)
    attended = ops.attend(
        q, k, v, spans=batch.spans, mask=Mask(causal=False), score=Score(config.head_dim**-0.5)
    )
    x = ops.norm(ops.linear(attended, layer.out, bias=layer.out_bias, residual=x), layer.attention_norm)
    h = ops.linear(x, layer.up, bias=layer.up_bias, activation=config.activation)
    return ops.norm(ops.linear(h, layer.down, bias=layer.down_bias, residual=x), layer.output_norm)


def build(config: BertConfig, make: WeightMaker) -> Encoder:
    """The model's tree of weights, under the names of Hugging Face's checkpoints."""
    width = config.width
    prefix = "bert." if config.architecture == "BertForMaskedLM" else ""
    tables = f"{prefix}embeddings"
    embedding = make.table("embedding", Source(f"{tables}.word_embeddings.weight", (config.vocab, width)))
    trunk = {
        "config": config,
        "embedding": embedding,
        "positions": make.table(
            "positions", Source(f"{tables}.position_embeddings.weight", (config.window, width))
        ),
        "segments": make.table(
            "segments", Source(f"{tables}.token_type_embeddings.weight", (config.segment_types, width))
        ),
        "embedding_norm": layer_norm(make, "embedding_norm", f"{tables}.LayerNorm", width, config.eps),
        "layers": tuple(
            _build_layer(config, make, i, f"{prefix}encoder.layer.{i}") for i in range(config.layers)
        ),
    }
    if config.architecture == "BertModel":
        pooler, pooler_bias = _linear(make, "pooler", f"{prefix}pooler.dense", width, width)
        return PooledEncoder(**trunk, pooler=pooler, pooler_bias=pooler_bias)
    transform, transform_bias = _linear(make, "transform", "cls.predictions.transform.dense", width, width)
    head, bias = embedding, "cls.predictions.bias"
    if not config.tied:
        head = make.table("head", Source("cls.predictions.decoder.weight", (config.vocab, width)))
        bias = "cls.predictions.decoder.bias"  # tied to the other together with the matrix, or not at all
    return MaskedLM(
        **trunk,
        transform=transform,
        transform_bias=transform_bias,
        transform_norm=layer_norm(
            make, "transform_norm", "cls.predictions.transform.LayerNorm", width, config.eps
        ),
        head=head,
        head_bias=make.vector("head_bias", Source(bias, (config.vocab,)), fill=0.0),
    )


def _linear(make: WeightMaker, name: str, source: str, rows: int, columns: int) -> tuple[Weight, Weight]:
    return (
        make.matrix(name, Source(f"{source}.weight", (rows, columns))),
        make.vector(f"{name}_bias", Source(f"{source}.bias", (rows,)), fill=0.0),
    )


def _build_layer(config: BertConfig, make: WeightMaker, index: int, prefix: str) -> Layer:
    width = config.width
    own = tuple(f"{prefix}.attention.self.{p}" for p in ("query", "key", "value"))
    out, out_bias = _linear(make, "attention.out", f"{prefix}.attention.output.dense", width, width)
    up, up_bias = _linear(make, "mlp.up", f"{prefix}.intermediate.dense", config.intermediate, width)
    down, down_bias = _linear(make, "mlp.down", f"{prefix}.output.dense", width, config.intermediate)
    return Layer(
        index=index,
        qkv=make.matrix("attention.qkv", *(Source(f"{m}.weight", (width, width)) for m in own)),
        qkv_bias=make.vector("attention.qkv_bias", *(Source(f"{m}.bias", (width,)) for m in own), fill=0.0),
        heads=Heads(config.heads, config.kv_heads, config.head_dim),
        out=out,
        out_bias=out_bias,
        attention_norm=layer_norm(
            make, "attention_norm", f"{prefix}.attention.output.LayerNorm", width, config.eps
        ),
        up=up,
        up_bias=up_bias,
        down=down,
        down_bias=down_bias,
        output_norm=layer_norm(make, "output_norm", f"{prefix}.output.LayerNorm", width, config.eps),
    )


def read(raw: Mapping[str, Any], name: str) -> BertConfig:
    fields = Fields(raw, name)
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    config = BertConfig(
        name=name,
        family="bert",
        architecture=raw["architectures"][0],
        format=fields.format(),
        vocab=fields.size("vocab_size"),
        width=width,
        layers=fields.layers("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=fields.head_dim("hidden_size", "num_attention_heads"),
        intermediate=fields.size("intermediate_size"),
        window=fields.size("max_position_embeddings", 512),
        eps=fields.take("layer_norm_eps", float, 1e-12),
        activation=fields.choice("hidden_act", ACTIVATIONS, "gelu"),
        tied=fields.take("tie_word_embeddings", bool, True),
        segment_types=fields.size("type_vocab_size", 2),
    )
    fields.finish(
        harmless=("attention_probs_dropout_prob", "hidden_dropout_prob"),
        defaults={"position_embedding_type": "absolute"},
    )
    return config
