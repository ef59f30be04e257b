"""Speculation in the engine's steps: no token changes, no block is lost, and no proposal is shared."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.blocks import block_hash
from ridgeline.engine.plan import NO_DRAFTS, Chunk, Proposal
from ridgeline.engine.request import Request
from ridgeline.engine.result import Failure
from ridgeline.engine.sampling import GREEDY, BeamSearch, Sampling
from ridgeline.engine.sequence import Sequence
from ridgeline.engine.speculation.length import FixedLength
from ridgeline.engine.speculation.ngram import NGrams
from ridgeline.engine.speculation.speculator import Speculator
from tests.engine.fake_model import VOCAB, fake_core, naive, results
from tests.engine.proposers import Always, Replaying


def prompt(length, seed=0):
    return tuple((7 * i * i + 3 * i + seed) % VOCAB for i in range(length))


def request(length=10, max_tokens=5, *, seed=0, **options):
    return Request(prompt(length, seed), max_tokens, **options)


def known(requests):
    """The outputs of plain runs, as Replaying takes them."""
    return {
        (wanted, sample): ids
        for wanted in requests
        for sample, (ids, _) in enumerate(naive(wanted))
        if wanted.beams is None
    }


def replaying(requests, acceptance, tokens=4, seed=0):
    return Speculator(Replaying(known(requests), acceptance, VOCAB, seed), length=FixedLength(tokens))


def outputs(core, requests):
    for place, wanted in enumerate(requests):
        core.submit(wanted, place)
    found = results(core)
    return [
        [(found[i, sample].ids, found[i, sample].finish_reason) for sample in range(wanted.samples)]
        for i, wanted in enumerate(requests)
    ]


# -- the same tokens -------------------------------------------------------------------------------

samplings = st.sampled_from(
    [
        GREEDY,
        Sampling(seed=3),
        Sampling(0.7, top_k=9, seed=1),
        Sampling(0.0, frequency_penalty=1.5),
        Sampling(1.0, repetition_penalty=1.4, presence_penalty=0.5, seed=2),
        Sampling(0.9, top_p=0.8, logit_bias={5: 3.0}, seed=4),
    ]
)
plain = st.builds(
    Request,
    st.lists(st.integers(0, 1), min_size=1, max_size=20).map(tuple),
    st.integers(1, 16),
    samplings,
    st.sampled_from([frozenset(), frozenset({3, 4, 5})]),
    samples=st.sampled_from([1, 1, 1, 3]),
    priority=st.sampled_from([0.0, 0.0, 1.0]),
)
beams = st.builds(
    Request,
    st.lists(st.integers(0, 1), min_size=1, max_size=20).map(tuple),
    st.integers(1, 8),
    beams=st.builds(BeamSearch, st.integers(2, 3)),
)


class Wavering:
    """Now a right proposal, now a wrong one, now one that is short or none at all."""

    def __init__(self, outputs, seed):
        self.draw = random.Random(seed)
        self.replaying = Replaying(outputs, 0.8, VOCAB, seed)

    def propose(self, chunks, target):
        right = self.replaying.propose(chunks, target)
        return [Proposal(proposal.tokens[: self.draw.randint(0, 9)]) for proposal in right]

    def forget(self, sequence):
        pass


@settings(max_examples=150)
@given(
    st.lists(st.one_of(plain, plain, beams), min_size=1, max_size=6),
    st.data(),
    st.sampled_from([1, 2, 4, 16]),
    st.integers(1, 40),
    st.integers(1, 12),
    st.booleans(),
    st.integers(1, 7),
)
def test_answers_are_those_without_proposals(requests, data, block_size, budget, seats, prefix_cache, tokens):
    """In any batch and any chunks, with prefixes, copies on write, samples, beams and preemptions."""
    widest = max(wanted.width for wanted in requests)
    needed = max(wanted.blocks_at_most(block_size) for wanted in requests)
    proposer = Wavering(known(requests), data.draw(st.integers(0, 99)))
    core = fake_core(
        blocks=needed + data.draw(st.integers(0, 10)),
        block_size=block_size,
        token_budget=max(budget, widest),
        sequences=max(seats, widest),
        prefix_cache=prefix_cache,
        speculator=Speculator(proposer, length=FixedLength(tokens)),
    )
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    assert all(plan.rows <= core.scheduler.limits.token_budget for plan in core.runner.plans)
    assert only_accepted_are_published(core, requests)


def only_accepted_are_published(core, requests):
    """Whether every published block holds tokens of some prompt and its output, in their place."""
    size, expected = core.scheduler.pool.block_size, set()
    for wanted in requests:
        for ids, _ in naive(wanted) if wanted.beams is None else []:
            tokens, parent = [*wanted.prompt, *ids], wanted.context
            for first in range(0, len(tokens) - size + 1, size):
                parent = block_hash(parent, tokens[first : first + size])
                expected.add(parent)
    searched = any(wanted.beams is not None for wanted in requests)
    return searched or core.scheduler.pool._published.keys() <= expected


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 1.0])
def test_preemption_with_proposals_in_flight_changes_no_token(acceptance):
    requests = [request(8, 15), request(8, 15, seed=1), request(8, 15, seed=2, sampling=Sampling())]
    core = fake_core(blocks=9, prefix_cache=False, speculator=replaying(requests, acceptance))
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    assert core.scheduler.preemptions > 0


def test_nobody_is_preempted_for_a_proposal():
    """Two sequences that just fit run to their ends side by side, with proposals where there is room."""
    requests = [request(8, 9), request(8, 9, seed=1)]
    core = fake_core(blocks=8, prefix_cache=False, headroom=0, speculator=replaying(requests, 1.0, 12))
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    assert core.scheduler.preemptions == 0


def test_samples_speculate_each_with_its_own_noise():
    wanted = request(9, 12, samples=3, sampling=Sampling(seed=5))
    core = fake_core(speculator=replaying([wanted], 1.0))
    assert outputs(core, [wanted]) == [naive(wanted)]
    assert core.speculator.report.acceptance == 1


def test_a_stop_token_inside_a_proposal_ends_the_output_there():
    [(ids, _)] = naive(request(10, 12))
    wanted = request(10, 12, stop_ids=frozenset({ids[3]}))
    end = ids.index(ids[3]) + 1
    core = fake_core(speculator=Speculator(Always(lambda c: ids[:6][: c.room]), length=FixedLength(6)))
    core.submit(wanted, 0)
    [result] = results(core).values()
    assert (result.ids, result.finish_reason) == (ids[:end], "stop")


def test_stop_strings_end_the_text_where_they_would_without_proposals(tokenizer):
    wanted = request(10, 16)
    free = fake_core(tokenizer=tokenizer)
    free.submit(wanted, 0)
    [result] = results(free).values()
    stopped = replace(wanted, stop=(result.text[2:4],))
    texts = []
    known = {(stopped, 0): result.ids}
    proposers = [Replaying(known, acceptance, VOCAB) for acceptance in (1.0, 0.5)]
    for speculator in (None, *(Speculator(proposer, length=FixedLength(4)) for proposer in proposers)):
        core = fake_core(tokenizer=tokenizer, speculator=speculator)
        core.submit(stopped, 0)
        [found] = results(core).values()
        texts.append((found.text, found.ids, found.finish_reason))
    assert texts[0] == texts[1] == texts[2]
    assert texts[0][2] == "stop"


def test_logprobs_come_with_every_token_of_a_proposal():
    wanted = request(10, 9, logprobs=3)
    found = []
    for speculator in (None, replaying([wanted], 0.7)):
        core = fake_core(speculator=speculator)
        core.submit(wanted, 0)
        found += [result.logprobs for result in results(core).values()]
    assert found[0] == found[1]
    assert len(found[0]) == 9


# -- what a step takes -----------------------------------------------------------------------------


def test_an_accepted_proposal_saves_steps():
    requests = [request(10, 21)]
    core = fake_core(speculator=replaying(requests, 1.0, 4))
    outputs(core, requests)
    assert [plan.rows for plan in core.runner.plans] == [10, 5, 5, 5, 5]


def test_a_rejected_proposal_takes_no_block():
    requests = [request(8, 20)]
    core = fake_core(block_size=4, speculator=replaying(requests, 0.0, 12))
    core.submit(requests[0], 0)
    while core.has_work:
        core.step()
        for group in core.scheduler.running:
            [sequence] = group.sequences
            assert len(core.scheduler.pool.table(sequence)) <= -(-len(sequence.tokens) // 4)


def test_proposals_take_the_part_of_the_budget_that_known_tokens_leave():
    requests = [request(1, 30), request(1, 30, seed=1), request(100, 2, seed=2)]
    core = fake_core(token_budget=16, speculator=replaying(requests, 1.0, 6))
    outputs(core, requests)
    rows = [[chunk.rows for chunk in plan.chunks] for plan in core.runner.plans]
    assert rows[1] == [1, 1, 14]  # the prompt waits for more than the budget
    assert [7, 7] in rows


def test_a_proposal_goes_no_further_than_the_longest_output():
    requests = [request(10, 4)]
    core = fake_core(speculator=replaying(requests, 1.0, 8))
    outputs(core, requests)
    assert [plan.rows for plan in core.runner.plans] == [10, 3]


def test_a_prompt_of_one_token_whose_samples_wait_gets_no_proposal():
    wanted = request(1, 4, samples=2, sampling=Sampling())
    core = fake_core(speculator=replaying([wanted], 1.0))
    outputs(core, [wanted])
    assert [chunk.rows for chunk in core.runner.plans[0].chunks] == [1]


# -- proposers that misbehave ----------------------------------------------------------------------


def test_random_tokens_change_nothing():
    draw = random.Random(1)
    proposer = Always(lambda chunk: [draw.randrange(VOCAB) for _ in range(chunk.room)])
    requests = [request(10, 20), request(7, 20, seed=1, sampling=Sampling())]
    core = fake_core(speculator=Speculator(proposer, length=FixedLength(5)))
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    assert core.speculator.report.acceptance < 0.2


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (lambda chunk: [1] * (chunk.room + 1), "gave 3 tokens where 2 were asked for"),
        (lambda chunk: [VOCAB], "gave the token id 40, expected 0 to 39"),
        (lambda chunk: [-1], "gave the token id -1, expected 0 to 39"),
    ],
)
def test_too_many_tokens_and_tokens_outside_the_vocabulary_are_refused(tokens, message):
    core = fake_core(speculator=Speculator(Always(tokens), length=FixedLength(2)))
    core.submit(request(10, 5), 0)
    events = []
    while core.has_work:
        events += core.step()
        core.scheduler.check()
    assert isinstance(events[-1], Failure)
    assert message in str(events[-1].error)
    assert core.scheduler.pool.available == core.scheduler.pool.blocks


def test_a_proposer_forgets_whoever_is_finished_or_aborted():
    requests = [request(10, 5), request(10, 50, seed=1)]
    core = fake_core(speculator=replaying(requests, 1.0))
    for place, wanted in enumerate(requests):
        core.submit(wanted, place)
    while len(core.scheduler.running) != 1:
        core.step()
    core.abort(requests[1])
    forgotten = [sequence.request for sequence in core.speculator.proposer.forgotten]
    assert forgotten == requests
    assert not core.has_work


# -- n-grams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "room", "expected"),
    [
        ((1, 2, 3, 9, 1, 2), 3, (3, 9, 1)),
        ((1, 2, 3, 1, 2, 4, 1, 2), 2, (4, 1)),  # the nearest place
        ((5, 1, 2, 6, 7, 1, 2, 8, 5, 1, 2), 1, (6,)),  # the longest n-gram first
        ((1, 2, 1, 2), 5, (1, 2, 1, 2, 1)),  # a period goes on
        ((7, 7, 7), 4, (7, 7, 7, 7)),
        ((1, 2, 3), 4, ()),
        ((1,), 4, ()),
        ((256, 1, 1, 0, 256, 1), 1, (1,)),  # no match in the middle of a number
    ],
)
def test_ngrams_propose_what_followed_the_last_time(tokens, room, expected):
    chunk = Chunk(Sequence(Request(tokens, 9)), 1, len(tokens) - 1, (), 1, room)
    [proposal] = NGrams().propose([chunk], None)
    assert proposal.tokens == expected


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 9))
def test_ngrams_are_those_of_the_definition(tokens, room):
    chunk = Chunk(Sequence(Request(tuple(tokens), 9)), 1, len(tokens) - 1, (), 1, room)
    [proposal] = NGrams(4, 2).propose([chunk], None)
    assert proposal.tokens == tuple(followers(tokens, room))


def followers(tokens, room):
    for length in (4, 3, 2):
        for place in range(len(tokens) - length - 1, -1, -1):
            if tokens[place : place + length] == tokens[len(tokens) - length :]:
                found = list(tokens)
                for i in range(room):
                    found.append(found[place + length + i])
                return found[len(tokens) :]
    return []


def test_ngrams_change_no_token():
    requests = [request(30, 20), request(30, 20, seed=1, sampling=Sampling())]
    core = fake_core(speculator=Speculator(NGrams(3, 1), length=FixedLength(4)))
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    assert core.speculator.report.proposed > 0


# -- a speculator that has nothing to do -----------------------------------------------------------


class Counting(FixedLength):
    """Says nothing is to be drafted, and counts how often it is asked."""

    asked = 0

    def limit(self, batch, costs):
        object.__setattr__(self, "asked", self.asked + 1)
        return NO_DRAFTS


def test_most_of_many_plain_steps_are_not_even_looked_at():
    length = Counting(1)
    core = fake_core(speculator=Speculator(NGrams(), length=length))
    wanted = request(10, 161)
    assert outputs(core, [wanted]) == [naive(wanted)]
    assert 5 <= length.asked <= 12


def test_the_plain_steps_at_the_beginning_are_no_reason_to_rest():
    """Proposals come as soon as there is something to compare with."""
    wanted = request(10, 40)
    core = fake_core(speculator=Speculator(Replaying(known([wanted]), 1.0, VOCAB)))
    clock, run = core.scheduler.clock, core.runner.run

    def run_for_a_second(plan):
        clock.sleep_until(clock.now() + 1)
        return run(plan)

    core.runner.run = run_for_a_second
    assert outputs(core, [wanted]) == [naive(wanted)]
    assert [plan.rows for plan in core.runner.plans][:4] == [10, 1, 1, 1]
    assert all(plan.rows > 1 for plan in core.runner.plans[4:])


def test_steps_that_were_not_looked_at_count_with_the_time_that_they_took():
    speculator = Speculator(NGrams(), length=Counting(1))
    core = fake_core(speculator=speculator)
    clock = core.scheduler.clock
    run, steps = core.runner.run, []

    def run_slowly(plan):
        steps.append(plan.rows)
        clock.sleep_until(clock.now() + (100 if 10 <= len(steps) < 20 else 1))
        return run(plan)

    core.runner.run = run_slowly
    outputs(core, [request(10, 161)])
    found = speculator._tally._batches[1]
    assert 100 < found.tokens == sum(found.steps.values()) <= 160
    assert found.seconds == found.tokens + 10 * 99


def test_a_rule_that_fails_fails_its_requests_and_no_others(monkeypatch):
    wanted = [request(10, 12), request(10, 12, seed=1)]
    core = fake_core(speculator=replaying(wanted, 1.0))
    judge = type(core._rule).judge

    def fail(self, logits, trials):
        if any(trial.sequence.request is wanted[0] for trial in trials):
            raise ValueError("half a character")
        return judge(self, logits, trials)

    monkeypatch.setattr(type(core._rule), "judge", fail)
    for place, one in enumerate(wanted):
        core.submit(one, place)
    events = []
    while core.has_work:
        events += core.step()
        core.scheduler.check()
    [failure] = [event for event in events if isinstance(event, Failure)]
    assert (failure.request, str(failure.error)) == (0, "half a character")
    [result] = [event.result for event in events if not isinstance(event, Failure) and event.result]
    assert result.ids == naive(wanted[1])[0][0]
