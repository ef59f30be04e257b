"""A deeper model that begins where a shallower one ended."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.models.registry import build, load_config
from ridgeline.weights.load import load_model
from training.grow import grown, origins
from training.parameters import Parameters
from training.run import next_token_logits


def deeper(config, layers):
    return replace(config, layers=layers, windows=(-1,) * layers)


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_the_deeper_model_computes_what_the_shallower_did(tiny_folder, layers):
    config = load_config(tiny_folder)
    shallow = load_model(config, tiny_folder, "fp32")
    parameters = Parameters(seed=1)
    deep = build(deeper(config, layers), parameters)
    parameters.load(grown(tiny_folder, layers))

    tokens = torch.randint(0, config.vocab, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = next_token_logits(shallow, tokens)
        found = next_token_logits(deep, tokens)
    assert torch.equal(found, expected)


def test_what_a_copy_adds_can_learn(tiny_folder):
    config = deeper(load_config(tiny_folder), 4)
    parameters = Parameters(seed=1)
    model = build(config, parameters)
    parameters.load(grown(tiny_folder, 4))
    tokens = torch.randint(0, config.vocab, (1, 17), generator=torch.Generator().manual_seed(0))
    next_token_logits(model, tokens).logsumexp(-1).sum().backward()
    for layer in model.layers:
        assert layer.out.data.grad.abs().sum() > 0
        assert layer.down.data.grad.abs().sum() > 0


@given(st.integers(1, 12), st.integers(0, 12))
def test_every_layer_is_there_once_or_twice_in_order(shallow, added):
    added = min(added, shallow)
    pairs = origins(shallow, shallow + added)
    assert len(pairs) == shallow + added
    assert [layer for layer, copy in pairs if not copy] == list(range(shallow))
    assert all(pairs[i - 1] == (layer, False) for i, (layer, copy) in enumerate(pairs) if copy)


@pytest.mark.parametrize("deep", [5, 13])
def test_a_model_neither_shrinks_nor_grows_more_than_twofold(deep):
    with pytest.raises(InputError, match=r"grows to 6\.\.12 layers"):
        origins(6, deep)
