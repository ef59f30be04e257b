"""Generation: the right tokens, whatever else is in the batch and however the prompt is cut."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.generate import Generator, collect, run
from ridgeline.engine.prompts import Requests
from ridgeline.engine.sampling import GREEDY, BeamSearch, Sampling
from ridgeline.errors import InputError
from ridgeline.models import load_config
from ridgeline.ops.batch import BLOCK_TOKENS, Span
from ridgeline.ops.cpu import Cpu
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
    "MixtralForCausalLM": {**LLAMA, "num_local_experts": 5},
    "DeepseekV3ForCausalLM": {
        **LLAMA,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 20,
        "q_lora_rank": 24,
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 10,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_group": 3,
        "topk_group": 2,
        "first_k_dense_replace": 1,
    },
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
def make(twin, model):
    """A generator for the tiny Llama without a tokenizer; options as Generator's. Blocks of another size than
    the native kernels' are those of PyTorch's reading."""

    def make(tokenizer=None, *, max_tokens=None, block_size=BLOCK_TOKENS, **options):
        native = block_size == BLOCK_TOKENS
        chosen, ops = (model, Cpu()) if native else (twin.ours, TorchCpu(torch.float32))
        requests = Requests(model.config, tokenizer, max_tokens)
        return Generator(chosen, ops, requests, block_size=block_size, **options)

    return make


def generator(model, requests=None, **options):
    return Generator(model, Cpu(), requests or Requests(model.config), **options)


def some_prompt(length, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(2, VOCAB, (length,), generator=generator).tolist()


# -- the right tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", FAMILIES)
def test_greedy_tokens_are_the_argmax_of_the_reference_pass_by_pass(make_twin, architecture):
    """Each token from a full pass of the reference reading over all tokens before, without a cache."""
    model, ops = make_twin(architecture, **FAMILIES[architecture]).packed, Reference()
    tokens = some_prompt(20)
    [result] = generator(model).generate(tokens, max_tokens=30)
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
    st.fixed_dictionaries(
        {
            "prompt": st.tuples(st.integers(1, 70), st.integers(0, 1)).map(lambda p: some_prompt(*p)),
            "max_tokens": st.integers(1, 12),
            "n": st.sampled_from([1, 1, 3]),
            "sampling": st.builds(
                replace,
                st.sampled_from(
                    [GREEDY, Sampling(), Sampling(0.7, top_k=9), Sampling(0.0, repetition_penalty=1.3)]
                ),
                seed=st.integers(0, 4),
            ),
        }
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=30)
@given(wishes, st.integers(4, 90), st.sampled_from([1, 4, BLOCK_TOKENS]), st.integers(0, 200), st.booleans())
def test_a_request_gives_the_same_tokens_in_any_company(
    make, wished, budget, block_size, spare, prefix_cache
):
    """Mixed lengths and options, in a batch that waits, is preempted, and shares prefixes."""

    def requests(generator):
        return [generator.requests.make(**wish, stop_ids=[3, 4]) for wish in wished]

    longest = max(len(wish["prompt"]) + wish["max_tokens"] + block_size for wish in wished)
    generator = make(
        token_budget=budget, block_size=block_size, cache_tokens=longest + spare, prefix_cache=prefix_cache
    )
    together = collect(run(generator.start(requests(generator))))
    alone = [
        result
        for request in requests(make())
        for result in collect(run(make(prefix_cache=False, block_size=block_size).start([request])))
    ]
    assert [(r.ids, r.finish_reason) for r in together] == [(r.ids, r.finish_reason) for r in alone]


@pytest.mark.parametrize(("cache_tokens", "block_size"), [(96, 4), (160, BLOCK_TOKENS)])
def test_forced_preemption_changes_no_token(make, cache_tokens, block_size):
    prompts = [some_prompt(30, seed) for seed in range(4)]
    free = make(block_size=block_size).generate(prompts, max_tokens=30)
    generator = make(cache_tokens=cache_tokens, block_size=block_size)
    core = generator.start(generator.requests.make_all(prompts, max_tokens=30))
    tight = collect(run(core))
    assert core.scheduler.preemptions > 0
    assert [result.ids for result in tight] == [result.ids for result in free]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
def test_beam_search_finds_what_that_of_transformers_finds(twin, make, length_penalty, early_stopping):
    prompt = some_prompt(17)
    [greedy] = make().generate(prompt, max_tokens=12)
    stop = greedy.ids[4]
    theirs = twin.theirs.generate(
        torch.tensor([prompt]),
        num_beams=4,
        num_return_sequences=3,
        do_sample=False,
        max_new_tokens=12,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        eos_token_id=stop,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    beams = BeamSearch(4, length_penalty, early_stopping)
    ours = make().generate(prompt, max_tokens=12, beams=beams, n=3, stop_ids=[stop])
    width = theirs.sequences.shape[1] - 17
    assert [list(r.ids) + [0] * (width - len(r.ids)) for r in ours] == theirs.sequences[:, 17:].tolist()
    assert [r.score for r in ours] == pytest.approx(theirs.sequences_scores.tolist(), rel=1e-4)


def test_beams_are_the_same_when_they_are_preempted(make):
    prompts, beams = [some_prompt(60), some_prompt(9, 1)], BeamSearch(3)
    free = [
        make(block_size=4).generate(prompts[0], max_tokens=30),
        make(block_size=4).generate(prompts[1], max_tokens=24, beams=beams),
    ]
    generator = make(cache_tokens=96, block_size=4)
    make_one = generator.requests.make
    core = generator.start(
        [make_one(prompts[0], max_tokens=30), make_one(prompts[1], max_tokens=24, beams=beams)]
    )
    tight = collect(run(core))
    assert core.scheduler.preemptions > 0
    assert [result.ids for result in tight] == [result.ids for [result] in free]


def test_a_cached_prefix_changes_no_token(make):
    shared = some_prompt(64)
    prompts = [shared + some_prompt(3, seed) for seed in range(3)]
    cold = [make(prefix_cache=False).generate(prompt, max_tokens=8)[0] for prompt in prompts]
    warm = make(sequences=1).generate(prompts, max_tokens=8)
    assert [result.cached_tokens for result in warm] == [0, 64, 64]
    assert [result.ids for result in warm] == [result.ids for result in cold]


def test_samples_come_prompt_by_prompt(make):
    results = make().generate([[5], [6]], max_tokens=4, n=3, sampling=Sampling(seed=7))
    assert [result.sample for result in results] == [0, 1, 2, 0, 1, 2]
    for i, result in enumerate(results):
        [alone] = make().generate([5 + i // 3], max_tokens=4, sampling=Sampling(seed=7 + i % 3))
        assert result.ids == alone.ids


def test_logprobs_are_of_the_reference_pass(make, model):
    prompt = some_prompt(12)
    [result] = make(token_budget=5).generate(prompt, max_tokens=3, logprobs=4)
    ops, tokens = Reference(), list(prompt)
    for id, found in zip(result.ids, result.logprobs, strict=True):
        expected = model.forward(ops, ops.batch(tokens, [Span(len(tokens))]))[0].log_softmax(-1)
        assert found.chosen == pytest.approx(float(expected[id]), abs=1e-4)
        assert [token for token, _ in found.top] == expected.topk(4).indices.tolist()
        tokens.append(id)


# -- how a request ends ----------------------------------------------------------------------------


def test_a_stop_token_ends_the_output_and_stays_in_its_ids(make):
    [free] = make().generate(some_prompt(9), max_tokens=20)
    stop = free.ids[5]
    [stopped] = make().generate(some_prompt(9), max_tokens=20, stop_ids=[stop])
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]
    assert (stopped.finish_reason, free.finish_reason) == ("stop", "length")


def test_without_max_tokens_the_output_ends_with_the_window(make):
    [result] = make().generate(some_prompt(100))
    assert (len(result.ids), result.finish_reason) == (WINDOW - 100, "length")
    [result] = make(max_tokens=5).generate(some_prompt(100))
    assert len(result.ids) == 5
    [result] = make(max_tokens=50).generate(some_prompt(100))
    assert len(result.ids) == WINDOW - 100


def test_the_whole_window_can_be_used(make):
    [result] = make().generate(some_prompt(WINDOW - 1), max_tokens=1)
    assert len(result.ids) == 1


# -- stop strings ----------------------------------------------------------------------------------


def test_a_stop_string_ends_the_text_before_it(make, tokenizer):
    [free] = make(tokenizer).generate("def add", max_tokens=40, sampling=Sampling(2.0), stop_ids=())
    for stop in (free.text[5:8], free.text[7], free.text[-2:]):
        [cut] = make(tokenizer).generate(
            "def add", max_tokens=40, sampling=Sampling(2.0), stop_ids=(), stop=[stop, "never in there"]
        )
        assert cut.text == free.text[: free.text.index(stop)]
        assert cut.finish_reason == "stop"
        assert cut.ids == free.ids[: len(cut.ids)]


def test_a_stream_never_shows_a_part_of_a_stop_string(make, tokenizer):
    [free] = make(tokenizer).generate("def add", max_tokens=40, sampling=Sampling(2.0), stop_ids=())
    stop = free.text[10:14]
    shown = ""
    for token in make(tokenizer).stream(
        "def add", max_tokens=40, sampling=Sampling(2.0), stop_ids=(), stop=stop
    ):
        shown += token.text
        assert free.text[: free.text.index(stop)].startswith(shown)
    assert shown == token.result.text == free.text[: free.text.index(stop)]


def test_text_held_back_for_a_stop_string_comes_at_the_end(make, tokenizer):
    [free] = make(tokenizer).generate("def add", max_tokens=9, sampling=Sampling(2.0), stop_ids=())
    [held] = make(tokenizer).generate(
        "def add", max_tokens=9, sampling=Sampling(2.0), stop_ids=(), stop=free.text[-3:] + "never"
    )
    assert (held.text, held.finish_reason) == (free.text, "length")


def test_the_next_answer_is_the_same_after_a_stop_string(make, tokenizer):
    """What was generated beyond the stop string's start leaves nothing behind in the cache."""
    [free] = make(tokenizer).generate("def add", max_tokens=30, stop_ids=())
    stopped = make(tokenizer, sequences=1).requests
    first = stopped.make("def add", max_tokens=30, stop_ids=(), stop=free.text[9:12])
    core = make(tokenizer, sequences=1).start([first, stopped.make("def add", max_tokens=30, stop_ids=())])
    assert collect(run(core))[1].text == free.text


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
    assert make(tokenizer).requests.make("def add").stop_ids == {0}


