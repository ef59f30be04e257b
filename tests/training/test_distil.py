"""Distillation: what the student is to predict, and that training brings it closer to its teacher."""

import numpy as np
import pytest
import torch

from ridgeline.models.registry import load_config
from training.distil import distillation_from
from training.run import Recipe, Run, next_token, next_token_logits

TOKENS = np.random.default_rng(0).integers(0, 64, 2000).astype(np.uint16)
RECIPE = Recipe(tokens=64 * 40, step_tokens=64, short_length=32, seed=8)


@pytest.fixture
def tokens():
    return torch.from_numpy(TOKENS[:66].astype(np.int64)).view(2, 33)


def divergence(run, teaching, tokens):
    """KL(teacher, student) in nats a token."""
    with torch.no_grad():
        wanted = next_token_logits(teaching.teacher, tokens).log_softmax(-1)
        found = next_token_logits(run.model, tokens).log_softmax(-1)
    return torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="batchmean").item()


def test_the_student_is_to_predict_probabilities(tiny_folder, tokens):
    expected = distillation_from(tiny_folder, truth=0.25).expected(tokens)
    assert expected.shape == (64, 64)
    torch.testing.assert_close(expected.sum(-1), torch.ones(64))
    assert (expected.gather(-1, tokens[:, 1:].reshape(-1, 1)) >= 0.25).all()


def test_the_truth_alone_is_plain_language_modelling(tiny_folder, tokens):
    logits = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    distilled = distillation_from(tiny_folder, truth=1.0)(logits, tokens)
    torch.testing.assert_close(distilled, next_token(logits, tokens))


def test_no_student_has_a_lower_loss_than_the_teacher(tiny_folder, tokens):
    teaching = distillation_from(tiny_folder, truth=0.0)
    own = next_token_logits(teaching.teacher, tokens)
    other = own + torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
    assert teaching(own, tokens) < teaching(other, tokens)


def test_training_brings_the_student_closer_to_its_teacher(tiny_folder, tokens):
    teaching = distillation_from(tiny_folder, truth=0.1)
    run = Run(RECIPE, load_config(tiny_folder), TOKENS, TOKENS, objective=teaching)
    before = divergence(run, teaching, tokens)
    while run.progress < 1:
        run.step()
    assert divergence(run, teaching, tokens) < 0.7 * before
