"""The parameters that one token uses."""

import pytest

from ridgeline.models import builtin_names, declare, load_config
from tests.ops.small_models import small

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3")


@pytest.mark.parametrize("name", builtin_names())
def test_a_model_without_experts_uses_all_of_its_parameters(name):
    model = declare(load_config(name))
    if model.config.family in MIXTURES:
        assert model.active_parameters() < 0.3 * model.parameter_count()
    else:
        assert model.active_parameters() == model.parameter_count()


def test_a_mixture_leaves_out_the_experts_that_a_token_does_not_take():
    model = small("mixtral-8x7b", layers=3)
    c = model.config
    left_out = 3 * (c.experts - c.chosen) * 3 * c.width * c.expert_intermediate
    assert model.active_parameters() == model.parameter_count() - left_out


def test_padding_of_packed_weights_is_no_parameter():
    from ridgeline.models.products import pad_products

    padded = small("mixtral-8x7b")
    pad_products(padded)
    assert padded.active_parameters() == small("mixtral-8x7b").active_parameters()
