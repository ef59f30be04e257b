"""Drafting beside verification: the same tokens, proposals that come in time, and no thread that stays."""

import gc
import random
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.engine import Engine
from ridgeline.engine.generate import Generator
from ridgeline.engine.plan import NOTHING, Proposal
from ridgeline.engine.prompts import Requests
from ridgeline.engine.result import Failure
from ridgeline.engine.sampling import GREEDY, Sampling
from ridgeline.engine.speculation.beside import Beside
from ridgeline.engine.speculation.draft_model import DraftModel
from ridgeline.engine.speculation.length import AdaptiveLength, FixedLength, Step, StepCosts
from ridgeline.engine.speculation.report import Tally
from ridgeline.engine.speculation.rules import Rejection
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.errors import InputError
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_cpu import TorchCpu
from tests.engine.fake_model import VOCAB, fake_core, naive, results
from tests.engine.proposers import Replaying
from tests.engine.test_speculation import Wavering, known, outputs, plain, request
from tests.engine.test_speculation_models import DRAFT, TARGET, loaded, some_prompt


def drafting_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ridgeline-draft")]


@pytest.fixture(autouse=True)
def _no_thread_stays():
    yield
    gc.collect()
    deadline = time.monotonic() + 10
    while drafting_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not drafting_threads()


class Watched:
    """A proposer that notes in which threads it is asked, and for how many tokens."""

    def __init__(self, proposer):
        self.proposer = proposer
        self.threads, self.rooms = set(), []
        self.asked = threading.Event()

    def propose(self, chunks, target):
        self.threads.add(threading.current_thread().name)
        self.rooms.append([chunk.room for chunk in chunks])
        found = self.proposer.propose(chunks, target)
        self.asked.set()
        return found

    def forget(self, sequence):
        self.proposer.forget(sequence)


def watching(requests, acceptance=1.0, tokens=4):
    watched = Watched(Replaying(known(requests), acceptance, VOCAB))
    return watched, Speculator(Beside(watched), length=FixedLength(tokens))


# -- the same tokens -------------------------------------------------------------------------------


class Hesitating(Wavering):
    """Takes its time now and then, so that drafts ahead are interrupted anywhere."""

    def propose(self, chunks, target):
        if self.draw.random() < 0.1:
            time.sleep(0.001)
        return super().propose(chunks, target)


@settings(max_examples=60)
@given(st.lists(plain, min_size=1, max_size=5), st.data(), st.integers(1, 40), st.integers(1, 7))
def test_answers_are_those_without_proposals(requests, data, budget, tokens):
    """In any batch and any chunks, with samples and preemptions."""
    needed = max(wanted.blocks_at_most(4) for wanted in requests)
    proposer = Hesitating(known(requests), data.draw(st.integers(0, 99)))
    core = fake_core(
        blocks=needed + data.draw(st.integers(0, 10)),
        token_budget=budget,
        speculator=Speculator(Beside(proposer), length=FixedLength(tokens)),
    )
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    core.speculator.close()


@pytest.fixture(scope="module")
def target(make_twin):
    return make_twin("LlamaForCausalLM", **TARGET)


@pytest.fixture(scope="module")
def draft(make_twin):
    return make_twin("LlamaForCausalLM", **DRAFT)


@pytest.mark.parametrize(
    ("reading", "threads"), [("cpu", None), ("cpu", 1), ("cpu", 2), ("torch-cpu", 1), ("reference", 1)]
)
@pytest.mark.parametrize("own", [False, True], ids=["another draft", "the target itself"])
def test_a_draft_on_any_reading_leaves_the_tokens_as_they_are(target, draft, reading, own, threads):
    model = target.packed
    twin = target if own else draft
    drafting = {
        "cpu": lambda: loaded(twin.packed),
        "torch-cpu": lambda: loaded(twin.ours, TorchCpu(torch.float32)),
        "reference": lambda: loaded(twin.ours, Reference()),
    }[reading]()
    proposer = DraftModel(drafting, loaded(model))
    speculator = Speculator(Beside(proposer, threads=threads), length=FixedLength(3))
    prompts = [some_prompt(30, seed) for seed in range(3)]
    for sampling in (GREEDY, Sampling(0.8, seed=2)):
        expected = Generator(model, Cpu(), Requests(model.config)).generate(
            prompts, max_tokens=40, sampling=sampling
        )
        found = Generator(model, Cpu(), Requests(model.config), speculator=speculator).generate(
            prompts, max_tokens=40, sampling=sampling
        )
        assert [result.ids for result in found] == [result.ids for result in expected]
    speculator.close()
    assert speculator.report.proposed > 0
    if own:
        assert speculator.report.acceptance > 0.95
    assert proposer.pool.available == proposer.pool.blocks
    proposer.pool.check()


