"""The naive twin of sampling is what its sources say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.sampling import Sampling
from tests.kernels.sample_twin import candidates, draw, gumbel_noise, mix

SAMPLES = 100_000
VOCAB = 20

#: A true hypothesis exceeds this statistic once in a thousand times; 15 degrees of freedom.
CHI_SQUARE_15 = 37.70

LOGITS = torch.linspace(-2.0, 2.0, VOCAB)
MASK64 = 2**64 - 1


def chi_square(tokens, probabilities):
    """Pearson's statistic of the draws against what was expected."""
    expected = probabilities.double() * len(tokens)
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("neighbour", ["position", "seed"])
def test_neighbouring_positions_and_seeds_draw_independently(neighbour):
    """Pairs of neighbours fill the 16 cells of a uniform vocabulary of 4 evenly."""
    count, fixed = list(range(2 * SAMPLES)), [5] * (2 * SAMPLES)
    seeds, positions = (fixed, count) if neighbour == "position" else (count, fixed)
    tokens = draw(torch.zeros(2 * SAMPLES, 4), Sampling(), seeds, positions).view(-1, 2)
    assert chi_square(tokens[:, 0] * 4 + tokens[:, 1], torch.full((16,), 1 / 16)) < CHI_SQUARE_15


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
