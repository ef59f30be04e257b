"""Penalties and biases change the right logits, and a choice depends on its own request alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline import kernels
from ridgeline.engine.request import Request
from ridgeline.engine.sampler import choose_tokens, logprobs_of, penalised
from ridgeline.engine.sampling import GREEDY, Sampling
from ridgeline.engine.sequence import Sequence

SAMPLES = 100_000
VOCAB = 20

#: A true hypothesis exceeds this statistic once in a thousand times; 19 degrees of freedom.
CHI_SQUARE_19 = 43.82

LOGITS = torch.linspace(-2.0, 2.0, VOCAB)


def sequence(prompt, sampling, output=()):
    """A sequence with an output so far."""
    found = Sequence(Request(prompt, 100, sampling))
    found.tokens += output
    return found


def chi_square(tokens, probabilities):
    """Pearson's statistic of the draws against what was expected."""
    expected = probabilities.double() * len(tokens)
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    return float(((counts - expected) ** 2 / expected).sum())


# -- penalties and biases --------------------------------------------------------------------------


def test_the_repetition_penalty_is_that_of_transformers():
    from transformers import generation

    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    prompts = [(1, 2, 2, 30), (4,), (7, 8)]
    requests = [sequence(p, Sampling(temperature=0, repetition_penalty=3.0)) for p in prompts]
    penalty = generation.RepetitionPenaltyLogitsProcessor(3.0)
    expected = [
        int(penalty(torch.tensor([p]), row[None]).argmax()) for p, row in zip(prompts, logits, strict=True)
    ]
    before = logits.clone()
    assert choose_tokens(logits, requests) == expected
    assert torch.equal(logits, before)
    top = int(logits[0].argmax())
    assert choose_tokens(logits[:1], [sequence((top,), requests[0].sampling)]) != [top]


def test_frequency_and_presence_penalties_are_those_of_openais_formula():
    """logit - count * frequency - (count > 0) * presence, over the output alone."""
    logits = torch.linspace(-1, 1, 10)
    sampling = Sampling(frequency_penalty=0.5, presence_penalty=-0.25)
    [found] = penalised(logits[None], [sequence((7, 7, 8), sampling, output=[2, 2, 2, 5])])
    expected = logits.clone()
    expected[2] -= 3 * 0.5 - 0.25
    expected[5] -= 0.5 - 0.25
    assert torch.equal(found, expected)


def test_penalties_without_an_output_change_nothing():
    logits = torch.linspace(-1, 1, 10)[None]
    sampling = Sampling(frequency_penalty=2.0, presence_penalty=2.0)
    assert torch.equal(penalised(logits, [sequence((1, 2), sampling)]), logits)


def test_a_bias_moves_its_own_token_of_its_own_row():
    logits = torch.zeros(2, 5)
    rows = [sequence((1,), Sampling(logit_bias={3: 100.0, 0: -100})), sequence((1,), Sampling())]
    found = penalised(logits, rows)
    assert found.tolist() == [[-100, 0, 0, 100, 0], [0, 0, 0, 0, 0]]
    assert choose_tokens(logits, rows)[0] == 3


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (
            Sampling(frequency_penalty=0.7),
            LOGITS - 0.7 * torch.bincount(torch.tensor([1, 1, 4]), minlength=VOCAB),
        ),
        (
            Sampling(presence_penalty=1.2),
            LOGITS - 1.2 * (torch.arange(VOCAB) == 1) - 1.2 * (torch.arange(VOCAB) == 4),
        ),
        (
            Sampling(logit_bias={0: 2.0, 19: -2.0}),
            LOGITS + 2.0 * (torch.arange(VOCAB) == 0) - 2.0 * (torch.arange(VOCAB) == 19),
        ),
    ],
)
def test_penalised_draws_follow_the_changed_softmax(sampling, expected):
    changed = penalised(LOGITS[None], [sequence((2,), sampling, output=[1, 1, 4])])
    tokens = kernels.sample(changed.expand(SAMPLES, VOCAB), 1.0, 11, range(SAMPLES))
    assert chi_square(tokens, expected.softmax(0)) < CHI_SQUARE_19
    assert chi_square(tokens, LOGITS.softmax(0)) > CHI_SQUARE_19  # negative control


def test_logprobs_are_those_of_the_models_own_distribution():
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0])
    found = logprobs_of(logits.bfloat16(), chosen=3, top=2)
    expected = logits.log_softmax(0).tolist()
    assert found.chosen == pytest.approx(expected[3])
    assert [token for token, _ in found.top] == [1, 2]
    assert [value for _, value in found.top] == pytest.approx([expected[1], expected[2]])
    assert logprobs_of(logits, chosen=0, top=0).top == ()


def test_greedy_takes_the_likeliest_token_whatever_the_seed():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(2))
    requests = [sequence((1,), Sampling(temperature=0, seed=seed)) for seed in (0, 99)]
    assert choose_tokens(logits, requests) == logits.argmax(-1).tolist()


def test_a_tiny_temperature_is_as_good_as_greedy():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(3)) * 100
    assert choose_tokens(logits, [sequence((1,), Sampling(1e-6))]) == logits.argmax(-1).tolist()


# -- independence ----------------------------------------------------------------------------------

samplings = st.sampled_from(
    [
        GREEDY,
        Sampling(),
        Sampling(0.8, top_k=10),
        Sampling(0.8, top_p=0.9),
        Sampling(1.2, min_p=0.02),
        Sampling(0.9, top_k=30, top_p=0.95, min_p=0.01, repetition_penalty=1.2),
        Sampling(0.0, frequency_penalty=0.3, presence_penalty=-1, logit_bias={7: 2.5}),
    ]
)
rows = st.tuples(samplings, st.integers(0, 3), st.integers(1, 40))


@settings(max_examples=60)
@given(st.lists(rows, min_size=1, max_size=12), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_choice_does_not_depend_on_the_other_rows(batch, dtype):
    requests = [
        sequence(tuple(range(length)), replace(sampling, seed=seed)) for sampling, seed, length in batch
    ]
    logits = torch.randn(len(batch), 500, generator=torch.Generator().manual_seed(len(batch))).to(dtype)
    alone = [choose_tokens(logits[i : i + 1], [r])[0] for i, r in enumerate(requests)]
    assert choose_tokens(logits, requests) == alone
    assert choose_tokens(logits.flip(0), requests[::-1]) == alone[::-1]