def test_the_rejection_rule_gets_the_probabilities_of_what_was_drafted_ahead(target):
    """Draft and target are the same, so everything is accepted."""
    model = target.packed
    proposer = DraftModel(loaded(model), loaded(model))
    speculator = Speculator(Beside(proposer), rule=Rejection(), length=FixedLength(3))
    generator = Generator(model, Cpu(), Requests(model.config), speculator=speculator)
    for sampling in (GREEDY, Sampling(0.7, seed=5)):
        [result] = generator.generate(some_prompt(20, 0), max_tokens=60, sampling=sampling)
        assert len(result.ids) <= 60
    speculator.close()
    assert speculator.report.acceptance == 1


# -- beside verification ---------------------------------------------------------------------------


def test_what_is_accepted_whole_was_drafted_ahead():
    requests = [request(10, 21)]
    watched, speculator = watching(requests)
    core = fake_core(speculator=speculator)
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    speculator.close()
    assert [plan.rows for plan in core.runner.plans] == [10, 5, 5, 5, 5]
    assert watched.rooms[0] == [4]  # the first proposal; from then on it drafts on, token by token
    assert all(rooms == [1] for rooms in watched.rooms[1:])
    assert len(watched.threads) == 1
    assert threading.current_thread().name not in watched.threads
    ready = [chunk.proposal.ready for plan in core.runner.plans for chunk in plan.chunks]
    assert ready == [False, False, True, True, True]


def test_it_drafts_while_the_target_verifies():
    requests = [request(10, 21)]
    watched, speculator = watching(requests)
    core = fake_core(speculator=speculator)
    run, waited = core.runner.run, []

    def run_when_drafted_on(plan):
        if plan.chunks[0].proposal.tokens and len(waited) < 3:
            watched.asked.clear()
            waited.append(len(watched.rooms) > 1 or watched.asked.wait(10))
        return run(plan)

    core.runner.run = run_when_drafted_on
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    speculator.close()
    assert waited == [True, True, True]


def test_what_was_rejected_is_not_drafted_on_for():
    """Long drafts ahead, of which the engine wants nothing, cost it a token's time at most."""
    requests = [request(10, 40)]
    slow = threading.Event()

    class Slow(Replaying):
        def propose(self, chunks, target):
            if chunks[0].room == 1:
                slow.wait(0.02)
            return super().propose(chunks, target)

    speculator = Speculator(Beside(Slow(known(requests), 0.0, VOCAB)), length=FixedLength(30))
    core = fake_core(speculator=speculator)
    core.submit(requests[0], 0)
    begun = time.monotonic()
    found = results(core)
    assert time.monotonic() - begun < 10  # whole drafts would take 23 seconds
    assert found[0, 0].ids == naive(requests[0])[0][0]
    speculator.close()


