"""Speculation on the native kernels: exact proposers leave tokens and logits as they are, bit for bit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.generate import Generator, collect, run
from ridgeline.engine.plan import Chunk
from ridgeline.engine.prompts import Requests
from ridgeline.engine.request import Request
from ridgeline.engine.runner import ModelRunner
from ridgeline.engine.sampling import GREEDY, Sampling
from ridgeline.engine.sequence import Sequence
from ridgeline.engine.speculation.beside import Beside
from ridgeline.engine.speculation.draft_model import DraftModel
from ridgeline.engine.speculation.length import AdaptiveLength, FixedLength
from ridgeline.engine.speculation.ngram import NGrams
from ridgeline.engine.speculation.proposer import Target
from ridgeline.engine.speculation.rules import Exact
from ridgeline.engine.speculation.sinks_and_window import SinksAndWindow
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.errors import InputError
from ridgeline.loading import Loaded
from ridgeline.models import load_config
from ridgeline.ops.batch import BLOCK_TOKENS, Span
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_batch import visible
from ridgeline.ops.torch_cpu import TorchCpu
from ridgeline.weights.generation import GenerationDefaults
from ridgeline.weights.pack import load_packed

VOCAB, WINDOW = 300, 256
TARGET = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
DRAFT = {**TARGET, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def target(make_twin):
    return make_twin("LlamaForCausalLM", **TARGET)


@pytest.fixture(scope="module")
def draft(make_twin):
    return make_twin("LlamaForCausalLM", **DRAFT)


def loaded(model, ops=None):
    return Loaded(model.config, model, ops or Cpu(), None, None, GenerationDefaults(), None)


#: Each proposer by its name, from what it drafts with and for. The target drafts for itself without error.
PROPOSERS = {
    "draft model": lambda draft, target: DraftModel(loaded(draft), loaded(target)),
    "target as its own draft model": lambda draft, target: DraftModel(loaded(target), loaded(target)),
    "draft model, beside": lambda draft, target: Beside(DraftModel(loaded(draft), loaded(target)), threads=1),
    "n-grams": lambda draft, target: NGrams(3, 1),
    "sinks and window": lambda draft, target: SinksAndWindow(sinks=4, window=40),
}


def some_prompt(length, seed):
    """Prompts of one seed begin alike."""
    return [(31 * i * i + 7 * i + 11 * seed) % (VOCAB - 2) + 2 for i in range(length)]


class Recorder:
    """Keeps the bytes of every row of logits under the tokens that led to it."""

    def __init__(self, core):
        self.run_step = core.runner.run
        self.rows = {}
        core.runner.run = self.run

    def run(self, plan):
        logits = self.run_step(plan)
        contexts = [context for chunk in plan.chunks for context in self.contexts(chunk)]
        for context, row in zip(contexts, logits, strict=True):
            bits = row.numpy().tobytes()
            assert self.rows.setdefault(context, bits) == bits
        return logits

    def contexts(self, chunk):
        tokens = (*chunk.sequence.tokens[: chunk.past + chunk.known], *chunk.proposal.tokens)
        return [tokens[: len(tokens) - i] for i in reversed(range(chunk.logits))]


def served(model, requests, **options):
    """The results of the requests together, the bits of their logits, and the core."""
    core = Generator(model, Cpu(), Requests(model.config), **options).start(requests)
    recorder = Recorder(core)
    return collect(run(core)), recorder.rows, core


wishes = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.builds(some_prompt, st.integers(1, 150), st.integers(0, 1)),
            "max_tokens": st.integers(1, 40),
            "n": st.sampled_from([1, 1, 3]),
            "stop_ids": st.sampled_from([(), range(20)]),
            "sampling": st.builds(
                replace,
                st.sampled_from(
                    [GREEDY, Sampling(), Sampling(0.7, top_k=9), Sampling(0.8, repetition_penalty=1.3)]
                ),
                seed=st.integers(0, 4),
            ),
        }
    ),
    min_size=1,
    max_size=5,
)
lengths = st.sampled_from([FixedLength(1), FixedLength(4), FixedLength(7)])


@pytest.mark.parametrize("proposer", PROPOSERS)
@settings(max_examples=12)
@given(wishes, st.integers(8, 200), st.integers(0, 5), st.integers(1, 8), st.booleans(), lengths)
def test_tokens_and_logits_have_the_bits_of_the_plain_run(
    target, draft, proposer, wished, budget, spare, sequences, prefix_cache, length
):
    """In any batch, chunks, with prefixes and preemptions; alone, without any of it, is the plain run."""
    model = target.packed
    requests = [Requests(model.config).make(**wish) for wish in wished]
    longest = max(request.blocks_at_most(BLOCK_TOKENS) for request in requests) + spare
    results, rows, _ = served(
        model,
        requests,
        token_budget=budget,
        sequences=sequences,
        prefix_cache=prefix_cache,
        cache_tokens=longest * BLOCK_TOKENS,
        speculator=Speculator(PROPOSERS[proposer](draft.packed, model), length=length),
    )
    alone, expected = [], {}
    for request in requests:
        plain, bits, _ = served(model, [request], prefix_cache=False)
        alone += plain
        expected |= bits
    assert [(r.ids, r.finish_reason) for r in results] == [(r.ids, r.finish_reason) for r in alone]
    assert all(rows[tokens] == bits for tokens, bits in expected.items())


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4-g32"])
@pytest.mark.parametrize("proposer", PROPOSERS)
def test_every_format_has_the_bits_of_the_plain_run(target, draft, proposer, weights):
    """With preemption forced."""
    model = load_packed(load_config(target.folder), target.folder, weights)
    make = Requests(model.config).make
    samplings = [GREEDY, Sampling(), Sampling(0.7, top_p=0.9), GREEDY]
    requests = [
        make(some_prompt(40, seed % 2), max_tokens=60, sampling=sampling)
        for seed, sampling in enumerate(samplings)
    ]
    free, expected, _ = served(model, requests, prefix_cache=False)
    speculator = Speculator(PROPOSERS[proposer](draft.packed, model), length=FixedLength(3))
    tight, rows, core = served(model, requests, cache_tokens=11 * BLOCK_TOKENS, speculator=speculator)
    assert core.scheduler.preemptions > 0
    assert speculator.report.proposed > 0
    assert [result.ids for result in tight] == [result.ids for result in free]
    assert all(rows[tokens] == bits for tokens, bits in expected.items())


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_the_adaptive_length_changes_no_token_either(target, draft, proposer):
    prompts = [some_prompt(30, seed) for seed in range(3)]
    plain = Generator(target.packed, Cpu(), Requests(target.packed.config))
    speculator = Speculator(PROPOSERS[proposer](draft.packed, target.packed), length=AdaptiveLength(5))
    speculating = Generator(target.packed, Cpu(), Requests(target.packed.config), speculator=speculator)
    for _ in range(2):
        expected = [result.ids for result in plain.generate(prompts, max_tokens=60)]
        assert [result.ids for result in speculating.generate(prompts, max_tokens=60)] == expected


def test_greedy_tokens_are_the_argmax_of_the_reference_pass_by_pass(target, draft):
    model, ops = target.packed, Reference()
    tokens = some_prompt(20, 0)
    speculator = Speculator(DraftModel(loaded(draft.packed), loaded(model)), length=FixedLength(4))
    [result] = Generator(model, Cpu(), Requests(model.config), speculator=speculator).generate(
        tokens, max_tokens=30
    )
    for _ in range(30):
        tokens.append(int(model.forward(ops, ops.batch(tokens, [Span(len(tokens))])).argmax()))
    assert list(result.ids) == tokens[20:]


def test_on_pytorchs_operators_the_target_drafts_for_itself_too(target):
    """Blocks of another size, and another reading's positions."""
    model, ops = target.ours, TorchCpu(torch.float32)
    prompt = some_prompt(60, 0)
    plain = Generator(model, ops, Requests(model.config), block_size=8)
    speculator = Speculator(SinksAndWindow(sinks=8, window=32), length=FixedLength(3))
    drafted = Generator(model, ops, Requests(model.config), block_size=8, speculator=speculator)
    [expected], [found] = plain.generate(prompt, max_tokens=40), drafted.generate(prompt, max_tokens=40)
    assert found.ids == expected.ids
    assert speculator.report.accepted > 0


