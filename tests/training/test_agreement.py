"""How many tokens of a draft's proposal its target accepts."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ridgeline.loading import load
from training.agreement import agreement, leading_equal, prefixes

DOCUMENTS = [list(range(40)), list(range(20, 60))]


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_tokens_count_up_to_the_first_that_differs(proposed, wanted):
    count = leading_equal(proposed, wanted)
    assert proposed[:count] == wanted[:count]
    assert proposed[count : count + 1] != wanted[count : count + 1] or count == len(proposed) == len(wanted)


@given(st.integers(1, 100), st.integers(1, 30))
def test_every_prefix_is_a_stretch_of_a_document(places, context):
    found = prefixes(DOCUMENTS, places, context)
    assert len(found) == min(places, 39 + 39)
    for prefix in found:
        assert 1 <= len(prefix) <= context
        assert any(prefix == d[i : i + len(prefix)] for d in DOCUMENTS for i in range(len(d)))


def test_places_are_distinct_and_the_same_every_time():
    found = prefixes(DOCUMENTS, 78, 100)
    assert len({tuple(prefix) for prefix in found}) == 78
    assert prefixes(DOCUMENTS, 78, 100) == found


def test_a_model_accepts_all_that_it_proposes_itself(tiny_folder):
    model = load(tiny_folder)
    found = agreement(model, model, DOCUMENTS, places=10, proposal=4, context=16)
    assert (found.places, found.proposal, found.accepted) == (10, 4, 4.0)


def test_accepted_tokens_are_those_of_the_targets_own_continuation(tiny_folder, other_folder):
    target, draft = load(tiny_folder), load(other_folder)
    found = agreement(target, draft, DOCUMENTS, places=10, proposal=3, context=16)
    total = 0
    for prefix in prefixes(DOCUMENTS, 10, 16):
        proposed, wanted = (m.generator().generate([prefix], max_tokens=3)[0].ids for m in (draft, target))
        total += leading_equal(proposed, wanted)
    assert found.accepted == pytest.approx(total / 10)
    assert 0 < found.accepted < 3


@pytest.fixture
def other_folder(tiny_folder, tmp_path_factory) -> Path:
    """The tiny model with other noise added to its embedding."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("other")
    shutil.copyfile(tiny_folder / "config.json", folder / "config.json")
    tensors = load_file(tiny_folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] += 0.005 * torch.randn(64, 32).bfloat16()
    save_file(tensors, folder / "model.safetensors")
    return folder