def test_of_a_batch_some_are_ready_and_some_are_drafted_anew():
    requests = [request(10, 24), request(10, 24, seed=1), request(7, 24, seed=2)]
    outputs_known, draw = known(requests), random.Random(3)

    class Uneven(Replaying):
        """Right about the first, wrong about the second, and of the third there is nothing."""

        def propose(self, chunks, target):
            found = []
            for chunk, proposal in zip(chunks, super().propose(chunks, target), strict=True):
                number = requests.index(chunk.sequence.request)
                wrong = tuple(draw.randrange(VOCAB) for _ in proposal.tokens)
                found.append((proposal, Proposal(wrong), NOTHING)[number])
            return found

    speculator = Speculator(Beside(Uneven(outputs_known, 1.0, VOCAB)), length=FixedLength(3))
    core = fake_core(speculator=speculator)
    assert outputs(core, requests) == [naive(wanted) for wanted in requests]
    speculator.close()
    first = [c.proposal for p in core.runner.plans for c in p.chunks if c.sequence.request is requests[0]]
    assert all(proposal.ready for proposal in first[2:])


# -- its end ---------------------------------------------------------------------------------------


def test_an_engine_that_closes_ends_the_thread(target):
    model = target.packed
    speculator = Speculator(
        Beside(DraftModel(loaded(model), loaded(model)), threads=1), length=FixedLength(3)
    )
    with Engine(loaded(model), cache_tokens=2048, speculator=speculator) as engine:
        stream = engine.tokens(some_prompt(20, 0), max_tokens=200)
        for _ in range(10):
            next(stream)
        assert drafting_threads()
    assert not drafting_threads()
    speculator.close()  # again


def test_what_goes_wrong_while_drafting_ahead_fails_its_requests_and_the_next_are_served():
    requests = [request(10, 20), request(10, 20, seed=1)]

    class Failing(Replaying):
        broken = True

        def propose(self, chunks, target):
            if self.broken and chunks[0].room == 1:
                raise RuntimeError("the draft's device is gone")
            return super().propose(chunks, target)

    proposer = Failing(known(requests), 1.0, VOCAB)
    core = fake_core(speculator=Speculator(Beside(proposer), length=FixedLength(3)))
    core.submit(requests[0], 0)
    events = []
    while core.has_work:
        events += core.step()
    assert isinstance(events[-1], Failure)
    assert "device is gone" in str(events[-1].error)
    proposer.broken = False
    core.submit(requests[1], 0)
    assert results(core)[0, 0].ids == naive(requests[1])[0][0]
    core.speculator.close()
    assert len(proposer.forgotten) == 2


@pytest.mark.parametrize("threads", [0, -1, 1025, 1.5, True])
def test_a_number_of_threads_that_cannot_be_is_refused(threads):
    with pytest.raises(InputError, match=r"^draft_threads is .* from 1 to 1024"):
        Beside(None, threads=threads)


# -- what it costs ---------------------------------------------------------------------------------


def step(k, *, ready, draft=0.0, plain=False):
    rows = 1 if plain else 1 + k
    lengths = () if plain else (k,)
    return Step(1, rows, rows, lengths, len(lengths) * k, len(lengths) * k, draft, 1.0, ready=ready)


def test_a_proposal_that_was_ready_has_no_draft_to_pay():
    costs, tally = StepCosts(), Tally()
    played = [step(0, ready=False, plain=True)] * 3 + [step(3, ready=False, draft=0.9)]
    for found in (*played, *[step(3, ready=True)] * 6):
        costs.learn(found)
        tally.add(found)
    assert costs.drafts_ahead
    assert costs.drafting(1, 3) == pytest.approx(0.9)
    tally.add_trials([], 0.0)
    tally._judged = tally._accepted = 21
    report = tally.report(costs)
    assert report.measured_gain == pytest.approx(31 / 10.9)
    assert report.predicted_gain == pytest.approx(31 / 10.9)


def test_a_draft_as_slow_as_the_target_pays_only_beside_it():
    chosen = []
    for ready in (False, True):
        costs, length = StepCosts(), AdaptiveLength()
        for found in [step(0, ready=False, plain=True)] * 3 + [step(2, ready=False, draft=2.0)] * 2:
            costs.learn(found)
            length.learn(found, costs)
        for _ in range(4):
            found = step(2, ready=ready, draft=0.0 if ready else 2.0)
            costs.learn(found)
            length.learn(found, costs)
        length._judged, length._accepted = 100.0, 80.0
        length._best.clear()
        chosen.append(length.limit(1, costs).tokens)
    assert chosen == [0, 1]
