"""Speculation of the shipped pair by name, through the generator, the engine and the terminal."""

from io import StringIO

import pytest
from rich.console import Console

import ridgeline
from ridgeline.engine.sampling import GREEDY, Sampling
from ridgeline.engine.speculation.beside import Beside
from ridgeline.engine.speculation.choice import choose
from ridgeline.engine.speculation.draft_model import DraftModel
from ridgeline.engine.speculation.length import FixedLength
from ridgeline.engine.speculation.rules import Lossy, Rejection
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.errors import InputError
from ridgeline.report.tables import show_stream

PROMPT = "def fibonacci(n):\n"


@pytest.fixture(scope="module")
def demo():
    return ridgeline.load("demo")


@pytest.fixture(scope="module")
def draft():
    return ridgeline.load("demo-draft")


@pytest.mark.parametrize("name", ["off", "ngram", "self", "draft", "draft:demo-draft"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_p=0.95, seed=3)], ids=["greedy", "sampled"])
def test_every_choice_leaves_the_demos_output_as_it_is(demo, name, sampling):
    [plain] = demo.generate(PROMPT, max_tokens=60, sampling=sampling)
    [found] = demo.generator(speculator=choose(name, demo)).generate(PROMPT, max_tokens=60, sampling=sampling)
    assert (found.ids, found.text) == (plain.ids, plain.text)


@pytest.mark.parametrize(
    ("weights", "threads"), [("int4-g128", None), ("fp16", None), ("int8", 1), ("fp16", 1), ("random", 1)]
)
def test_a_draft_may_have_other_weights_another_reading_and_threads_of_its_own(demo, weights, threads):
    sampling = Sampling(0.8, top_p=0.95, seed=3)
    [plain] = demo.generate(PROMPT, max_tokens=60, sampling=sampling)
    speculator = choose("draft", demo, draft_weights=weights, draft_threads=threads)
    [found] = demo.generator(speculator=speculator).generate(PROMPT, max_tokens=60, sampling=sampling)
    assert (found.ids, found.text) == (plain.ids, plain.text)
    assert isinstance(speculator.proposer, DraftModel if threads is None else Beside)
    speculator.close()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ngram", {"draft_threads": 1}, "draft_threads goes with a draft model, and speculate is 'ngram'"),
        ("off", {"draft_weights": "int8"}, "draft_weights goes with a draft model, and speculate is 'off'"),
        ("ngram", {"draft_device": "cuda"}, "draft_device goes with a draft model, and speculate is 'ngram'"),
        ("draft", {"draft_device": "tpu"}, "device is 'tpu'; choose one of: cpu, cuda"),
        ("draft", {"draft_threads": 0}, "draft_threads is 0; give a whole number from 1 to 1024"),
        ("draft", {"draft_weights": "int3"}, "weights is 'int3', expected auto, random"),
        ("draft:gpt2", {"draft_weights": "random:bf16"}, "has 50257 tokens and demo has 4096"),
    ],
)
def test_options_of_a_draft_that_cannot_be_are_refused(demo, name, options, message):
    with pytest.raises(InputError, match=message):
        choose(name, demo, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("much", "speculate is 'much', expected off, ngram, self, draft or draft:MODEL"),
        ("ngram:4", "speculate is 'ngram:4'"),
        ("draft:gpt2", "the draft gpt2 is a built-in config, .* give a folder or a hub id$"),
        ("draft:", "speculate is 'draft:', expected off, ngram, self, draft or draft:MODEL"),
        ("draft:no/such/model", "no/such/model"),
    ],
)
def test_a_name_that_is_no_choice_is_refused(demo, name, message):
    with pytest.raises(InputError, match=message):
        choose(name, demo)


def test_a_model_that_ships_with_no_draft_wants_one_named(draft):
    with pytest.raises(InputError, match="demo-draft ships with no draft: name a model of its vocabulary"):
        choose("draft", draft)


def test_off_is_no_speculator(demo):
    assert choose("off", demo) is None


def test_an_engine_reports_what_speculation_did(demo, draft):
    speculator = Speculator(DraftModel(draft, demo), length=FixedLength(3))
    with ridgeline.Engine(demo, speculator=speculator) as engine, ridgeline.Engine(demo) as plain:
        prompts = [PROMPT, "import os\n", "class Stack:\n"]
        results = engine.generate(prompts, max_tokens=40)
        assert [r.ids for r in results] == [r.ids for r in plain.generate(prompts, max_tokens=40)]
        report = engine.speculation
        assert plain.speculation is None
    assert report.proposed >= report.judged >= report.accepted > 0
    assert report.acceptance > 0.3
    assert 1 < report.tokens_per_trial <= 4
    assert speculator.proposer.pool.available == speculator.proposer.pool.blocks


@pytest.mark.parametrize("rule", [Rejection(), Lossy(0.3)], ids=["rejection", "lossy"])
def test_the_other_rules_generate_too(demo, draft, rule):
    speculator = Speculator(DraftModel(draft, demo), rule=rule, length=FixedLength(3))
    generator = demo.generator(speculator=speculator)
    [first] = generator.generate(PROMPT, max_tokens=40, sampling=Sampling(0.8, top_k=50))
    [again] = generator.generate(PROMPT, max_tokens=40, sampling=Sampling(0.8, top_k=50))
    assert first.ids == again.ids  # of a fixed length: the noise is the seed's
    assert len(first.ids) <= 40
    assert speculator.report.accepted > 0


def test_a_stream_that_is_left_early_is_forgotten(demo, draft):
    proposer = DraftModel(draft, demo)
    generator = demo.generator(speculator=Speculator(proposer, length=FixedLength(3)))
    stream = generator.stream(PROMPT, max_tokens=60)
    for _ in range(5):
        next(stream)
    assert proposer.pool.available < proposer.pool.blocks
    stream.close()
    assert proposer.pool.available == proposer.pool.blocks


def test_the_terminal_shows_how_often_proposals_were_right(demo, draft):
    console = Console(file=StringIO(), width=200)
    speculator = Speculator(DraftModel(draft, demo), length=FixedLength(3))
    show_stream(console, demo.generator(speculator=speculator), PROMPT, max_tokens=30)
    report = speculator.report
    shown = console.file.getvalue()
    assert f"{report.accepted:,} of {report.proposed:,} proposed tokens accepted" in shown
    console = Console(file=StringIO(), width=200)
    show_stream(console, demo.generator(speculator=choose("ngram", demo)), PROMPT, max_tokens=1)
    assert "Nothing was proposed." in console.file.getvalue()
