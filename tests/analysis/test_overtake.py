"""Where attention overtakes the MLP: the document's length, and PyTorch-free brute force."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.analysis.overtake import attention_overtakes, matrix_flops
from ridgeline.models import declare, load_config
from ridgeline.ops.count_pairs import Pairs
from ridgeline.validation.passes import plain_decoder


def layer(width, heads=4, intermediate=None):
    return plain_decoder(
        "one layer", width=width, intermediate=intermediate or 4 * width, heads=heads, layers=1, vocab=7
    )


def test_attention_of_width_1536_overtakes_the_mlp_at_3072_tokens():
    assert attention_overtakes(layer(1536, 12), pairs=Pairs.SQUARE).length == 2 * 1536


@settings(max_examples=15)
@given(st.integers(1, 40).map(lambda n: 4 * n))
def test_attention_overtakes_at_twice_the_width_or_at_four_times_where_half_the_pairs_are_hidden(width):
    assert attention_overtakes(layer(width), pairs=Pairs.SQUARE).length == 2 * width
    assert attention_overtakes(layer(width)).length == 4 * width - 1  # s (s + 1) / 2 pairs, not s^2 / 2


@pytest.mark.parametrize("name", ["llama-3-8b", "qwen3-0.6b", "bert-base"])
def test_the_length_is_the_first_of_all_at_which_attention_takes_as_much(name):
    model = declare(load_config(name))
    found = attention_overtakes(model)
    before, at = (matrix_flops(model, found.length - n, Pairs.VISIBLE) for n in (1, 0))
    assert before[0] < before[1]
    assert at[0] >= at[1]


def test_the_samples_cross_where_the_solution_is():
    found = attention_overtakes(layer(64), pairs=Pairs.SQUARE)
    over = [n for n, a, m in zip(found.lengths, found.attention, found.mlp, strict=True) if a >= m]
    assert min(over) == found.length


def test_a_model_without_an_mlp_to_speak_of_is_overtaken_at_once():
    assert attention_overtakes(layer(64, intermediate=1)).length == 1


def test_a_window_keeps_attention_below_for_ever():
    assert attention_overtakes(declare(load_config("mistral-7b"))).length is None


def test_neither_the_head_nor_the_pooler_counts():
    model = declare(load_config("bert-base"))
    width, layers = 768, 12
    assert matrix_flops(model, 10, Pairs.SQUARE) == (
        layers * (8 * 10 * width**2 + 4 * 100 * width),
        layers * 16 * 10 * width**2,
    )
