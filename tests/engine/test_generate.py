"""Generation: the right tokens, whatever else is in the batch and however the prompt is cut."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.generate import Generator, schedule
from ridgeline.engine.request import GREEDY, Request, Sampling
from ridgeline.errors import InputError
from ridgeline.models import load_config
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.protocol import Span
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_cpu import TorchCpu
from ridgeline.weights.pack import load_packed

WINDOW = 128
VOCAB = 300

LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
FAMILIES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": {**LLAMA, "sliding_window": 9},
    "GPT2LMHeadModel": {
        "vocab_size": VOCAB,
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": WINDOW,
        "bos_token_id": 1,
        "eos_token_id": 0,
    },
}


@pytest.fixture(scope="module")
def twin(make_twin):
    return make_twin("LlamaForCausalLM", **LLAMA)


@pytest.fixture(scope="module")
def model(twin):
    return twin.packed


@pytest.fixture(scope="module")
def make(model):
    """A generator for the tiny Llama without a tokenizer; options as Generator's."""

    def make(tokenizer=None, **options):
        return Generator(model, Cpu(attention_format="fp32"), tokenizer, **options)

    return make


def some_prompt(length, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(2, VOCAB, (length,), generator=generator).tolist()


# -- the right tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", FAMILIES)
def test_greedy_tokens_are_the_argmax_of_the_reference_pass_by_pass(make_twin, architecture):
    """Each token from a full pass of the reference reading over all tokens before, without a cache."""
    model, ops = make_twin(architecture, **FAMILIES[architecture]).packed, Reference()
    tokens = some_prompt(20)
    [result] = Generator(model, Cpu()).generate(tokens, max_tokens=30)
    for _ in range(30):
        logits = model.forward(ops, ops.batch(tokens, [Span(len(tokens))]))
        tokens.append(int(logits.argmax()))
    assert list(result.ids) == tokens[20:]


def test_greedy_tokens_are_those_of_transformers(twin, make):
    prompt = some_prompt(17)
    theirs = twin.theirs.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=40, eos_token_id=None, pad_token_id=0
    )
    [result] = make().generate(prompt, max_tokens=40)
    assert list(result.ids) == theirs[0, 17:].tolist()


@pytest.mark.parametrize("token_budget", [1, 2, 7, 31, 512])
def test_cutting_the_prompt_does_not_change_the_tokens(make, token_budget):
    prompt = some_prompt(60)
    [whole] = make().generate(prompt, max_tokens=10)
    [cut] = make(token_budget=token_budget).generate(prompt, max_tokens=10)
    assert cut.ids == whole.ids


