"""Training the demo model: the schedule, a step, resuming, and the checkpoint that comes out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.analysis.evaluate import evaluate_tokens
from ridgeline.errors import InputError
from ridgeline.models.registry import build, load_config
from ridgeline.ops.reference import Reference
from ridgeline.weights.load import load_model
from training.parameters import Parameters
from training.tokenizer import MODEL_FOLDER
from training.train import Recipe, Run, losses

SMALL = Recipe(minutes=1, step_tokens=64, short_length=32)
TOKENS = np.tile(np.arange(40, dtype=np.uint16), 50)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@given(st.floats(0, 1))
def test_the_rate_is_a_share_of_the_top_rate(progress):
    assert 0 <= SMALL.rate(progress) <= 1


def test_the_rate_tops_after_the_warm_up_and_ends_at_zero():
    assert SMALL.rate(0) == 0
    assert SMALL.rate(SMALL.warmup) == 1
    assert SMALL.rate(1) == pytest.approx(0, abs=1e-12)
    assert SMALL.rate(1.2) == pytest.approx(0, abs=1e-12)  # the last step may end past the budget


def test_the_models_whole_window_is_trained():
    assert SMALL.length(0.0, 1024) == 32
    assert SMALL.length(0.99, 1024) == 1024


def test_an_untrained_model_is_as_good_as_a_guess():
    model = build(load_config(MODEL_FOLDER), Parameters(seed=0))
    tokens = torch.randint(0, 4096, (2, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = losses(model, Reference(), tokens)
    assert found.shape == (2, 32)
    assert found.mean().item() == pytest.approx(math.log(4096), rel=0.02)


def test_steps_lower_the_loss():
    run = Run(SMALL, TOKENS)
    run.seconds = 6.0  # past the warm-up
    first = run.step()
    for _ in range(5):
        last = run.step()
    assert last < 0.8 * first


def test_a_resumed_run_takes_the_steps_of_an_uninterrupted_one(tmp_path):
    run, resumed = Run(SMALL, TOKENS), Run(SMALL, TOKENS)
    run.seconds = 6.0
    run.step()
    run.save(tmp_path / "checkpoint.pt")
    resumed.load(tmp_path / "checkpoint.pt")
    assert (resumed.steps, resumed.seconds) == (run.steps, run.seconds)
    assert resumed.step() == run.step()
    run.seconds = resumed.seconds  # two clocks; the rate follows them
    assert resumed.step() == run.step()


def test_resuming_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="leave out --resume"):
        Run(SMALL, TOKENS).load(tmp_path / "checkpoint.pt")


def test_resuming_under_another_recipe_is_refused(tmp_path):
    Run(SMALL, TOKENS).save(tmp_path / "checkpoint.pt")
    other = Run(Recipe(minutes=2, step_tokens=64, short_length=32), TOKENS)
    with pytest.raises(InputError, match="give the same"):
        other.load(tmp_path / "checkpoint.pt")


def test_saved_weights_are_the_parameters_rounded(tmp_path):
    parameters = Parameters(seed=3)
    config = load_config(MODEL_FOLDER)
    model = build(config, parameters)
    parameters.save(tmp_path)
    loaded = load_model(config, tmp_path)
    for made, read in zip(model.weights(), loaded.weights(), strict=True):
        assert made.name == read.name
        assert torch.equal(made.data.bfloat16(), read.data)


def test_a_guess_takes_the_bits_of_the_vocabulary():
    model = build(load_config(MODEL_FOLDER), Parameters(seed=0))
    tokens = np.random.default_rng(0).integers(0, 4096, 101).astype(np.uint16)
    assert evaluate_tokens(model, Reference(), [tokens], 400).bits_per_byte == pytest.approx(
        12 * 100 / 400, rel=0.03
    )
