"""The scheduler: the same answers whatever the limits and the company, no block lost, nobody left behind."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.request import Request
from ridgeline.engine.sampling import GREEDY, BeamSearch, Sampling
from ridgeline.engine.scheduler import PRIORITY_SECONDS
from ridgeline.errors import InputError
from tests.engine.fake_model import fake_core, naive, results


def prompt(length, seed=0):
    return tuple((7 * i * i + 3 * i + seed) % 40 for i in range(length))


def request(length=10, max_tokens=5, *, seed=0, **options):
    return Request(prompt(length, seed), max_tokens, **options)


def outputs(core, requests):
    """The ids and the finish reason of every output of each request."""
    for place, wanted in enumerate(requests):
        core.submit(wanted, place)
    found = results(core)
    return [
        [(found[i, sample].ids, found[i, sample].finish_reason) for sample in range(wanted.samples)]
        for i, wanted in enumerate(requests)
    ]


def rows(core):
    """Rows of each chunk, step by step."""
    return [[chunk.rows for chunk in plan.chunks] for plan in core.runner.plans]


# -- answers ---------------------------------------------------------------------------------------

samplings = st.sampled_from(
    [GREEDY, Sampling(seed=3), Sampling(0.7, top_k=9, seed=1), Sampling(0.0, frequency_penalty=1.5)]
)
plain = st.builds(
    Request,
    st.lists(st.integers(0, 1), min_size=1, max_size=20).map(tuple),
    st.integers(1, 12),
    samplings,
    st.sampled_from([frozenset(), frozenset({3, 4, 5})]),
    samples=st.sampled_from([1, 1, 1, 2, 4]),
    priority=st.sampled_from([0.0, 0.0, 1.0]),
)
beams = st.builds(
    Request,
    st.lists(st.integers(0, 1), min_size=1, max_size=20).map(tuple),
    st.integers(1, 8),
    stop_ids=st.sampled_from([frozenset(), frozenset({3, 4, 5})]),
    beams=st.builds(BeamSearch, st.integers(2, 4), st.sampled_from([0.5, 1.0]), st.booleans()),
)


@settings(max_examples=150)
@given(
    st.lists(st.one_of(plain, plain, beams), min_size=1, max_size=6),
    st.data(),
    st.sampled_from([1, 2, 4, 16]),
    st.integers(1, 40),
    st.integers(1, 12),
    st.booleans(),
)
def test_answers_are_those_of_each_request_alone(requests, data, block_size, budget, seats, prefix_cache):
    """Batches, chunks, prefixes, copies on write and preemptions change no token."""
    widest = max(wanted.width for wanted in requests)
    needed = max(wanted.blocks_at_most(block_size) for wanted in requests)
    core = fake_core(
        blocks=needed + data.draw(st.integers(0, 10)),
        block_size=block_size,
        token_budget=max(budget, widest),
        sequences=max(seats, widest),
        prefix_cache=prefix_cache,
    )
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    assert all(plan.rows <= core.scheduler.limits.token_budget for plan in core.runner.plans)
    assert all(plan.chunks and all(chunk.rows > 0 for chunk in plan.chunks) for plan in core.runner.plans)
    assert all(len(plan.chunks) <= core.scheduler.limits.seats for plan in core.runner.plans)


@settings(max_examples=60)
@given(st.data(), st.integers(1, 6), st.booleans())
def test_aborts_leave_the_others_and_the_blocks_alone(data, spare, prefix_cache):
    requests = data.draw(st.lists(st.one_of(plain, beams), min_size=2, max_size=6))
    needed = max(wanted.blocks_at_most(4) for wanted in requests)
    core = fake_core(blocks=needed + spare, token_budget=11, sequences=6, prefix_cache=prefix_cache)
    aborted = {}
    found = {}
    for place, wanted in enumerate(requests):
        core.submit(wanted, place)
    while core.has_work:
        for token in core.step():
            assert token.request not in aborted
            if token.result is not None:
                found[token.request, token.sample] = token.result
        if data.draw(st.integers(0, 4)) == 0:
            place = data.draw(st.integers(0, len(requests) - 1))
            core.abort(requests[place])
            aborted[place] = True
        core.scheduler.check()
    assert core.scheduler.pool.available == core.scheduler.pool.blocks
    for place, wanted in enumerate(requests):
        if place not in aborted:
            expected = naive(wanted)
            assert [
                (found[place, i].ids, found[place, i].finish_reason) for i in range(wanted.samples)
            ] == expected


def test_the_fake_model_notices_a_wrong_block():
    """Negative control of the tests above."""
    core = fake_core()
    core.submit(request(10, 5), 0)
    core.step()
    core.runner.blocks[0][0] = 39
    with pytest.raises(AssertionError):
        results(core)


# -- the budget ------------------------------------------------------------------------------------


def test_a_step_takes_decode_rows_first_and_fills_up_with_prefill():
    core = fake_core(token_budget=64)
    for place, length in enumerate((1, 1, 100, 50)):
        core.submit(request(length, seed=place), place)
    core.step()
    core.step()
    assert rows(core) == [[1, 1, 62], [1, 1, 38, 24]]


def test_a_sequence_that_decodes_gets_a_token_at_every_step_and_a_long_prompt_advances():
    core = fake_core(token_budget=8)
    core.submit(request(1, 8), 0)
    core.submit(request(100, 2, seed=1), 1)
    for _ in range(8):
        assert [token.request for token in core.step()] == [0]
    assert rows(core) == [[1, 7]] * 8


def test_no_more_sequences_run_than_a_step_has_tokens():
    core = fake_core(token_budget=3, sequences=100)
    for place in range(8):
        core.submit(request(1, 4, seed=place), place)
    while core.has_work:
        core.step()
        assert len(core.scheduler.running) <= 3


def test_at_most_the_permitted_sequences_run():
    core = fake_core(sequences=2)
    for place in range(5):
        core.submit(request(3, 4, seed=place), place)
    while core.has_work:
        core.step()
        assert len(core.scheduler.running) <= 2


# -- admission and preemption ----------------------------------------------------------------------


def test_admission_goes_by_the_blocks_that_are_free_and_not_by_the_worst_case():
    core = fake_core(blocks=8, block_size=4)
    for place in range(3):
        core.submit(request(8, 20, seed=place), place)  # 2 blocks now, 7 at the end
    core.step()
    assert len(core.scheduler.running) == 3


def test_a_large_request_is_not_overtaken_for_ever():
    """It waits for blocks at the head of the queue; small ones behind it wait with it."""
    core = fake_core(blocks=8, block_size=4)
    core.submit(request(8, 8), 0)
    core.submit(request(28, 2, seed=1), 1)
    for place in range(2, 10):
        core.submit(request(4, 4, seed=place), place)
    finished = []
    while core.has_work:
        finished += [token.request for token in core.step() if token.result is not None]
    assert finished[:2] == [0, 1]


def test_when_blocks_run_out_the_latest_gives_way_and_its_answer_stays_the_same():
    core = fake_core(blocks=7, block_size=4, prefix_cache=False)
    requests = [request(8, 15, seed=0), request(8, 15, seed=1)]
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    assert core.scheduler.preemptions > 0
    first_alone = next(i for i, plan in enumerate(core.runner.plans) if len(plan.chunks) == 1)
    assert core.runner.plans[first_alone].chunks[0].sequence.request is requests[0]


def test_the_lowest_priority_gives_way_though_it_came_first():
    core = fake_core(blocks=7, block_size=4, prefix_cache=False)
    requests = [request(8, 15), request(8, 15, seed=1, priority=1)]
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    first_alone = next(plan for plan in core.runner.plans if len(plan.chunks) == 1)
    assert first_alone.chunks[0].sequence.request is requests[1]


def test_a_preempted_request_finds_its_own_blocks_in_the_prefix_cache():
    core = fake_core(blocks=7, block_size=4)
    requests = [request(8, 15), request(8, 15, seed=1)]
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    again = [
        chunk
        for plan in core.runner.plans
        for chunk in plan.chunks
        if chunk.rows > 1 and chunk.sequence.request is requests[1]
    ]
    assert core.scheduler.preemptions > 0
    assert again[-1].past > 0  # recomputed from where the cache still reached


def test_priority_goes_before_arrival():
    core = fake_core(sequences=1)
    for place, priority in enumerate((0, 0, 2, 1)):
        core.submit(request(3, 2, seed=place, priority=priority), place)
    finished = []
    while core.has_work:
        finished += [token.request for token in core.step() if token.result is not None]
    assert finished == [2, 3, 0, 1]


def test_whoever_waits_long_enough_goes_before_a_higher_priority():
    core = fake_core(sequences=1)
    clock = core.scheduler.clock
    core.submit(request(3, 2), 0)
    clock.sleep_until(2.5 * PRIORITY_SECONDS)
    core.submit(request(3, 2, seed=1, priority=2), 1)
    core.submit(request(3, 2, seed=2, priority=3), 2)
    finished = []
    while core.has_work:
        finished += [token.request for token in core.step() if token.result is not None]
    assert finished == [2, 0, 1]


def test_beams_are_preempted_together_and_resume_with_shared_blocks():
    search = request(8, 20, seed=1, beams=BeamSearch(3))
    requests = [request(64, 20), search]
    core = fake_core(blocks=21, block_size=4, prefix_cache=False)
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    assert core.scheduler.preemptions > 0
    for plan in core.runner.plans:
        chosen = [chunk.logits for chunk in plan.chunks if chunk.sequence.request is search]
        assert sum(chosen) in (0, 1, 3)


# -- what can never run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (request(30, 12), "takes 11 cache blocks of 4 tokens with its output, and the cache has 10"),
        (request(8, 17, beams=BeamSearch(3)), "takes 14 cache blocks"),
        (request(4, 2, beams=BeamSearch(5)), "asks for 5 beams, and at most 4 sequences run at once"),
    ],
)
def test_a_request_that_can_never_run_is_refused_and_the_next_is_served(wanted, message):
    core = fake_core(blocks=10, block_size=4, sequences=4)
    with pytest.raises(InputError, match=message) as caught:
        core.submit(wanted, 0)
    assert "\n" not in str(caught.value)
    served = request(30, 11)  # the last output is not cached: exactly 10 blocks
    assert outputs(core, [served]) == [naive(served)]


# -- prefixes --------------------------------------------------------------------------------------


def test_a_whole_prompt_in_the_cache_still_computes_its_last_token():
    core = fake_core(block_size=4)
    first, same = request(12, 3), request(12, 3)
    assert outputs(core, [first]) == outputs(core, [same]) == [naive(first)]
    chunk = next(c for plan in core.runner.plans for c in plan.chunks if c.sequence.request is same)
    assert (chunk.past, chunk.rows) == (8, 4)


def test_results_tell_how_much_of_the_prompt_was_cached():
    core = fake_core(block_size=4)
    for place in (0, 1):
        core.submit(request(12, 3), place)
        [result] = results(core).values()
        assert result.cached_tokens == (0, 8)[place]


def test_without_prefix_cache_nothing_is_reused():
    core = fake_core(block_size=4, prefix_cache=False)
    for place in (0, 1):
        core.submit(request(12, 3), place)
        assert results(core)[place, 0].cached_tokens == 0


def test_outputs_can_be_reused_too():
    core = fake_core(block_size=4)
    [[(ids, _)]] = outputs(core, [request(8, 9)])
    core.submit(replace_prompt(request(8, 2), prompt(8) + ids), 0)
    [result] = results(core).values()
    assert result.cached_tokens == 16


def replace_prompt(wanted, tokens):
    return replace(wanted, prompt=tokens)


def test_a_prefix_is_shared_within_its_context_only():
    core = fake_core(block_size=4)
    outputs(core, [request(12, 3, context=b"admitted 4096")])
    core.submit(request(12, 3, context=b"admitted 8192"), 0)
    assert results(core)[0, 0].cached_tokens == 0


def test_two_equal_prompts_in_one_step_keep_their_own_blocks():
    core = fake_core(block_size=4)
    requests = [request(12, 6), request(12, 9)]
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    third = request(12, 6)
    assert outputs(core, [third]) == [naive(third)]


# -- samples ---------------------------------------------------------------------------------------


def test_samples_share_the_prompts_blocks():
    """8 samples of a prompt take at most 1.3 times its blocks, just after the prompt."""
    core = fake_core(blocks=200, block_size=16, prefix_cache=False)
    core.submit(request(512, 8, samples=8, sampling=Sampling(seed=5)), 0)
    core.step()
    core.step()
    pool = core.scheduler.pool
    assert len(core.scheduler.running) == 8
    assert pool.blocks - pool.available <= 1.3 * 32


def test_a_sample_is_what_its_seed_gives_alone():
    together = request(9, 6, samples=3, sampling=Sampling(seed=5))
    alone = [request(9, 6, sampling=Sampling(seed=5 + i)) for i in range(3)]
    [found] = outputs(fake_core(), [together])
    assert found == [output for [output] in outputs(fake_core(), alone)]


def test_samples_that_find_no_seat_wait_for_one():
    wanted = request(9, 6, samples=7, sampling=Sampling(seed=5))
    assert outputs(fake_core(sequences=3), [wanted]) == [naive(wanted)]
