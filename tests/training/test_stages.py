"""The stages of the demo pair: in an order that works, and each a model that can be built."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from ridgeline.errors import InputError
from ridgeline.models.registry import load_config
from training import train as training
from training.data import TokenisedCorpus
from training.grow import origins
from training.run import Recipe
from training.stages import STAGES, Stage, last_stages, stage_named
from training.tokenizer import DRAFT_FOLDER, MODEL_FOLDER


def test_a_stage_builds_on_earlier_ones_only():
    for i, stage in enumerate(STAGES):
        earlier = {before.name for before in STAGES[:i]}
        assert {stage.begins_from, stage.teacher} - {None} <= earlier


def test_a_stage_goes_on_from_the_same_model_or_a_shallower_one():
    for stage in STAGES:
        if stage.begins_from is not None:
            begun = stage_named(stage.begins_from)
            assert begun.model == stage.model
            assert len(origins(begun.layers, stage.layers)) == stage.layers


def test_the_last_stage_of_each_model_ships():
    assert {stage.model: stage.layers for stage in last_stages()} == {
        folder: load_config(folder).layers for folder in (MODEL_FOLDER, DRAFT_FOLDER)
    }


def test_an_unknown_stage_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match="choose shallow-target, target, early-draft, draft"):
        stage_named("drafts")


@pytest.fixture
def few_tokens(monkeypatch):
    """A corpus of a few thousand tokens in the place of the standard library."""
    tokens = np.tile(np.arange(4, 60, dtype=np.uint16), 100)
    monkeypatch.setattr(training, "collect", lambda packages=(): None)
    monkeypatch.setattr(training, "tokenise", lambda *_: TokenisedCorpus(tokens, (), 0))


def small(name: str, layers: int, **options) -> Stage:
    recipe = Recipe(tokens=2 * 64, step_tokens=64, short_length=32, long_from=1.0)
    return Stage(name, DRAFT_FOLDER, layers, recipe, **options)


def test_a_grown_and_a_distilled_stage_follow_a_plain_one(few_tokens, tmp_path):
    first = training.train(small("first", 1), tmp_path)
    grown = training.train(small("grown", 2, begins_from="first"), tmp_path)
    training.train(small("student", 1, teacher="grown", truth=0.1), tmp_path)
    assert first.steps == grown.steps == 2
    assert grown.parameters > first.parameters
    assert load_config(tmp_path / "grown").layers == 2
    assert Tokenizer.from_file(str(tmp_path / "student" / "tokenizer.json")).get_vocab_size() == 4096


def test_a_finished_stage_is_not_trained_again(few_tokens, tmp_path):
    first = training.train(small("first", 1), tmp_path)
    weights = (tmp_path / "first" / "model.safetensors").read_bytes()
    assert training.train(small("first", 1), tmp_path) == first
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == weights


def test_a_stage_whose_teacher_was_not_trained_is_refused(few_tokens, tmp_path):
    with pytest.raises(InputError, match="run stage nobody first"):
        training.train(small("student", 1, teacher="nobody"), tmp_path)