def test_text_and_its_ids_are_the_same_prompt(make, tokenizer):
    by_text, by_ids = make(tokenizer).generate(["def add", tokenizer.encode("def add")], max_tokens=5)
    assert by_text.ids == by_ids.ids


def test_an_empty_prompt_becomes_the_token_to_begin_with(make, tokenizer):
    assert make(tokenizer).requests.make("").prompt == (1,)
    assert make(tokenizer).requests.make([]).prompt == (1,)


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
    first, second = make(cache_tokens=32).generate([[5], [6]], max_tokens=9)
    assert second.timings.queued >= 8 * first.timings.tpot
    assert second.timings.ttft > second.timings.queued


def test_the_consumer_of_a_stream_is_not_in_inference_mode(make):
    for _ in make().stream([5], max_tokens=3):
        assert not torch.is_inference_mode_enabled()


def test_generation_keeps_nothing_for_gradients(make):
    generator = make(block_size=4)
    weights = [weight.data for weight in generator.model.weights()]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        core = generator.start([generator.requests.make([5], max_tokens=3)])
        cache = core.runner.cache
        list(run(core))
        assert not cache.layer(0).stored[0].requires_grad
    finally:
        for weight in weights:
            weight.requires_grad_(False)


@pytest.mark.parametrize(("weights", "cache"), [("bf16", "bf16"), ("fp32", "fp32"), ("int4-g32", "fp32")])
def test_the_cache_has_the_format_of_the_weights_that_are_not_quantised(weights, cache, twin):
    packed = generator(load_packed(load_config(twin.folder), twin.folder, weights))
    assert packed.start([packed.requests.make([5])]).runner.cache.spec.format == cache
    [result] = packed.generate(some_prompt(20), max_tokens=3)
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
        ([[5]], {"n": 0}, "n is 0, expected a whole number from 1 to 128"),
        ([[5]], {"n": True}, "n is True, expected"),
        ([[5]], {"logprobs": 21}, "logprobs is 21, expected a whole number from 0 to 20"),
        ([[5]], {"priority": "high"}, "priority is 'high', expected a number"),
        ([[5]], {"stop": "x"}, "stop is text, and the model has no tokenizer"),
        ([[5]], {"stop": ["x", ""]}, "stop is .*, expected text that is not empty"),
        ([[5]], {"stop": [3]}, "stop is .*, expected text that is not empty"),
        ([[5]], {"stop": ["x"] * 17}, "stop has 17 texts, expected at most 16"),
        ([[5]], {"sampling": Sampling(logit_bias={VOCAB: 1})}, "logit_bias names the token id 300"),
        ([[5]], {"beams": BeamSearch(2), "n": 3}, "n is 3, and a beam search of width 2"),
        ([[5]], {"beams": BeamSearch(2), "logprobs": 1}, "logprobs does not go with beam search"),
        ([[5]], {"beams": BeamSearch(2), "sampling": Sampling()}, "temperature does not go with beam"),
    ],
)
def test_bad_input_is_refused_at_once_in_one_line(make, prompts, options, message):
    with pytest.raises(InputError, match=message) as caught:
        make().stream(prompts, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["block_size", "token_budget", "sequences", "cache_tokens", "max_tokens"])
def test_a_size_below_one_is_refused(make, option):
    with pytest.raises(InputError, match=f"{option} is 0, expected"):
        make(**{option: 0})


def test_a_request_larger_than_the_cache_is_refused(make):
    with pytest.raises(
        InputError, match="takes 2 cache blocks of 32 tokens with its output, and the cache has 1"
    ):
        make(cache_tokens=40).generate([5], max_tokens=40)


def test_a_cache_larger_than_memory_is_refused(model):
    endless = replace(model, config=replace(model.config, window=10**15))
    with pytest.raises(
        InputError, match=r"memory does not hold a cache of .* lower cache_tokens or max_tokens"
    ):
        generator(endless).generate([5])


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
        generator(bert)