wishes = st.lists(
    st.tuples(
        st.integers(1, 70),
        st.integers(1, 12),
        st.sampled_from([GREEDY, Sampling(), Sampling(0.7, top_k=9), Sampling(1.1, top_p=0.9)]),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=30)
@given(
    wishes,
    st.integers(1, 90),
    st.sampled_from([1, 4, 16]),
    st.integers(0, 200),
)
def test_a_request_gives_the_same_tokens_in_any_company(make, wished, token_budget, block_size, spare):
    """Mixed lengths and options, in a batch that may have to wait for budget and for blocks."""

    def requests(generator):
        return [
            generator.request(some_prompt(n), max_tokens=m, sampling=replace(s, seed=seed), stop_ids=[3, 4])
            for n, m, s, seed in wished
        ]

    longest = max(n + m + block_size for n, m, _, _ in wished)
    generator = make(token_budget=token_budget, block_size=block_size, cache_tokens=longest + spare)
    together = requests(generator)
    run = generator.start(together)
    while run.waiting or run.running:
        step_checks(run)
    alone = requests(make())
    for request in alone:
        list(make().start([request]))
    assert [r.output for r in together] == [r.output for r in alone]
    assert [r.finish_reason for r in together] == [r.finish_reason for r in alone]
    assert run.pool.available == run.pool.blocks


def step_checks(run):
    """One step, within the budget, with no block lost and every block in use by a running request."""
    before = sum(r.computed for r in run.outputs)
    tokens = run.step()
    computed = sum(r.computed for r in run.outputs) - before
    assert 1 <= computed <= run.generator.token_budget
    run.pool.check()
    assert run.pool.blocks - run.pool.available == sum(
        run.pool.blocks_for(r.cached_at_most) for r in run.running
    )
    assert len({token.request for token in tokens}) == len(tokens)


def test_the_company_does_change_the_steps(make):
    """Negative control: the test above compares batches that really differ."""
    generator = make(token_budget=24)
    run = generator.start([generator.request(some_prompt(n), max_tokens=4) for n in (30, 5, 12)])
    sizes = []
    while run.waiting or run.running:
        sizes.append([(c.rows, c.request.computed) for c in schedule(run.running or run.waiting, 24)])
        run.step()
    assert sizes[:2] == [[(24, 0)], [(6, 24), (5, 0), (12, 0)]]


# -- the schedule ----------------------------------------------------------------------------------


def running(*pending):
    return [Request(tuple(range(n)), 5) for n in pending]


def rows(chunks):
    return [chunk.rows for chunk in chunks]


def test_a_step_takes_decode_rows_and_fills_up_with_prefill():
    assert rows(schedule(running(1, 1, 100, 50), 64)) == [1, 1, 62]
    assert rows(schedule(running(1, 1, 10, 50), 64)) == [1, 1, 10, 50]


def test_a_request_that_decodes_gets_a_token_at_every_step(make):
    generator = make(token_budget=8)
    short, long = generator.request([5], max_tokens=8), generator.request(some_prompt(100), max_tokens=2)
    run = generator.start([short, long])
    for count in range(1, 9):
        run.step()
        assert len(short.output) == count
    assert 0 < long.computed < 100


def test_no_more_requests_run_than_a_step_has_tokens(make):
    generator = make(token_budget=3)
    run = generator.start([generator.request([i], max_tokens=4) for i in range(2, 10)])
    while run.waiting or run.running:
        run.step()
        assert len(run.running) <= 3
    assert all(len(request.output) == 4 for request in run.outputs)


def test_requests_wait_for_blocks_in_their_order(make):
    generator = make(cache_tokens=64)
    run = generator.start([generator.request(some_prompt(n), max_tokens=9) for n in (40, 24, 4)])
    run.step()
    assert [len(request.prompt) for request in run.running] == [40]
    finished = [token.request for token in run if token.result is not None]
    assert finished == [0, 1, 2]


# -- how a request ends ----------------------------------------------------------------------------


def test_a_stop_token_ends_the_output_and_stays_in_its_ids(make):
    [free] = make().generate(some_prompt(9), max_tokens=20)
    stop = free.ids[5]
    [stopped] = make().generate(some_prompt(9), max_tokens=20, stop_ids=[stop])
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]
    assert (stopped.finish_reason, free.finish_reason) == ("stop", "length")


def test_a_finished_request_leaves_the_batch_to_the_others(make):
    generator = make()
    run = generator.start([generator.request([7], max_tokens=m) for m in (1, 5)])
    run.step()
    assert [request.max_tokens for request in run.running] == [5]


def test_without_max_tokens_the_output_ends_with_the_window(make):
    [result] = make().generate(some_prompt(100))
    assert (len(result.ids), result.finish_reason) == (WINDOW - 100, "length")
    [result] = make(default_max_tokens=5).generate(some_prompt(100))
    assert len(result.ids) == 5
    [result] = make(default_max_tokens=50).generate(some_prompt(100))
    assert len(result.ids) == WINDOW - 100


def test_the_whole_window_can_be_used(make):
    [result] = make().generate(some_prompt(WINDOW - 1), max_tokens=1)
    assert len(result.ids) == 1


# -- text and events -------------------------------------------------------------------------------


def test_the_pieces_of_a_stream_are_the_text_of_the_ids(make, tokenizer):
    events = list(
        make(tokenizer).stream(["def add", "naïve"], max_tokens=40, sampling=Sampling(2.0), stop_ids=())
    )
    for request in (0, 1):
        own = [event for event in events if event.request == request]
        result = own[-1].result
        assert [event.id for event in own] == list(result.ids)
        assert "".join(event.text for event in own) == result.text == tokenizer.decode(result.ids)
        assert all(event.result is None for event in own[:-1])
    assert {event.request for event in events[:2]} == {0, 1}  # neither waits for the other


def test_text_leaves_the_stop_token_out(make, tokenizer):
    [free] = make(tokenizer).generate("def add", max_tokens=12, stop_ids=())
    place = next(i for i in range(3, 12) if free.ids[i] not in free.ids[:i])
    [stopped] = make(tokenizer).generate("def add", max_tokens=12, stop_ids=[free.ids[place]])
    assert stopped.ids == free.ids[: place + 1]
    assert stopped.text == tokenizer.decode(free.ids[:place])


def test_the_tokenizers_end_token_stops_by_default(make, tokenizer):
    assert make(tokenizer).request("def add").stop_ids == {0}


