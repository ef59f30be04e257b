"""The draft length follows acceptance and costs, and what does not pay costs next to nothing.

Steps are played with costs and an acceptance that the test sets, so no time is measured.
"""

import random
from dataclasses import dataclass, field

import pytest

from ridgeline.engine.plan import NO_DRAFTS
from ridgeline.engine.speculation.costs import RECENT, STALE, Costs
from ridgeline.engine.speculation.length import (
    AdaptiveLength,
    FixedLength,
    Step,
    StepCosts,
    expected_tokens,
)
from ridgeline.engine.speculation.report import Outcome, Tally
from ridgeline.errors import InputError


@dataclass
class Play:
    """A machine on which a step of a sequence takes 1 second, ``row`` more for every proposed token, and
    ``draft`` for drafting it; batches take as long as their largest sequence. ``stall`` is the chance of a
    step that takes 50 times as long; in ``slow`` of all spells of 40 steps everything takes three times as
    long."""

    row: float = 0.06
    draft: float = 0.1
    stall: float = 0.0
    slow: float = 0.0
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    costs: StepCosts = field(default_factory=StepCosts)
    tally: Tally = field(default_factory=Tally)
    lengths: list[int] = field(default_factory=list)

    def steps(self, length, tokens, acceptance, batch=1):
        """Seconds, without stalls and slow spells, of as many tokens a sequence."""
        done, seconds, spell = 0, 0.0, 1
        while done < tokens * batch:
            limit = length.limit(batch, self.costs)
            asked = [limit.tokens] * min(limit.sequences, batch) if limit.tokens else []
            outcomes = [self.outcome(k, acceptance) for k in asked]
            outcomes += [Outcome(0, 0, 1)] * (batch - len(asked))
            draft, verify = self.draft * limit.tokens, 1 + self.row * limit.tokens
            seconds += draft + verify
            if len(self.lengths) % 40 == 0:
                spell = 3 if self.draw.random() < self.slow else 1
            stalled = spell * (50 if self.draw.random() < self.stall else 1)
            step = Step(
                batch,
                batch + sum(asked),
                sum(outcome.tokens for outcome in outcomes),
                tuple(asked),
                sum(outcome.judged for outcome in outcomes),
                sum(outcome.accepted for outcome in outcomes),
                draft * stalled,
                verify * stalled,
            )
            self.costs.learn(step)
            length.learn(step, self.costs)
            self.tally.add_trials(outcomes, step.draft_seconds)
            self.tally.add(step)
            self.lengths.append(limit.tokens)
            done += step.tokens
        return seconds

    def outcome(self, proposed, acceptance):
        accepted = next((i for i in range(proposed) if self.draw.random() >= acceptance), proposed)
        return Outcome(proposed, accepted, accepted + 1)


def best_gain(acceptance, play, most=8):
    return max(expected_tokens(acceptance, k) / (1 + (play.row + play.draft) * k) for k in range(most + 1))


@pytest.mark.parametrize("row", [0.0, 0.06, 0.5, 1.0])
@pytest.mark.parametrize("draft", [0.0, 0.1, 0.8])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("stall", [0.0, 0.02])
def test_without_acceptance_it_is_at_most_three_percent_slower(row, draft, batch, stall):
    play = Play(row, draft, stall)
    assert 400 / play.steps(AdaptiveLength(), 400, 0.0, batch) >= 0.97


