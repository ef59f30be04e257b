"""Sampling: the tokens of the naive twin, drawn from the right distribution, row by row alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline import kernels
from ridgeline.engine.sampling import Sampling
from ridgeline.errors import InputError
from ridgeline.kernels import log_probabilities, sample
from tests.kernels.sample_twin import draw

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SAMPLES = 100_000
VOCAB = 20
LOGITS = torch.linspace(-2.0, 2.0, VOCAB)
#: A true hypothesis exceeds this statistic once in a thousand times; 19 degrees of freedom.
CHI_SQUARE_19 = 43.82


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 0, 1, 5, 40, 1500, 10**6]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.95, 1.0, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0]),
)


@few
@given(
    samplings,
    st.sampled_from([1, 2, 255, 256, 257, 3000]),
    st.sampled_from([0.3, 2, 8]),
    st.integers(0, 10**6),
)
def test_tokens_are_those_of_the_twin(isa, sampling, vocab, spread, seed):
    logits = normal(seed, 6, vocab) * spread
    seeds, positions = [seed + row % 2 for row in range(6)], list(range(10, 16))
    got = sample(
        logits,
        sampling.temperature,
        seeds,
        positions,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
    )
    assert torch.equal(got, draw(logits, sampling, seeds, positions))


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
@pytest.mark.parametrize("options", [{}, {"top_k": 50}, {"top_p": 0.95}, {"min_p": 0.05}])
def test_a_large_vocabulary_gives_the_same_tokens_too(isa, options, scale):
    logits = normal(1, 4, 50_257) * scale
    seeds, positions = [1, 2, 3, 4], [5, 6, 7, 2**40]
    got = sample(logits, 0.8, seeds, positions, **options)
    assert torch.equal(got, draw(logits, Sampling(0.8, **options), seeds, positions))


def test_every_instruction_set_and_any_threads_pick_the_same_tokens():
    """Sums of masses differ by nothing, so even a cut does not."""
    logits = normal(2, 32, 5000) * 4
    picks = []
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        for threads in (1, 2, 5):
            kernels.set_threads(threads)
            for options in ({}, {"top_p": 0.9}, {"top_k": 100, "top_p": 0.9}):
                picks.append(sample(logits, 1.0, 3, torch.arange(32), **options))
    kernels.set_isa(kernels.available_isas()[0])
    assert all(torch.equal(pick, first) for pick, first in zip(picks, picks[:3] * len(picks), strict=False))


def test_a_choice_does_not_depend_on_the_other_rows(isa):
    logits = normal(3, 20, 700)
    options = {
        "temperature": torch.tensor([0.0, 0.5, 1.0, 2.0]).repeat(5),
        "seeds": torch.arange(20) % 3,
        "positions": torch.arange(20) * 7,
        "top_k": torch.tensor([0, 10, 0, 300, 1]).repeat(4),
        "top_p": torch.tensor([1.0, 0.9]).repeat(10),
        "min_p": torch.tensor([0.0, 0.0, 0.1, 0.0]).repeat(5),
    }
    whole = sample(logits, **options)
    for row in range(20):
        alone = {name: option[row : row + 1] for name, option in options.items()}
        assert sample(logits[row : row + 1], **alone) == whole[row]


# -- the distribution ------------------------------------------------------------------------------


def chi_square(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities.double() * len(tokens)
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    return float(((counts - expected) ** 2 / expected).sum())


def draws(temperature: float, **options) -> torch.Tensor:
    return sample(LOGITS.expand(SAMPLES, VOCAB), temperature, 7, torch.arange(SAMPLES), **options)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_draws_at_successive_positions_follow_the_softmax(isa, temperature):
    assert chi_square(draws(temperature), (LOGITS / temperature).softmax(0)) < CHI_SQUARE_19


def test_draws_with_successive_seeds_follow_the_softmax(isa):
    tokens = sample(LOGITS.expand(SAMPLES, VOCAB), 1.0, torch.arange(SAMPLES), 3)
    assert chi_square(tokens, LOGITS.softmax(0)) < CHI_SQUARE_19


def test_filtered_draws_follow_the_renormalised_softmax(isa):
    kept = torch.where(torch.arange(VOCAB) >= VOCAB - 8, LOGITS, -math.inf).softmax(0)
    tokens = draws(1.0, top_k=8)
    assert chi_square(tokens - (VOCAB - 8), kept[-8:]) < CHI_SQUARE_19
    assert torch.equal(draws(1.0, top_p=float(LOGITS.softmax(0)[-8:].sum()) - 1e-4), tokens)
    assert torch.equal(draws(1.0, min_p=math.exp(LOGITS[-8] - 2.0) * 0.999), tokens)


def test_the_chi_square_test_can_fail():
    """Negative control: a temperature off by 5 %."""
    assert chi_square(draws(1.05), LOGITS.softmax(0)) > CHI_SQUARE_19


# -- order and edges -------------------------------------------------------------------------------


def test_greedy_takes_the_lowest_id_of_the_largest_logits(isa):
    logits = torch.zeros(4, 700)
    logits[1, [600, 300, 650]] = 5.0
    logits[2] = -0.0
    logits[2, 5] = 0.0
    logits[3, :699] = -math.inf
    assert sample(logits, 0, 0, 0).tolist() == [0, 300, 0, 699]


def test_of_equal_scores_the_lowest_ids_stay(isa):
    logits = torch.zeros(200, 3000)
    at = torch.arange(200)
    assert int(sample(logits, 1.0, 1, at, top_k=3).max()) == 2
    assert int(sample(logits, 1.0, 1, at, top_p=0.001).max()) == 2
    assert int(sample(logits, 1.0, 1, at, top_k=1).max()) == 0
    assert set(sample(logits, 1.0, 1, at, top_k=4, top_p=0.5).tolist()) == {0, 1}


@pytest.mark.parametrize("step", [1.0, -1.0])
def test_sorted_logits_are_no_special_case(isa, step):
    """The threshold of top-k rises with every token, or never."""
    logits = (torch.arange(5000.0) * step / 100).expand(50, 5000)
    best = range(4980, 5000) if step > 0 else range(20)
    tokens = sample(logits, 1.0, 2, torch.arange(50), top_k=20)
    assert set(tokens.tolist()) <= set(best)
    assert torch.equal(tokens, draw(logits, Sampling(top_k=20), [2] * 50, range(50)))


def test_tokens_of_minus_infinity_are_never_drawn(isa):
    logits = torch.full((300, 1000), -math.inf)
    logits[:, [3, 500, 999]] = 0.0
    for options in ({}, {"top_k": 10}, {"top_p": 0.99999}, {"min_p": 0.1}):
        assert set(sample(logits, 1.0, 5, torch.arange(300), **options).tolist()) == {3, 500, 999}


def test_tiny_and_huge_temperatures_are_greedy_and_uniform(isa):
    logits = normal(4, 300, 8) * 100
    assert torch.equal(sample(logits, 1e-30, 1, torch.arange(300)), logits.argmax(-1))
    assert len(sample(logits, 1e30, 1, torch.arange(300)).unique()) == 8


def test_no_rows_choose_no_tokens():
    assert sample(torch.empty(0, 5), 1.0, [], 0).shape == (0,)


# -- log probabilities -----------------------------------------------------------------------------


@few
@given(
    st.integers(0, 6),
    st.sampled_from([1, 7, 256, 1000]),
    st.sampled_from([0.1, 3, 30]),
    st.integers(0, 10**6),
)
def test_log_probabilities_are_those_of_the_softmax(isa, rows, vocab, spread, seed):
    logits = normal(seed, rows, vocab) * spread
    tokens = torch.arange(rows) % vocab
    want = logits.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(log_probabilities(logits, tokens).double(), want, rtol=1e-6, atol=1e-6)


def test_log_probabilities_have_the_same_bits_everywhere():
    logits, tokens = normal(5, 40, 3000) * 5, torch.arange(40)
    results = []
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        for threads in (1, 2):
            kernels.set_threads(threads)
            results.append(log_probabilities(logits, tokens))
        results.append(
            torch.cat([log_probabilities(logits[i : i + 1], tokens[i : i + 1]) for i in range(40)])
        )
    kernels.set_isa(kernels.available_isas()[0])
    assert all(torch.equal(result, results[0]) for result in results)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("at", [0, 300, 599])
def test_a_row_without_a_finite_largest_logit_is_refused_by_number(isa, temperature, at):
    for value, fault in ((math.nan, "a NaN in"), (-math.nan, "a NaN in"), (math.inf, "inf as the largest")):
        logits = torch.zeros(3, 600)
        logits[2, at] = value
        with pytest.raises(InputError, match=rf"^logits .*{fault}.* row 2; nothing"):
            sample(logits, temperature, 0, 0)
        with pytest.raises(InputError, match=rf"^logits .*{fault}.* row 2; it has no prob"):
            log_probabilities(logits, torch.tensor([0, 0, 0]))
    with pytest.raises(InputError, match=r"^logits has -inf as the largest value of row 0"):
        sample(torch.full((1, 9), -math.inf), temperature, 0, 0)


ROW = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("logits", {"logits": ROW.bfloat16()}),
        ("logits", {"logits": ROW[0]}),
        ("logits", {"logits": ROW.T}),
        ("logits", {"logits": torch.zeros(2, 0)}),
        ("temperature", {"temperature": -1.0}),
        ("temperature", {"temperature": 1e-40}),
        ("temperature", {"temperature": [1.0, math.inf]}),
        ("temperature", {"temperature": math.nan}),
        ("temperature", {"temperature": [1.0, 1.0, 1.0]}),
        ("temperature", {"temperature": "hot"}),
        ("temperature", {"temperature": torch.ones(2, 1)}),
        ("temperature", {"temperature": torch.ones(2, device="meta")}),
        ("seeds", {"seeds": 0.5}),
        ("seeds", {"seeds": [1, 2, 3]}),
        ("seeds", {"seeds": 2**63}),
        ("positions", {"positions": torch.zeros(2)}),
        ("top_k", {"top_k": -1}),
        ("top_k", {"top_k": 1.5}),
        ("top_p", {"top_p": 0.0}),
        ("top_p", {"top_p": [0.5, 1.1]}),
        ("top_p", {"top_p": math.nan}),
        ("min_p", {"min_p": -0.1}),
        ("min_p", {"min_p": 1.1}),
    ],
)
def test_bad_arguments_are_refused_by_name(named, arguments):
    call = {"logits": ROW, "temperature": 1.0, "seeds": 0, "positions": 0, **arguments}
    with pytest.raises(InputError, match=rf"^{named} "):
        sample(**call)


@pytest.mark.parametrize("tokens", [torch.tensor([0, 4]), torch.tensor([-1, 0]), torch.tensor([0]), [0, 0]])
def test_bad_tokens_are_refused_by_name(tokens):
    with pytest.raises(InputError, match=r"^tokens "):
        log_probabilities(ROW, tokens)