def test_text_and_its_ids_are_the_same_prompt(make, tokenizer):
    by_text, by_ids = make(tokenizer).generate(["def add", tokenizer.encode("def add")], max_tokens=5)
    assert by_text.ids == by_ids.ids


def test_an_empty_prompt_becomes_the_token_to_begin_with(make, tokenizer):
    assert make(tokenizer).request("").prompt == (1,)
    assert make(tokenizer).request([]).prompt == (1,)


def test_timings_are_in_order(make):
    one, many = make().generate([[5], some_prompt(50)], max_tokens=4)
    for result in (one, many):
        assert result.timings.queued >= 0
        assert result.timings.ttft > 0
        assert result.timings.tpot > 0
    assert many.prompt_tokens == 50
    [single] = make().generate([5], max_tokens=1)
    assert single.timings.tpot is None


def test_a_request_that_waits_for_blocks_is_queued_meanwhile(make):
    first, second = make(cache_tokens=16).generate([[5], [6]], max_tokens=9)
    assert second.timings.queued >= first.timings.ttft + 8 * first.timings.tpot


def test_the_consumer_of_a_stream_is_not_in_inference_mode(make):
    for _ in make().stream([5], max_tokens=3):
        assert not torch.is_inference_mode_enabled()


def test_generation_keeps_nothing_for_gradients(twin):
    generator = Generator(twin.ours, TorchCpu(torch.float32))
    weights = [weight.data for weight in generator.model.weights()]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        run = generator.start([generator.request([5], max_tokens=3)])
        list(run)
        assert not run.cache.layer(0).keys.requires_grad
    finally:
        for weight in weights:
            weight.requires_grad_(False)


@pytest.mark.parametrize(("weights", "cache"), [("bf16", "bf16"), ("fp32", "fp32"), ("int4-g32", "fp32")])
def test_the_cache_has_the_format_of_the_weights_that_are_not_quantised(weights, cache, twin):
    generator = Generator(load_packed(load_config(twin.folder), twin.folder, weights), Cpu())
    assert generator.start([generator.request([5])]).cache.spec.format == cache
    [result] = generator.generate(some_prompt(20), max_tokens=3)
    assert len(result.ids) == 3


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (None, {}, "the prompt is None, expected text, token ids"),
        (5, {}, "the prompt is 5, expected text, token ids"),
        ([], {}, "no prompt was given"),
        ([[]], {}, "the prompt is empty.*: give token ids"),
        ([[5], []], {}, r"prompts\[1\] is empty"),
        (["text"], {}, "the prompt is text, and the model has no tokenizer"),
        ([[5, VOCAB]], {}, f"token id {VOCAB}, expected 0 to {VOCAB - 1}"),
        ([[-1]], {}, "token id -1, expected"),
        ([[5.0]], {}, "the prompt is .*, expected token ids"),
        ([None], {}, "the prompt is None, expected token ids"),
        ([[5] * 300], {}, "300 tokens and the model's window is 128"),
        ([[5] * WINDOW], {}, "at most 127"),
        ([[5] * 100], {"max_tokens": 29}, "max_tokens is 29, but the prompt has 100 tokens, which leaves 28"),
        ([[5]], {"max_tokens": 0}, "max_tokens is 0, expected"),
        ([[5]], {"max_tokens": -3}, "max_tokens is -3, expected"),
        ([[5]], {"max_tokens": 2.5}, "max_tokens is 2.5, expected"),
        ([[5]], {"stop_ids": 3}, "stop_ids is 3, expected token ids"),
    ],
)
def test_bad_input_is_refused_at_once_in_one_line(make, prompts, options, message):
    with pytest.raises(InputError, match=message) as caught:
        make().stream(prompts, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["block_size", "token_budget", "cache_tokens", "default_max_tokens"])
def test_a_size_below_one_is_refused(make, option):
    with pytest.raises(InputError, match=f"{option} is 0, expected"):
        make(**{option: 0})


def test_a_request_larger_than_the_cache_is_refused(make):
    with pytest.raises(InputError, match="takes 3 cache blocks of 16 tokens, and cache_tokens=40 makes 2"):
        make(cache_tokens=40).generate([5], max_tokens=40)


def test_a_cache_larger_than_memory_is_refused(model):
    endless = replace(model, config=replace(model.config, window=10**15))
    with pytest.raises(InputError, match=r"memory does not hold a cache of .* lower max_tokens"):
        Generator(endless, Cpu()).generate([5])


def test_an_encoder_is_refused(make_twin):
    bert = make_twin(
        "BertForMaskedLM",
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    ).ours
    with pytest.raises(InputError, match="is an encoder, which generates nothing"):
        Generator(bert, Cpu())
