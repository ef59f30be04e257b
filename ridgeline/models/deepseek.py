"""DeepSeek-V2 and V3: multi-head latent attention, ordinary MLPs first, then mixtures with shared experts.

What is left out of V3 are its layers for predicting tokens further ahead: they are no part of the main model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ridgeline.errors import InputError
from ridgeline.models.fields import Fields
from ridgeline.models.llama import ACTIVATIONS
from ridgeline.models.mixtral import Names, make_experts, mixture_fields
from ridgeline.models.model import Model, ModelConfig, Source, WeightMaker
from ridgeline.models.rotary import read_rope
from ridgeline.ops.batch import BLOCK_TOKENS, Batch, CacheSpec, T
from ridgeline.ops.latent import Latent
from ridgeline.ops.layers import Layered
from ridgeline.ops.mixture import Experts, Router
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Mask, Norm, Rope, Score, Weight

NAMES = Names("mlp", "gate_proj", "up_proj", "down_proj")
#: The norms of the two latents have this eps whatever the config says.
LATENT_EPS = 1e-6


@dataclass(frozen=True)
class DeepseekConfig(ModelConfig):
    """``q_rank`` is the rank of the queries' latent, None where there is none; ``rank``, ``content``,
    ``rotated`` and ``value`` are the sizes of :class:`~ridgeline.ops.latent.Latent`. The first ``dense``
    layers have no experts. ``shared`` experts take every token. ``scale`` multiplies scores. ``quantised`` is
    what the matrices are published as, None for ``format``. ``spare_layers`` more in the checkpoint, which
    predict further ahead, are no part of the model."""

    rope: Rope
    eps: float
    activation: str
    bias: bool
    scale: float
    q_rank: int | None
    rank: int
    content: int
    rotated: int
    value: int
    dense: int
    experts: int
    chosen: int
    expert_intermediate: int
    shared: int
    scoring: Literal["softmax", "sigmoid"]
    corrected: bool
    normalised: bool
    routed_scale: float
    groups: int
    open_groups: int
    group_score: Literal["max", "top2"]
    quantised: str | None
    spare_layers: int = 0

    @property
    def stored_format(self) -> str:
        return self.quantised or self.format


@dataclass(frozen=True)
class Mlp:
    """A gated MLP."""

    gate_up: Weight
    down: Weight


@dataclass(frozen=True)
class Mixture:
    """Experts of which each token takes some, and a ``shared`` MLP that it takes always."""

    router: Router
    experts: Experts
    shared: Mlp


@dataclass(frozen=True)
class Queries:
    """Queries made in two steps: ``down`` to a latent, and ``up`` after its ``norm``."""

    down: Weight
    bias: Weight | None
    norm: Norm
    up: Weight


@dataclass(frozen=True)
class Layer(Layered):
    input_norm: Norm
    queries: Queries | Weight
    kv: Weight
    kv_bias: Weight | None
    latent: Latent
    out: Weight
    out_bias: Weight | None
    post_norm: Norm
    mlp: Mlp | Mixture


@dataclass(frozen=True)
class Deepseek(Model):
    config: DeepseekConfig
    embedding: Weight
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Weight

    def forward(self, ops: Ops, batch: Batch) -> T:
        x = ops.embed(batch.ids, self.embedding)
        x = ops.repeat(self.layers, lambda layer, x: decoder_layer(ops, self.config, layer, x, batch), x)
        x = ops.take_rows(x, batch.logit_rows)
        return ops.linear(ops.norm(x, self.final_norm), self.head, name="head")

    def cache_spec(self, format: str, block_size: int = BLOCK_TOKENS) -> CacheSpec:
        c = self.config
        return CacheSpec(c.layers, 1, c.rank + c.rotated, format, block_size, value_dim=0)


def decoder_layer(ops: Ops, config: DeepseekConfig, layer: Layer, x: T, batch: Batch) -> T:
    h = ops.norm(x, layer.input_norm)
    attended = ops.attend_latent(
        _queries(ops, layer.queries, h),
        ops.linear(h, layer.kv, bias=layer.kv_bias),
        layer.latent,
        spans=batch.spans,
        mask=Mask(causal=True),
        score=Score(config.scale),
        rope=config.rope,
        cache=batch.layer_cache(layer.index),
    )
    x = ops.linear(attended, layer.out, bias=layer.out_bias, residual=x)
    h, mlp = ops.norm(x, layer.post_norm), layer.mlp
    if isinstance(mlp, Mixture):
        routes = ops.route(h, mlp.router)
        x, mlp = ops.experts(h, routes, mlp.experts, residual=x), mlp.shared
    return ops.linear(ops.linear(h, mlp.gate_up, activation=config.activation), mlp.down, residual=x)


def _queries(ops: Ops, queries: Queries | Weight, h: T) -> T:
    if isinstance(queries, Weight):
        return ops.linear(h, queries)
    return ops.linear(ops.norm(ops.linear(h, queries.down, bias=queries.bias), queries.norm), queries.up)


def build(config: DeepseekConfig, make: WeightMaker) -> Deepseek:
    """The model's tree of weights, under the names of Hugging Face's checkpoints."""
    embedding = make.table("embedding", Source("model.embed_tokens.weight", (config.vocab, config.width)))
    layers = tuple(_Maker(config, make, i).layer() for i in range(config.layers))
    final = make.vector("final_norm", Source("model.norm.weight", (config.width,)), fill=1.0)
    head = embedding
    if not config.tied:
        head = make.table("head", Source("lm_head.weight", (config.vocab, config.width)))
    return Deepseek(config, embedding, layers, Norm("rms", final, config.eps), head)


@dataclass(frozen=True)
class _Maker:
    """Makes the weights of layer ``index``."""

    config: DeepseekConfig
    make: WeightMaker
    index: int

    @property
    def prefix(self) -> str:
        return f"model.layers.{self.index}"

    def layer(self) -> Layer:
        c, attention = self.config, "self_attn"
        value = c.heads * c.value
        return Layer(
            index=self.index,
            input_norm=self.norm("input_norm", "input_layernorm", c.width, c.eps),
            queries=self.queries(),
            kv=self.matrix("attention.kv", f"{attention}.kv_a_proj_with_mqa", c.rank + c.rotated, c.width),
            kv_bias=self.bias("attention.kv_bias", f"{attention}.kv_a_proj_with_mqa", c.rank + c.rotated),
            latent=Latent(
                c.heads,
                c.rank,
                c.content,
                c.rotated,
                c.value,
                self.norm("attention.kv_norm", f"{attention}.kv_a_layernorm", c.rank, LATENT_EPS),
                self.matrix(
                    "attention.kv_up", f"{attention}.kv_b_proj", c.heads * (c.content + c.value), c.rank
                ),
            ),
            out=self.matrix("attention.out", f"{attention}.o_proj", c.width, value),
            out_bias=self.bias("attention.out_bias", f"{attention}.o_proj", c.width),
            post_norm=self.norm("post_norm", "post_attention_layernorm", c.width, c.eps),
            mlp=self.mlp("mlp", "mlp", c.intermediate) if self.index < c.dense else self.mixture(),
        )

    def queries(self) -> Queries | Weight:
        c = self.config
        size = c.heads * (c.content + c.rotated)
        if c.q_rank is None:
            return self.matrix("attention.q", "self_attn.q_proj", size, c.width)
        return Queries(
            self.matrix("attention.q_down", "self_attn.q_a_proj", c.q_rank, c.width),
            self.bias("attention.q_bias", "self_attn.q_a_proj", c.q_rank),
            self.norm("attention.q_norm", "self_attn.q_a_layernorm", c.q_rank, LATENT_EPS),
            self.matrix("attention.q_up", "self_attn.q_b_proj", size, c.q_rank),
        )

    def mixture(self) -> Mixture:
        c, bias = self.config, None
        weight = self.matrix("mlp.router", "mlp.gate", c.experts, c.width)
        if c.corrected:
            source = Source(f"{self.prefix}.mlp.gate.e_score_correction_bias", (c.experts,))
            bias = self.make.vector("mlp.router_bias", source, fill=0.0)
            bias.trained = False  # moved by the load of the experts, not by a gradient
        router = Router(
            weight,
            c.chosen,
            c.scoring,
            c.normalised,
            c.routed_scale,
            bias,
            c.groups,
            c.open_groups,
            c.group_score,
        )
        sizes = (c.experts, c.expert_intermediate, c.width)
        experts = make_experts(self.make, self.prefix, NAMES, *sizes, c.activation)
        shared = self.mlp("mlp.shared", "mlp.shared_experts", c.shared * c.expert_intermediate)
        return Mixture(router, experts, shared)

    def mlp(self, name: str, module: str, intermediate: int) -> Mlp:
        width = self.config.width
        gates = (f"{self.prefix}.{module}.{p}.weight" for p in ("gate_proj", "up_proj"))
        gate_up = self.make.matrix(f"{name}.gate_up", *(Source(n, (intermediate, width)) for n in gates))
        return Mlp(gate_up, self.matrix(f"{name}.down", f"{module}.down_proj", width, intermediate))

    def matrix(self, name: str, module: str, rows: int, columns: int) -> Weight:
        return self.make.matrix(name, Source(f"{self.prefix}.{module}.weight", (rows, columns)))

    def bias(self, name: str, module: str, rows: int) -> Weight | None:
        if not self.config.bias:
            return None
        return self.make.vector(name, Source(f"{self.prefix}.{module}.bias", (rows,)), fill=0.0)

    def norm(self, name: str, module: str, width: int, eps: float) -> Norm:
        source = Source(f"{self.prefix}.{module}.weight", (width,))
        return Norm("rms", self.make.vector(name, source, fill=1.0), eps)


# -- reading the config of each family ------------------------------------------------------------

#: Training's and serving's alone; layers that predict further ahead are left out.
HARMLESS = (
    *("attention_dropout", "aux_loss_alpha", "ep_size", "num_nextn_predict_layers", "num_mtp_layers"),
    *("output_router_logits", "router_aux_loss_coef", "seq_aux"),
)
#: What transformers takes for a field that the config leaves out; null has a meaning of its own.
V3_ABSENT = {
    "first_k_dense_replace": 3,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "routed_scaling_factor": 2.5,
    "topk_group": 4,
}
V2_ABSENT = {
    "max_position_embeddings": 2048,
    "moe_intermediate_size": 1407,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "q_lora_rank": 1536,
    "routed_scaling_factor": 1.0,
}


def read_v3(raw: Mapping[str, Any], name: str) -> DeepseekConfig:
    fields = Fields({**V3_ABSENT, **raw}, name)
    routing = {
        "scoring": "sigmoid",
        "corrected": True,
        "normalised": fields.take("norm_topk_prob", bool, True),
        "group_score": "top2",
        **_groups(fields, fields.size("n_group", 1), fields.size("topk_group", 1)),
    }
    interleaved = fields.take("rope_interleave", bool, True)
    only = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    return _read(fields, routing, interleaved, only)


def read_v2(raw: Mapping[str, Any], name: str) -> DeepseekConfig:
    fields = Fields({**V2_ABSENT, **raw}, name)
    limited = fields.choice("topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    groups, open_groups = fields.size("n_group", 1), fields.size("topk_group", 1)
    routing = {
        "scoring": "softmax",
        "corrected": False,
        "normalised": False,
        "group_score": "max",
        **(_groups(fields, groups, open_groups) if limited else {"groups": 1, "open_groups": 1}),
    }
    only = {"scoring_func": "softmax", "norm_topk_prob": False, "mlp_bias": False}
    return _read(fields, routing, True, only)


def _groups(fields: Fields, groups: int, open_groups: int) -> dict[str, int]:
    if open_groups > groups:
        raise InputError(f"{fields.where}: topk_group={open_groups} is more than n_group={groups}")
    return {"groups": groups, "open_groups": open_groups}


def _read(
    fields: Fields,
    routing: dict[str, Any],
    interleaved: bool,
    only: dict[str, Any],
) -> DeepseekConfig:
    heads, window = fields.size("num_attention_heads"), fields.size("max_position_embeddings")
    content, rotated = fields.size("qk_nope_head_dim", 128), fields.size("qk_rope_head_dim", 64)
    experts = fields.size("n_routed_experts")
    mixture = mixture_fields(fields, experts, fields.size("num_experts_per_tok"))
    _check_groups(fields, routing, **mixture)
    rope = read_rope(fields, rotated, window)
    config = DeepseekConfig(
        name=fields.where,
        family=fields.raw["model_type"],
        architecture=fields.raw["architectures"][0],
        format=fields.format(),
        vocab=fields.size("vocab_size"),
        width=fields.size("hidden_size"),
        layers=fields.layers("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=content + rotated,
        intermediate=fields.size("intermediate_size"),
        window=window,
        tied=fields.take("tie_word_embeddings", bool, False),
        rope=Rope(rope.dim, rope.theta, rope.scaling, interleaved),
        eps=fields.take("rms_norm_eps", float, 1e-6),
        activation=fields.choice("hidden_act", ACTIVATIONS, "silu"),
        bias=fields.take("attention_bias", bool, False),
        scale=_scale(fields, content + rotated),
        q_rank=fields.size("q_lora_rank", None),
        rank=fields.size("kv_lora_rank", 512),
        content=content,
        rotated=rotated,
        value=fields.size("v_head_dim", 128),
        dense=fields.take("first_k_dense_replace", int, 0),
        expert_intermediate=fields.size("moe_intermediate_size"),
        shared=fields.size("n_shared_experts"),
        routed_scale=fields.take("routed_scaling_factor", float),
        quantised=_quantised(fields),
        spare_layers=fields.take("num_nextn_predict_layers", int, 0),
        **mixture,
        **routing,
    )
    # What transformers derives and writes, and what the pass takes for granted.
    derived = {"num_key_value_heads": heads, "qk_head_dim": content + rotated, "head_dim": rotated}
    defaults = {**only, **derived, "moe_layer_freq": 1, "pretraining_tp": 1, "partial_rotary_factor": 1.0}
    fields.finish(harmless=HARMLESS, defaults=defaults)
    return config


def _quantised(fields: Fields) -> str | None:
    """The storage format that ``quantization_config`` names: blocks of fp8, or none."""
    raw = fields.take("quantization_config", dict, None)
    if raw is None:
        return None
    inner = Fields(raw, f"{fields.where}: quantization_config")
    block = inner.take("weight_block_size", list, None)
    if inner.take("quant_method", str) != "fp8" or block != [128, 128]:
        raise InputError(f"{inner.where}: only fp8 with a weight_block_size of [128, 128] is supported")
    # How activations are quantised does not change what is stored.
    inner.finish(harmless=("activation_scheme", "modules_to_not_convert"), defaults={"fmt": "e4m3"})
    return "fp8-128x128"


def _check_groups(fields: Fields, routing: dict[str, Any], experts: int, chosen: int) -> None:
    groups, open_groups = routing["groups"], routing["open_groups"]
    if experts % groups or (routing["group_score"] == "top2" and groups > 1 and experts < 2 * groups):
        raise InputError(f"{fields.where}: {experts} experts do not make {groups} groups")
    if chosen > experts // groups * open_groups:
        raise InputError(
            f"{fields.where}: a token takes {chosen} experts, and {open_groups} of {groups} groups have fewer"
        )


def _scale(fields: Fields, head: int) -> float:
    """1 / sqrt(head), times the square of 0.1 mscale_all_dim ln(factor) + 1 where positions are scaled."""
    rope = fields.raw.get("rope_parameters") or fields.raw.get("rope_scaling") or {}
    stretched = rope.get("rope_type", rope.get("type", "default")) != "default"
    share = rope.get("mscale_all_dim") or 0
    mscale = (
        0.1 * share * math.log(rope["factor"]) + 1.0 if stretched and share and rope["factor"] > 1 else 1.0
    )
    return head**-0.5 * mscale * mscale
