"""Mixtral, Qwen2-MoE and Qwen3-MoE: Llama's block with a mixture of experts in the place of its MLP.

Qwen's may keep ordinary MLPs in some layers, as ``decoder_sparse_step`` and ``mlp_only_layers`` say.
Qwen2-MoE adds one large expert that every token takes, with a weight of its own: a mixture of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ridgeline.errors import InputError
from ridgeline.models.fields import Fields
from ridgeline.models.llama import (
    AttentionLayer,
    Layer,
    Llama,
    LlamaConfig,
    attention_block,
    attention_weights,
    build_layer,
    build_trunk,
    decoder_layer,
    left_of,
    read_variant_of,
    variant_fields,
)
from ridgeline.models.model import Source, WeightMaker
from ridgeline.ops.batch import Batch, T
from ridgeline.ops.mixture import Experts, Router
from ridgeline.ops.protocol import Ops


@dataclass(frozen=True)
class MixtureConfig(LlamaConfig):
    """``sparse`` says of each layer whether it has experts. ``intermediate`` is the width of ordinary MLPs,
    ``expert_intermediate`` that of an expert. ``normalised`` divides the weights of a token's experts by
    their sum. ``shared`` is the width of an expert that every token takes, 0 for none."""

    experts: int
    chosen: int
    expert_intermediate: int
    normalised: bool
    sparse: tuple[bool, ...]
    shared: int = 0


@dataclass(frozen=True)
class Mixture:
    router: Router
    experts: Experts


@dataclass(frozen=True)
class SparseLayer(AttentionLayer):
    """``mixtures`` are added to the same row one after another."""

    mixtures: tuple[Mixture, ...]


@dataclass(frozen=True)
class Mixtral(Llama):
    config: MixtureConfig
    layers: tuple[Layer | SparseLayer, ...]

    def body(self, ops: Ops, layer: Layer | SparseLayer, x: T, batch: Batch) -> T:
        if isinstance(layer, Layer):
            return decoder_layer(ops, self.config, layer, x, batch)
        x = attention_block(ops, self.config, layer, x, batch)
        h = ops.norm(x, layer.post_norm)
        for mixture in layer.mixtures:
            routes = ops.route(h, mixture.router)
            x = ops.experts(h, routes, mixture.experts, residual=x)
        return x


@dataclass(frozen=True)
class Names:
    """What a family's checkpoints call the mixture of a layer, and an expert's two gated matrices and the
    one back. ``fused`` is the name under which transformers stacks the experts."""

    module: str
    gate: str
    up: str
    down: str
    fused: str = "mlp.experts"


NAMES = {
    "mixtral": Names("block_sparse_moe", "w1", "w3", "w2"),
    "qwen2_moe": Names("mlp", "gate_proj", "up_proj", "down_proj"),
    "qwen3_moe": Names("mlp", "gate_proj", "up_proj", "down_proj"),
}


def build(config: MixtureConfig, make: WeightMaker) -> Mixtral:
    """The model's tree of weights, under the names of Hugging Face's checkpoints."""
    return build_trunk(config, make, Mixtral, _build_layer)


def _build_layer(config: MixtureConfig, make: WeightMaker, index: int) -> Layer | SparseLayer:
    if not config.sparse[index]:
        return build_layer(config, make, index)
    attention = attention_weights(config, make, index)
    names, prefix = NAMES[config.family], f"model.layers.{index}"
    gate = Source(f"{prefix}.{names.module}.gate.weight", (config.experts, config.width))
    router = Router(make.matrix("mlp.router", gate), config.chosen, normalised=config.normalised)
    experts = make_experts(
        make, prefix, names, config.experts, config.expert_intermediate, config.width, config.activation
    )
    mixtures = (Mixture(router, experts), *_shared(config, make, prefix))
    return SparseLayer(**attention, mixtures=mixtures)


def _shared(config: MixtureConfig, make: WeightMaker, prefix: str) -> tuple[Mixture, ...]:
    """The expert of every token, as a mixture of one; none where there is none."""
    if not config.shared:
        return ()
    width, inner = config.width, config.shared
    gate = make.matrix("mlp.shared_router", Source(f"{prefix}.mlp.shared_expert_gate.weight", (1, width)))
    module = f"{prefix}.mlp.shared_expert"

    def sources(shape: tuple[int, int], *names: str) -> tuple[Source, ...]:
        return tuple(Source(f"{module}.{name}.weight", shape) for name in names)

    experts = Experts(
        "mlp.shared",
        make.experts(
            "mlp.shared.gate_up",
            Source(f"{module}.gate_up_proj", (1, 2 * inner, width)),
            lambda _: sources((inner, width), "gate_proj", "up_proj"),
        ),
        make.experts(
            "mlp.shared.down",
            Source(f"{module}.stacked_down_proj", (1, width, inner)),
            lambda _: sources((width, inner), "down_proj"),
        ),
        config.activation,
    )
    return (Mixture(Router(gate, 1, "sigmoid", normalised=False), experts),)


def make_experts(
    make: WeightMaker, prefix: str, names: Names, number: int, intermediate: int, width: int, activation: str
) -> Experts:
    """The experts of the layer ``prefix``, each tensor of its own or all stacked in the checkpoint."""

    def sources(expert: int, *modules: str, shape: tuple[int, int]) -> tuple[Source, ...]:
        return tuple(
            Source(f"{prefix}.{names.module}.experts.{expert}.{module}.weight", shape) for module in modules
        )

    return Experts(
        "mlp.experts",
        make.experts(
            "mlp.experts.gate_up",
            Source(f"{prefix}.{names.fused}.gate_up_proj", (number, 2 * intermediate, width)),
            lambda i: sources(i, names.gate, names.up, shape=(intermediate, width)),
        ),
        make.experts(
            "mlp.experts.down",
            Source(f"{prefix}.{names.fused}.down_proj", (number, width, intermediate)),
            lambda i: sources(i, names.down, shape=(width, intermediate)),
        ),
        activation,
    )


# -- reading the config of each family ------------------------------------------------------------

#: Training's alone: auxiliary losses and noise.
HARMLESS = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")
#: What transformers takes for a field that the config leaves out.
MIXTRAL_ABSENT = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
QWEN2_MOE_ABSENT = {"num_key_value_heads": 16, "max_position_embeddings": 32768}
QWEN3_MOE_ABSENT = {"num_key_value_heads": 4, "max_position_embeddings": 32768, "sliding_window": 4096}


def read_mixtral(raw: Mapping[str, Any], name: str) -> MixtureConfig:
    def variant(fields: Fields, layers: int) -> dict[str, Any]:
        windows = (left_of(fields.size("sliding_window", None)),) * layers
        experts = fields.size("num_local_experts", 8)
        return {
            **variant_fields(windows=windows),
            **mixture_fields(fields, experts, fields.size("num_experts_per_tok", 2)),
            "expert_intermediate": fields.size("intermediate_size"),
            "normalised": True,
            "sparse": (True,) * layers,
        }

    return read_variant_of(MixtureConfig, {**MIXTRAL_ABSENT, **raw}, name, variant, HARMLESS)


def read_qwen3_moe(raw: Mapping[str, Any], name: str) -> MixtureConfig:
    def variant(fields: Fields, layers: int) -> dict[str, Any]:
        bias = fields.take("attention_bias", bool, False)
        sliding = fields.take("use_sliding_window", bool, False)
        window = fields.size("sliding_window", None)
        windows = (left_of(window) if sliding else -1,) * layers
        stacked = fields.size("num_local_experts", None)  # as transformers 5 calls them
        experts = fields.size("num_experts", stacked or 128)
        return {
            **variant_fields(qkv_bias=bias, out_bias=bias, head_norms=True, windows=windows),
            **mixture_fields(fields, experts, fields.size("num_experts_per_tok", 8)),
            "expert_intermediate": fields.size("moe_intermediate_size", 768),
            "normalised": fields.take("norm_topk_prob", bool, False),
            "sparse": _sparse(fields, layers),
        }

    harmless = (*HARMLESS, "max_window_layers")  # all layers slide, or none
    return read_variant_of(MixtureConfig, {**QWEN3_MOE_ABSENT, **raw}, name, variant, harmless)


def read_qwen2_moe(raw: Mapping[str, Any], name: str) -> MixtureConfig:
    def variant(fields: Fields, layers: int) -> dict[str, Any]:
        fields.take("sliding_window", int, None)  # applies only with use_sliding_window, which is refused
        bias = fields.take("qkv_bias", bool, True)
        kinds = fields.take("layer_types", list, ["full_attention"] * layers)
        if kinds != ["full_attention"] * layers:
            raise InputError(f"{fields.where}: layer_types may only name full_attention, {layers} times")
        return {
            **variant_fields(qkv_bias=bias, windows=(-1,) * layers),
            **mixture_fields(fields, fields.size("num_experts", 60), fields.size("num_experts_per_tok", 4)),
            "expert_intermediate": fields.size("moe_intermediate_size", 1408),
            "shared": fields.size("shared_expert_intermediate_size", 5632),
            "normalised": fields.take("norm_topk_prob", bool, False),
            "sparse": _sparse(fields, layers),
        }

    harmless = (*HARMLESS, "max_window_layers")
    return read_variant_of(MixtureConfig, {**QWEN2_MOE_ABSENT, **raw}, name, variant, harmless)


def mixture_fields(fields: Fields, experts: int, chosen: int) -> dict[str, int]:
    if chosen > experts:
        raise InputError(f"{fields.where}: a token takes {chosen} experts of only {experts}")
    return {"experts": experts, "chosen": chosen}


def _sparse(fields: Fields, layers: int) -> tuple[bool, ...]:
    """Every ``decoder_sparse_step``-th layer has experts, but those in ``mlp_only_layers``."""
    step = fields.size("decoder_sparse_step", 1)
    dense = fields.take("mlp_only_layers", list, [])
    for index in dense:
        if type(index) is not int or not 0 <= index < layers:
            raise InputError(f"{fields.where}: mlp_only_layers names {index!r}, not one of {layers} layers")
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(layers))
