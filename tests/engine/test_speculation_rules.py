"""The exact rule gives the same tokens, rejection the same distribution, and the lossy rule neither."""

from dataclasses import dataclass

import pytest
import torch

from ridgeline import kernels
from ridgeline.engine.plan import NOTHING, Proposal
from ridgeline.engine.request import Request
from ridgeline.engine.sampler import choose_tokens, distributions
from ridgeline.engine.sampling import GREEDY, Sampling
from ridgeline.engine.sequence import Sequence
from ridgeline.engine.speculation import rules
from ridgeline.engine.speculation.rules import Exact, Lossy, Rejection, Trial
from ridgeline.errors import InputError
from tests.engine.test_sampler import CHI_SQUARE_19, SAMPLES, VOCAB, chi_square

PLAIN = Sampling(seed=8)
#: Draws where 100,000 would take too long: enough for the negative controls to fail.
FEWER = 20_000
#: Logits of a target and of a draft that disagree, but not in everything.
TARGET = torch.linspace(-2.0, 2.0, VOCAB)
DRAFT = torch.linspace(1.0, -1.0, VOCAB) + 0.5 * torch.cos(torch.arange(VOCAB))


def sequence(sampling=GREEDY, prompt=(1, 2, 3)):
    return Sequence(Request(tuple(prompt), 100, sampling))


def some_logits(rows, seed=0):
    return 2 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


# -- distributions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(0.6),
        Sampling(top_k=7),
        Sampling(top_p=0.8),
        Sampling(1.5, min_p=0.2),
        Sampling(0.8, top_k=12, top_p=0.9, min_p=0.02),
        Sampling(logit_bias={0: 3.0}, presence_penalty=1.0),
    ],
    ids=repr,
)
def test_distributions_are_what_tokens_are_drawn_with(sampling):
    [expected] = distributions(TARGET[None], [sequence(sampling)])
    changed = distributions(TARGET[None], [sequence(Sampling(logit_bias=sampling.logit_bias))])[0].log()
    tokens = kernels.sample(
        changed.expand(SAMPLES, VOCAB),
        sampling.temperature,
        3,
        range(SAMPLES),
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
    )
    kept = expected > 0
    assert set(tokens.unique().tolist()) == set(kept.nonzero()[:, 0].tolist())
    assert statistic(tokens, expected) < CHI_SQUARE_19
    assert float(expected.sum()) == pytest.approx(1)


def test_a_greedy_distribution_is_its_choice():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    assert distributions(logits, [sequence()]).tolist() == [[0, 1, 0, 0]]
    assert choose_tokens(logits, [sequence()]) == [1]


def statistic(tokens, probabilities):
    """Chi-square over the tokens that may come at all."""
    kept = probabilities > 0
    places = torch.cumsum(kept, 0) - 1
    return chi_square(places[tokens], probabilities[kept])


# -- the exact rule --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=4), Sampling(0.7, repetition_penalty=2.0)])
def test_exactly_what_the_requests_noise_picks_is_accepted(sampling):
    wanted, logits = sequence(sampling), some_logits(4)
    plain = sequence(sampling)
    for row in logits:
        plain.tokens += choose_tokens(row[None], [plain])
    right = tuple(plain.output)
    for wrong in range(4):
        proposal = tuple(t if i < wrong else (t + 1) % VOCAB for i, t in enumerate(right[:3]))
        [tokens] = Exact().judge(logits, [Trial(wanted, Proposal(proposal))])
        assert tokens == list(right[: wrong + 1])


def test_trials_of_all_lengths_are_judged_together_as_alone():
    logits = some_logits(6)
    trials = [
        Trial(sequence(Sampling(seed=1)), Proposal((3, 4))),
        Trial(sequence(Sampling(seed=2)), NOTHING),
        Trial(sequence(GREEDY), Proposal((int(logits[4].argmax()),))),
    ]
    alone = [logits[:3], logits[3:4], logits[4:]]
    for rule in (Exact(), Rejection(), Lossy(0.2)):
        together = rule.judge(logits, trials)
        assert together == [rule.judge(x, [t])[0] for x, t in zip(alone, trials, strict=True)]


def test_a_draft_with_the_targets_logits_is_always_accepted():
    """Draft and target share the request's noise."""
    for seed in range(20):
        wanted, logits = sequence(Sampling(seed=seed)), some_logits(2, seed)
        drawn = Exact().draw(logits[:1], [wanted])
        [tokens] = Exact().judge(logits, [Trial(wanted, Proposal(tuple(drawn.tokens)))])
        assert len(tokens) == 2


# -- rejection -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A context of which only the noise is asked for: lighter than a sequence, for many of them."""

    position: int
    sampling: Sampling = PLAIN
    matcher: None = None


def trials_of(rule, sampling, draft, count, tokens=1):
    """Trials of ``tokens`` proposals each, drawn with the same logits, at places of their own."""
    places = [Place(3 * i, sampling) for i in range(count)]
    drawn = [
        rule.draw(draft.expand(count, VOCAB), [Place(place.position + ahead, sampling) for place in places])
        for ahead in range(tokens)
    ]
    proposed = zip(*(ahead.tokens for ahead in drawn), strict=True)
    probabilities = torch.stack([ahead.probabilities for ahead in drawn], 1).unbind()
    return [
        Trial(place, Proposal(tokens, q))
        for place, tokens, q in zip(places, proposed, probabilities, strict=True)
    ]