# -- the draft model -------------------------------------------------------------------------------


def chunk_of(sequence, room):
    return Chunk(sequence, 1, len(sequence.tokens) - 1, (), 1, room)


def drafts_for(model, sequence, tokens, proposer):
    """What the draft gives, and what it ought to: the greedy continuation by whole passes."""
    ops, expected = Reference(), list(sequence.tokens)
    for _ in range(tokens):
        expected.append(int(model.forward(ops, ops.batch(expected, [Span(len(expected))])).argmax()))
    [proposal] = proposer.propose([chunk_of(sequence, tokens)], Target(None, Exact()))
    return proposal.tokens, tuple(expected[len(sequence.tokens) :])


def test_the_drafts_cache_follows_rejections_and_full_acceptance(target, draft):
    """After each of them the draft is that of a whole pass over the tokens: nothing is stale or missing."""
    proposer = DraftModel(loaded(draft.packed), loaded(target.packed))
    sequence = Sequence(Request(tuple(some_prompt(33, 0)), 100))
    for accepted in (4, 0, 2, 4, 4, 1, 3, 0, 4):
        found, expected = drafts_for(draft.packed, sequence, 4, proposer)
        assert found == expected
        sequence.tokens += [*found[:accepted], 5]
        proposer.pool.check()
    proposer.forget(sequence)
    assert proposer.pool.available == proposer.pool.blocks


