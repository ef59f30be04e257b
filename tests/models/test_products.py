"""Which weights are multiplied, and so packed and quantised, in every family."""

from dataclasses import dataclass

import pytest

from ridgeline.models import declare, load_config
from ridgeline.models.model import Model
from ridgeline.models.products import products, routers
from ridgeline.ops.formats import get_format
from ridgeline.ops.records import Weight
from tests.ops.small_models import FAMILIES, small

LOOKED_UP = {"embedding", "positions", "segments"}


def roles(model):
    return {weight.name: gated for weight, gated in products(model)}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_matrices_are_multiplied_but_those_that_are_only_looked_up(family):
    model = small(family)
    matrices = {weight.name for weight in model.weights() if len(weight.shape) >= 2}
    matrices -= {weight.name for weight in routers(model)}
    assert matrices - LOOKED_UP <= roles(model).keys() <= matrices


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layers_weights_are_met_once(family):
    model = small(family, layers=3)
    names = [weight.name for weight, _ in products(model)]
    both = {"mixtral-8x7b": ("attention.qkv", "mlp.experts.down"), "deepseek-v3": ("attention.kv_up", "head")}
    first, last = both.get(family, ("attention.qkv", "mlp.down"))
    assert names.count(first) == 3
    assert names.count(last) == (1 if last == "head" else 3)
    assert len({id(weight) for weight, _ in products(model)}) == len(names)


def test_the_weights_that_choose_experts_are_never_quantised():
    model = declare(load_config("mixtral-8x7b"), "int4-g128")
    assert {weight.format for weight in routers(model)} == {"bf16"}
    experts = model.layers[0].mixtures[0].experts
    assert experts.gate_up.format == experts.down.format == "int4-g128"


def test_an_experts_first_matrix_is_gated():
    gated = {name for name, gated in roles(small("mixtral-8x7b")).items() if gated}
    assert gated == {"mlp.experts.gate_up"}


def test_a_tied_embedding_is_multiplied_and_one_of_its_own_is_not():
    assert load_config("gpt2").tied
    assert not load_config("mistral-7b").tied
    assert "embedding" in roles(small("gpt2"))
    assert roles(small("mistral-7b")).keys() & {"embedding", "head"} == {"head"}


def test_only_a_gated_mlps_first_matrix_is_gated():
    assert {name for name, gated in roles(small("llama-3-8b")).items() if gated} == {"mlp.gate_up"}
    assert not any(roles(small("bert-base")).values())


@dataclass(frozen=True)
class Torn(Model):
    """A model that multiplies with one weight in two ways."""

    weight: Weight

    def forward(self, ops, batch):
        x = ops.linear(ops.input("x", (1, 8)), self.weight, activation="silu_gated")
        return ops.linear(x, self.weight)


def test_a_weight_with_a_gate_and_without_cannot_be_packed():
    config = load_config("bert-base")
    weight = Weight("torn", (8, 8), "bf16")
    with pytest.raises(ValueError, match="torn is multiplied with a gate and without"):
        products(Torn(config, weight))


@pytest.mark.parametrize("format", ["int8", "int4-g64-zp"])
@pytest.mark.parametrize("family", ["smollm2-135m", "llama-3-8b"])
def test_a_quantised_model_is_declared_as_it_is_packed(family, format):
    config = load_config(family)
    model = declare(config, format)
    multiplied = {id(weight) for weight, _ in products(model)}
    for weight in model.weights():
        assert weight.format == (format if id(weight) in multiplied else config.format)
    assert model.plain_format == config.format
    assert get_format(model.head.format).is_quantised
