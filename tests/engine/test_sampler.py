"""The sampler draws from the right distribution, and a draw depends on its own request alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.request import Request
from ridgeline.engine.sampler import (
    candidates,
    choose_tokens,
    draw,
    gumbel_noise,
    logprobs_of,
    mix,
    penalised,
)
from ridgeline.engine.sampling import GREEDY, Sampling
from ridgeline.engine.sequence import Sequence

SAMPLES = 100_000
VOCAB = 20

#: A true hypothesis exceeds this statistic once in a thousand times; 19 degrees of freedom.
CHI_SQUARE_19 = 43.82
#: The same for 15 degrees of freedom.
CHI_SQUARE_15 = 37.70

LOGITS = torch.linspace(-2.0, 2.0, VOCAB)
MASK64 = 2**64 - 1


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


def draws(sampling, *, seeds=None, positions=None):
    seeds = seeds if seeds is not None else [7] * SAMPLES
    positions = positions if positions is not None else range(SAMPLES)
    return draw(LOGITS.expand(len(seeds), VOCAB), sampling, list(seeds), list(positions))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_draws_at_successive_positions_follow_the_softmax(temperature):
    tokens = draws(Sampling(temperature=temperature))
    assert chi_square(tokens, (LOGITS / temperature).softmax(0)) < CHI_SQUARE_19


def test_draws_with_successive_seeds_follow_the_softmax():
    tokens = draws(Sampling(), seeds=range(SAMPLES), positions=[3] * SAMPLES)
    assert chi_square(tokens, LOGITS.softmax(0)) < CHI_SQUARE_19


def test_the_chi_square_test_can_fail():
    """Negative controls: a temperature off by 5 %, and noise that is normal instead of Gumbel."""
    assert chi_square(draws(Sampling(temperature=1.05)), LOGITS.softmax(0)) > CHI_SQUARE_19
    normal = torch.randn(SAMPLES, VOCAB, generator=torch.Generator().manual_seed(0))
    assert chi_square((LOGITS + normal).argmax(-1), LOGITS.softmax(0)) > CHI_SQUARE_19


@pytest.mark.parametrize("neighbour", ["position", "seed"])
def test_neighbouring_positions_and_seeds_draw_independently(neighbour):
    """Pairs of neighbours fill the 16 cells of a uniform vocabulary of 4 evenly."""
    count, fixed = list(range(2 * SAMPLES)), [5] * (2 * SAMPLES)
    seeds, positions = (fixed, count) if neighbour == "position" else (count, fixed)
    tokens = draw(torch.zeros(2 * SAMPLES, 4), Sampling(), seeds, positions).view(-1, 2)
    assert chi_square(tokens[:, 0] * 4 + tokens[:, 1], torch.full((16,), 1 / 16)) < CHI_SQUARE_15


def test_filtered_draws_follow_the_renormalised_softmax():
    sampling = Sampling(top_k=8)
    tokens = draws(sampling)
    assert int(tokens.min()) == VOCAB - 8
    kept = LOGITS[-8:].softmax(0)
    assert chi_square(tokens - (VOCAB - 8), kept) < CHI_SQUARE_19


def test_the_hash_is_splitmix64():
    """Against the recurrence of Steele, Lea and Flood in Python's own integers."""

    def splitmix64(state, n):
        z = (state + n * 0x9E3779B97F4A7C15) & MASK64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        return z ^ (z >> 31)

    assert splitmix64(1234567, 1) == 6457827717110365317  # the published first output of this seed
    states = [(1234567 + n * 0x9E3779B97F4A7C15) & MASK64 for n in range(1, 200)]
    signed = torch.tensor([s - (1 << 64) if s >> 63 else s for s in states])
    assert [z & MASK64 for z in mix(signed).tolist()] == [splitmix64(1234567, n) for n in range(1, 200)]


def test_the_noise_is_finite_and_repeats():
    tokens = torch.arange(1000)[None].expand(3, 1000)
    noise = gumbel_noise([0, 0, 2**63 - 1], [0, 1, 2**40], tokens)
    assert noise.isfinite().all()
    assert torch.equal(noise, gumbel_noise([0, 0, 2**63 - 1], [0, 1, 2**40], tokens))


def test_every_seed_position_and_token_has_its_own_noise():
    pairs = [(seed, position) for seed in range(30) for position in range(30)]
    seeds, positions = zip(*pairs, strict=True)
    noise = gumbel_noise(seeds, positions, torch.arange(30).expand(len(pairs), 30))
    assert len(noise.unique()) == noise.numel()


def test_noise_belongs_to_the_token_and_not_to_its_rank():
    tokens = torch.randperm(100, generator=torch.Generator().manual_seed(4))[None]
    in_order = gumbel_noise([1], [2], torch.arange(100)[None])
    assert torch.equal(gumbel_noise([1], [2], tokens), in_order[:, tokens[0]])


# -- filters ---------------------------------------------------------------------------------------


def kept_tokens(logits, sampling):
    scores, tokens = candidates(logits[None], sampling)
    return set(tokens[scores > -torch.inf].tolist())


def test_top_k_keeps_the_k_likeliest():
    assert kept_tokens(LOGITS, Sampling(top_k=3)) == {17, 18, 19}
    assert kept_tokens(LOGITS, Sampling(top_k=1000)) == set(range(VOCAB))


def test_top_p_keeps_the_token_that_reaches_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert kept_tokens(logits, Sampling(top_p=0.4)) == {0}
    assert kept_tokens(logits, Sampling(top_p=0.6)) == {0, 1}
    assert kept_tokens(logits, Sampling(top_p=0.9)) == {0, 1, 2}
    assert kept_tokens(logits, Sampling(top_p=1e-9)) == {0}


def test_min_p_keeps_tokens_likely_enough_beside_the_likeliest():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert kept_tokens(logits, Sampling(min_p=0.25)) == {0, 1, 2}
    assert kept_tokens(logits, Sampling(min_p=1.0)) == {0}


@settings(max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.4, 1.0, 2.5]),
    st.sampled_from([0, 1, 5, 40]),
    st.sampled_from([0.2, 0.8, 0.95, 1.0]),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_the_filters_keep_what_those_of_transformers_keep(seed, temperature, top_k, top_p, min_p):
    from transformers import generation

    logits = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 2
    scores = generation.TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        scores = generation.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = generation.TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = generation.MinPLogitsWarper(min_p)(None, scores)
    theirs = set(torch.nonzero(scores[0] > -torch.inf).flatten().tolist())
    assert kept_tokens(logits, Sampling(temperature, top_k, top_p, min_p)) == theirs


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
    tokens = draw(changed.expand(SAMPLES, VOCAB), sampling, [11] * SAMPLES, range(SAMPLES))
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