def test_a_draft_model_is_recorded_before_its_first_draft(target, draft):
    """So that no step's time holds it."""
    ops = Cpu()
    proposer = DraftModel(loaded(draft.packed, ops), loaded(target.packed))
    recorded = dict(ops._replays)
    assert recorded
    sequence = Sequence(Request(tuple(some_prompt(60, 0)), 100))
    drafts_for(draft.packed, sequence, 4, proposer)
    assert ops._replays == recorded


def test_the_drafts_cache_follows_a_guess_that_is_taken_back(target, draft):
    proposer = DraftModel(loaded(draft.packed), loaded(target.packed))
    sequence = Sequence(Request(tuple(some_prompt(33, 0)), 100))
    for tokens in (some_prompt(33, 0), some_prompt(70, 0), some_prompt(40, 0), some_prompt(70, 0), [3, 4]):
        sequence.tokens = list(tokens)
        found, expected = drafts_for(draft.packed, sequence, 4, proposer)
        assert found == expected
        proposer.pool.check()


def test_a_draft_that_missed_many_tokens_catches_up(target, draft):
    proposer = DraftModel(loaded(draft.packed), loaded(target.packed))
    sequence = Sequence(Request(tuple(some_prompt(3, 0)), 100))
    for more in (0, 1, 40, 17, 0):
        sequence.tokens += some_prompt(more, 1)
        found, expected = drafts_for(draft.packed, sequence, 3, proposer)
        assert found == expected


def test_beyond_its_window_a_draft_model_proposes_nothing(target, make_twin):
    short = make_twin("LlamaForCausalLM", **{**DRAFT, "max_position_embeddings": 48})
    proposer = DraftModel(loaded(short.packed), loaded(target.packed))
    proposals = [
        proposer.propose([chunk_of(Sequence(Request(tuple(some_prompt(n, 0)), 9)), 4)], Target(None, Exact()))
        for n in (40, 45, 46, 100)
    ]
    assert [len(proposal.tokens) for [proposal] in proposals] == [4, 4, 0, 0]
    prompt = some_prompt(30, 0)
    plain = Generator(target.packed, Cpu(), Requests(target.packed.config))
    speculator = Speculator(proposer, length=FixedLength(4))
    drafted = Generator(target.packed, Cpu(), Requests(target.packed.config), speculator=speculator)
    assert [r.ids for r in plain.generate(prompt, max_tokens=60)] == [
        r.ids for r in drafted.generate(prompt, max_tokens=60)
    ]