@pytest.mark.parametrize("acceptance", [0.5, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("stall", [0.0, 0.02])
def test_it_gains_almost_what_the_best_length_gains(acceptance, stall):
    play, tokens = Play(stall=stall), 3000
    assert tokens / play.steps(AdaptiveLength(), tokens, acceptance) >= 0.9 * best_gain(acceptance, play)


@pytest.mark.parametrize(("acceptance", "share"), [(0.0, 0.95), (0.5, 0.6), (0.8, 0.6), (1.0, 0.6)])
def test_on_a_machine_that_is_slow_at_times_it_rather_speculates_too_little(acceptance, share):
    play, tokens = Play(stall=0.02, slow=0.3), 3000
    assert tokens / play.steps(AdaptiveLength(), tokens, acceptance) >= share * best_gain(acceptance, play)


def test_it_falls_to_zero_when_speculation_stops_paying_and_comes_back():
    play, length = Play(), AdaptiveLength()
    play.steps(length, 300, 0.9)
    assert sorted(play.lengths[-20:])[1] >= 3  # one may be plain, to compare with
    seconds = play.steps(length, 2000, 0.05)
    assert play.lengths[-60:].count(0) >= 55
    assert 2000 / seconds >= 0.97
    play.steps(length, 6000, 0.95)
    assert sorted(play.lengths[-20:])[1] >= 3  # one may be plain, to compare with


def test_where_nothing_pays_a_try_is_one_token_of_one_sequence():
    play, length = Play(row=0.6, draft=0.6), AdaptiveLength()
    play.steps(length, 600, 0.0, batch=8)
    tries = {k for k in play.lengths[100:] if k}
    assert tries == {1}
    assert 2 <= sum(1 for k in play.lengths[100:] if k) <= 20


def test_the_first_steps_of_a_batch_size_are_plain():
    play, length = Play(), AdaptiveLength()
    play.steps(length, 60, 0.9)
    first = len(play.lengths)
    play.steps(length, 60, 0.9, batch=5)
    assert play.lengths[:3] == play.lengths[first : first + 3] == [0, 0, 0]
    assert min(play.lengths[3:6]) > 0


def test_a_batch_that_does_not_decode_drafts_nothing():
    assert AdaptiveLength().limit(0, StepCosts()) == NO_DRAFTS


def test_the_report_predicts_what_was_measured():
    play = Play()
    play.steps(AdaptiveLength(), 5000, 0.8)
    report = play.tally.report(play.costs)
    assert report.acceptance == pytest.approx(0.8, abs=0.03)
    assert report.predicted_gain == pytest.approx(report.measured_gain, rel=0.05)
    assert report.measured_gain > 1.5
    assert report.tokens_per_trial == 1 + report.accepted / report.trials


def test_without_steps_there_is_nothing_to_report():
    report = Tally().report(StepCosts())
    assert (report.acceptance, report.tokens_per_trial) == (None, None)
    assert (report.measured_gain, report.predicted_gain) == (None, None)


@pytest.mark.parametrize(("acceptance", "proposed", "expected"), [(0, 5, 1), (1, 4, 5), (0.5, 2, 1.75)])
def test_expected_tokens(acceptance, proposed, expected):
    assert expected_tokens(acceptance, proposed) == expected


@pytest.mark.parametrize("kind", [FixedLength, AdaptiveLength])
def test_a_length_below_one_is_refused(kind):
    with pytest.raises(InputError, match="expected a whole number of at least 1"):
        kind(0)


# -- costs -----------------------------------------------------------------------------------------


def test_costs_lie_on_the_line_through_their_neighbours():
    costs = Costs(growth=0.1)
    assert costs.seconds(1, 3) is None
    costs.add(1, 2, 10.0)
    assert costs.seconds(1, 4) == pytest.approx(11)  # twice the size: a tenth more
    costs.add(1, 2, 10.0)
    costs.add(1, 6, 90.0)
    assert costs.seconds(1, 6) == pytest.approx(12)  # a single one may have stalled
    for size, seconds in ((6, 14.0), (8, 13.0), (8, 13.0)):
        costs.add(1, size, seconds)
    assert [costs.seconds(1, size) for size in (2, 4, 6, 7)] == [10, 12, 14, 13.5]
    assert costs.seconds(1, 9) == 13  # never falls
    assert costs.seconds(2, 2) is None
    assert costs.nearest(5) == 1


def test_a_stall_does_not_count_and_a_lasting_change_does():
    costs = Costs(growth=0.1)
    for seconds in (1.0, 1.0, 90.0, 1.0):
        costs.add(1, 1, seconds)
    assert costs.seconds(1, 1) == 1
    for _ in range(RECENT):
        costs.add(1, 1, 2.0)
    assert costs.seconds(1, 1) == 2


def test_what_was_measured_long_ago_is_forgotten_but_for_the_report():
    costs = Costs(growth=0.1)
    costs.add(1, 5, 40.0)
    for _ in range(STALE + 1):
        costs.add(1, 1, 1.0)
    assert costs.seconds(1, 5) == pytest.approx(1.4)
    assert costs.measured(1, 5) == 40
    for _ in range(2):
        costs.add(1, 5, 2.0)
    assert costs.seconds(1, 5) == 2
