"""A training run: the schedule, a step, resuming, and the checkpoint that comes out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.analysis.evaluate import evaluate_tokens
from ridgeline.errors import InputError
from ridgeline.models.registry import build
from ridgeline.ops.reference import Reference
from ridgeline.weights.load import load_model
from training.parameters import Parameters
from training.run import Recipe, Run, follow, next_token, next_token_logits

SMALL = Recipe(tokens=64 * 20, step_tokens=64, short_length=32, warmup=0.1)
TOKENS = np.tile(np.arange(40, dtype=np.uint16), 50)


def run_of(config, recipe=SMALL):
    return Run(recipe, config, TOKENS, TOKENS, objective=next_token)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_rate_is_a_share_of_the_top_rate(progress, last):
    assert 0 <= replace(SMALL, last_rate=last).rate(progress) <= 1


@pytest.mark.parametrize("last", [0.0, 0.4])
def test_the_rate_tops_after_the_warm_up_and_ends_where_the_recipe_says(last):
    recipe = replace(SMALL, last_rate=last)
    assert recipe.rate(0) == 0
    assert recipe.rate(recipe.warmup) == 1
    assert recipe.rate(1) == pytest.approx(last, abs=1e-12)
    assert recipe.rate(1.2) == pytest.approx(last, abs=1e-12)  # the last step may end past the budget


def test_the_models_whole_window_is_trained():
    assert SMALL.length(0.0, 1024) == 32
    assert SMALL.length(0.99, 1024) == 1024


def test_an_untrained_model_is_as_good_as_a_guess(tiny):
    model = build(tiny, Parameters(seed=0))
    tokens = torch.randint(0, tiny.vocab, (2, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = next_token_logits(model, tokens)
    assert logits.shape == (2 * 32, tiny.vocab)
    assert next_token(logits, tokens).item() == pytest.approx(math.log(tiny.vocab), rel=0.02)


def test_steps_lower_the_loss(tiny):
    run = run_of(tiny)
    first = run.step()
    while run.progress < 1:
        last = run.step()
    assert last < 0.8 * first


def test_packages_are_read_until_the_recipe_says_otherwise(tiny):
    recipe = replace(SMALL, tokens=4 * 64, library_from=0.5)
    read = []

    def objective(logits, tokens):
        read.append(int(tokens.max()))
        return next_token(logits, tokens)

    run = Run(recipe, tiny, np.full(500, 1, np.uint16), np.full(500, 2, np.uint16), objective=objective)
    while run.progress < 1:
        run.step()
    assert read == [2, 2, 1, 1]


def test_a_run_goes_on_from_the_tensors_it_is_given(tiny):
    given_tensors = Parameters(seed=9)
    build(tiny, given_tensors)
    run = Run(SMALL, tiny, TOKENS, TOKENS, objective=next_token, start=given_tensors.tensors())
    for made, wanted in zip(run.parameters.all(), given_tensors.all(), strict=True):
        assert torch.equal(made, wanted)


def test_a_resumed_run_takes_the_steps_of_an_uninterrupted_one(tiny, tmp_path):
    run, resumed = run_of(tiny), run_of(tiny)
    run.step()
    run.save(tmp_path / "checkpoint.pt")
    resumed.load(tmp_path / "checkpoint.pt")
    assert (resumed.steps, resumed.seconds) == (run.steps, run.seconds)
    assert [resumed.step(), resumed.step()] == [run.step(), run.step()]


def test_resuming_under_another_recipe_is_refused(tiny, tmp_path):
    run_of(tiny).save(tmp_path / "checkpoint.pt")
    other = run_of(tiny, replace(SMALL, seed=7))
    with pytest.raises(InputError, match="delete it to start again"):
        other.load(tmp_path / "checkpoint.pt")


def test_a_run_ends_with_its_tokens_and_leaves_a_checkpoint(tiny, tmp_path):
    run = run_of(tiny)
    follow(run, tmp_path / "checkpoint.pt")
    assert run.tokens == SMALL.tokens
    done = run_of(tiny)
    done.load(tmp_path / "checkpoint.pt")
    assert done.progress == 1


def test_saved_weights_are_the_parameters_rounded(tiny, tmp_path):
    parameters = Parameters(seed=3)
    model = build(tiny, parameters)
    parameters.save(tmp_path)
    loaded = load_model(tiny, tmp_path)
    for made, read in zip(model.weights(), loaded.weights(), strict=True):
        assert made.name == read.name
        assert torch.equal(made.data.bfloat16(), read.data)


def test_a_guess_takes_the_bits_of_the_vocabulary(tiny):
    model = build(tiny, Parameters(seed=0))
    tokens = np.random.default_rng(0).integers(0, tiny.vocab, 101).astype(np.uint16)
    found = evaluate_tokens(model, Reference(), [tokens], 400)
    assert found.bits_per_byte == pytest.approx(math.log2(tiny.vocab) * 100 / 400, rel=0.03)