def test_a_draft_without_room_lets_those_go_that_were_not_asked_for_longest(target, draft):
    proposer = DraftModel(loaded(draft.packed), loaded(target.packed), blocks=3)
    first, second = (Sequence(Request(tuple(some_prompt(n, 0)), 100)) for n in (40, 30))
    rule = Target(None, Exact())
    assert proposer.propose([chunk_of(first, 4)], rule)[0].tokens
    assert proposer.propose([chunk_of(second, 4)], rule)[0].tokens  # in the blocks of the first
    both = proposer.propose([chunk_of(first, 4), chunk_of(second, 4)], rule)
    assert [len(proposal.tokens) for proposal in both] == [0, 4]
    proposer.pool.check()


def test_drafts_are_batched_over_all_sequences(target, draft):
    proposer = DraftModel(loaded(draft.packed), loaded(target.packed))
    sequences = [Sequence(Request(tuple(some_prompt(n, 0)), 100)) for n in (9, 14, 5)]
    chunks = [chunk_of(s, room) for s, room in zip(sequences, (4, 2, 3), strict=True)]
    proposer.propose(chunks, Target(None, Exact()))
    passes, run_pass = [], proposer._model.ops.run

    def counted(model, ids, spans, **options):
        passes.append(len(spans))
        return run_pass(model, ids, spans, **options)

    for sequence in sequences:
        sequence.tokens.append(7)
    proposer._model.ops.run = counted
    proposer.propose(chunks, Target(None, Exact()))
    assert passes == [3, 3, 2, 1]


def test_a_draft_of_another_vocabulary_is_refused(target, make_twin):
    other = make_twin("LlamaForCausalLM", **{**DRAFT, "vocab_size": 310})
    with pytest.raises(
        InputError, match=r"has 310 tokens and .* has 300: use a draft of the same vocabulary"
    ):
        DraftModel(loaded(other.packed), loaded(target.packed))


def test_a_draft_of_another_tokenizer_is_refused(target, tokenizer):
    class Other:
        def token(self, token_id):
            return "?" if token_id == 7 else tokenizer.token(token_id)

    ours = replace(loaded(target.packed), tokenizer=tokenizer)
    with pytest.raises(InputError, match="mean different tokens by 7"):
        DraftModel(replace(ours, tokenizer=Other()), ours)
    DraftModel(ours, ours)


# -- sinks and window ------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [True, False])
def test_the_targets_view_is_attention_to_sinks_and_window(target, monkeypatch, native):
    """Its token is that of a whole pass whose last row sees but those keys, all in their places."""
    ops, model = (Cpu(), target.packed) if native else (TorchCpu(torch.float32), target.ours)
    tokens, table = some_prompt(200, 0), tuple(range(7, -1, -1))
    cache = ops.alloc_cache(model.cache_spec("fp32", BLOCK_TOKENS), 8)
    ops.run(model, tokens[:-1], [Span(199, table=table)], cache=cache)
    chunk = Chunk(Sequence(Request(tuple(tokens), 9)), 1, 199, table, 1, 1)
    view = Target(ModelRunner(model, ops, cache), Exact())
    [proposal] = SinksAndWindow(sinks=20, window=70).propose([chunk], view)
    [whole] = SinksAndWindow(sinks=20, window=200).propose([chunk], view)

    def seen(mask, rows, keys, device):
        found = visible(mask, rows, keys, device)
        found[-1, 32:128] = False  # whole blocks are left out
        return found

    reference, pass_of_all = Reference(), Span(len(tokens))
    assert whole.tokens == (int(reference.run(target.ours, tokens, [pass_of_all]).argmax()),)
    monkeypatch.setattr("ridgeline.ops.reference.visible", seen)
    assert proposal.tokens == (int(reference.run(target.ours, tokens, [pass_of_all]).argmax()),)
    assert proposal.tokens != whole.tokens


def test_a_context_within_sinks_and_window_is_drafted_without_error(target):
    speculator = Speculator(SinksAndWindow(sinks=32, window=256), length=FixedLength(3))
    generator = Generator(target.packed, Cpu(), Requests(target.packed.config), speculator=speculator)
    generator.generate(some_prompt(50, 0), max_tokens=40)
    assert speculator.report.acceptance == 1


@pytest.mark.parametrize("option", ["sinks", "window"])
def test_a_view_of_nothing_is_refused(option):
    with pytest.raises(InputError, match=option):
        SinksAndWindow(**{option: 0})