def first_tokens(rule, sampling, count=FEWER):
    trials = trials_of(rule, sampling, DRAFT, count)
    judged = rule.judge(TARGET.expand(2 * count, VOCAB), trials)
    return torch.tensor([tokens[0] for tokens in judged])


def test_by_rejection_tokens_have_the_targets_distribution():
    assert statistic(first_tokens(Rejection(), PLAIN, SAMPLES), TARGET.softmax(0)) < CHI_SQUARE_19


@pytest.mark.parametrize(
    "sampling", [Sampling(0.7, top_p=0.9, seed=9), Sampling(1.3, top_k=8, seed=1)], ids=["top-p", "top-k"]
)
def test_by_rejection_tokens_have_the_distribution_that_is_asked_for(sampling):
    [expected] = distributions(TARGET[None], [sequence(sampling)])
    assert statistic(first_tokens(Rejection(), sampling), expected) < CHI_SQUARE_19


def test_replacements_from_the_draft_would_be_noticed(monkeypatch):
    """Negative control: the same with what is rejected drawn from q again."""
    draw = rules._draw

    def from_q(weights, contexts, stream):
        q = DRAFT.softmax(0).expand_as(weights)
        return draw(q if stream == rules._REPLACEMENT else weights, contexts, stream)

    monkeypatch.setattr(rules, "_draw", from_q)
    assert statistic(first_tokens(Rejection(), PLAIN), TARGET.softmax(0)) > CHI_SQUARE_19


def test_noise_shared_by_draft_and_replacement_would_be_noticed(monkeypatch):
    """Negative control: independence is what makes it right."""
    monkeypatch.setattr(rules, "_DRAFT", rules._REPLACEMENT)
    assert statistic(first_tokens(Rejection(), PLAIN), TARGET.softmax(0)) > CHI_SQUARE_19


def test_a_draft_judged_by_other_probabilities_would_be_noticed():
    """Negative control: drawn with those of bfloat16 at another temperature, judged as if with these."""

    class Careless(Rejection):
        def draw(self, logits, contexts):
            careless = Rejection.draw(self, 0.8 * logits.bfloat16(), contexts)
            return rules.Drawn(careless.tokens, distributions(logits, contexts))

    assert statistic(first_tokens(Careless(), PLAIN), TARGET.softmax(0)) > CHI_SQUARE_19


def test_a_proposal_that_was_not_drawn_is_accepted_as_often_as_the_target_takes_it():
    """As those of n-grams."""
    trials = [Trial(Place(3 * i), Proposal((14,))) for i in range(FEWER)]
    judged = Rejection().judge(TARGET.expand(2 * FEWER, VOCAB), trials)
    assert statistic(torch.tensor([tokens[0] for tokens in judged]), TARGET.softmax(0)) < CHI_SQUARE_19


def test_the_tokens_behind_accepted_ones_have_the_targets_distribution_too():
    """The second proposal and the token that follows both."""
    second, third = TARGET.flip(0) / 2, TARGET.roll(5)
    logits = torch.stack([TARGET, second, third]).repeat(FEWER, 1)
    judged = Rejection().judge(logits, trials_of(Rejection(), PLAIN, DRAFT, FEWER, tokens=2))
    for place, expected in enumerate((TARGET, second, third)):
        tokens = torch.tensor([found[place] for found in judged if len(found) > place])
        assert len(tokens) > 1_000
        assert statistic(tokens, expected.softmax(0)) < CHI_SQUARE_19


def test_the_same_distributions_reject_nothing():
    trials = trials_of(Rejection(), PLAIN, TARGET, FEWER)
    assert all(len(tokens) == 2 for tokens in Rejection().judge(TARGET.expand(2 * FEWER, VOCAB), trials))


def test_greedy_rejection_takes_the_likeliest_token():
    logits = some_logits(3)
    best = logits.argmax(-1).tolist()
    for proposed in ((best[0], best[1]), (best[0], (best[1] + 1) % VOCAB), ((best[0] + 1) % VOCAB, 0)):
        drawn = torch.nn.functional.one_hot(torch.tensor(proposed), VOCAB).float()
        [tokens] = Rejection().judge(logits, [Trial(sequence(), Proposal(proposed, drawn))])
        assert tokens == best[: len(tokens)]
        assert len(tokens) == 1 + next((i for i in range(2) if proposed[i] != best[i]), 2)


# -- the lossy rule --------------------------------------------------------------------------------


def test_the_lossy_rule_accepts_all_but_improbable_tokens():
    logits = torch.tensor([[0.0, 1.0, 2.0, -9.0]]).repeat(4, 1)
    for proposed, expected in (((1, 0, 2), [1, 0, 2, 2]), ((1, 3, 0), [1, 2]), ((3, 1, 1), [2])):
        assert Lossy(0.05).judge(logits, [Trial(sequence(), Proposal(proposed))]) == [expected]
    [exact] = Exact().judge(logits, [Trial(sequence(), Proposal((1, 0, 2)))])
    assert exact == [2]


@pytest.mark.parametrize("threshold", [0, 1.5, -1, float("nan"), "much"])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(InputError, match=r"threshold is .* expected a number above 0 and at most 1"):
        Lossy(threshold)


# -- rows that cannot be sampled -------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Exact(), Rejection(), Lossy()], ids=repr)
@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_that_holds_a_nan_is_refused(rule, row):
    logits = some_logits(3)
    right = tuple(logits[:2].argmax(-1).tolist())
    logits[row, 4] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        rule.judge(logits, [Trial(sequence(Sampling(1e-3)), Proposal(right))])
