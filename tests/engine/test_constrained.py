"""Constrained output: random logits and still every text is what was asked for, and nobody else notices."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.constrained import Grammar
from ridgeline.engine.generate import Generator, collect, run
from ridgeline.engine.prompts import Requests
from ridgeline.engine.sampler import penalised
from ridgeline.engine.sampling import GREEDY, BeamSearch, Sampling
from ridgeline.engine.sequence import Sequence
from ridgeline.errors import InputError
from ridgeline.ops.batch import BLOCK_TOKENS
from ridgeline.ops.cpu import Cpu

pytest.importorskip("llguidance")

WINDOW, END = 512, 0


def test_a_regex_that_grows_too_large_says_so(generate):
    with pytest.raises(InputError, match="regex is too complex"):
        generate("x", regex="(a{1000}){1000}", max_tokens=20)


@pytest.fixture(scope="module")
def model(make_twin):
    return make_twin(
        "LlamaForCausalLM",
        vocab_size=320,  # more than the tokenizer has: padding, which must never be chosen
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=WINDOW,
        bos_token_id=1,
        eos_token_id=END,
    ).packed


@pytest.fixture(scope="module")
def requests(model, tokenizer):
    return Requests(model.config, tokenizer)


@pytest.fixture(scope="module")
def generate(model, requests):
    """Generates with the tiny model, whose logits are as good as random."""

    def generate(prompts, **options):
        return Generator(model, Cpu(), requests).generate(prompts, **options)

    return generate


@pytest.fixture(scope="module")
def blanks(tokenizer):
    """A bias against the tokens of which JSON may have many more than the window holds."""
    return {i: -100 for i in range(2, tokenizer.vocab_size) if not tokenizer.decode([i]).strip()}


# -- what comes out --------------------------------------------------------------------------------

samplings = st.builds(
    replace,
    st.sampled_from([GREEDY, Sampling(), Sampling(0.7, top_k=9, top_p=0.9, min_p=0.01)]),
    seed=st.integers(0, 1000),
)

pieces = st.sampled_from(["[a-f]", "[0-9]", "x{2,4}", "(yes|no|é+山)", "[^a-z]", "(ab)?", "a/b", '"', " "])
regexes = st.lists(pieces, min_size=1, max_size=5).map("".join)


@settings(max_examples=40)
@given(regexes, samplings)
def test_all_of_the_text_matches_the_regex(generate, regex, sampling):
    [result] = generate("def", regex=regex, sampling=sampling, max_tokens=60)
    if result.finish_reason == "stop":
        assert re.fullmatch(regex, result.text)
    else:
        assert len(result.ids) == 60
        assert "é" in regex  # nothing else has no end


numbers = st.sampled_from(
    [{"type": "integer", "minimum": -5, "maximum": 400}, {"type": "boolean"}, {"enum": [1.5, None, "a b"]}]
)
texts = st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 6))
schemas = st.recursive(
    numbers | texts,
    lambda inner: (
        st.builds(lambda item: {"type": "array", "items": item, "minItems": 1, "maxItems": 2}, inner)
        | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3).map(
            lambda fields: {
                "type": "object",
                "properties": fields,
                "required": sorted(fields),
                "additionalProperties": False,
            }
        )
    ),
    max_leaves=4,
)


def follows(schema, value):
    """Whether ``value`` is what ``schema`` allows, for the keywords that the tests use."""
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "array":
            return (
                isinstance(value, list)
                and 1 <= len(value) <= 2
                and all(follows(schema["items"], item) for item in value)
            )
        case "object":
            fields = schema["properties"]
            return value.keys() == fields.keys() and all(follows(fields[k], value[k]) for k in fields)


@settings(max_examples=40)
@given(schemas, samplings, st.booleans())
def test_the_text_is_json_that_follows_the_schema(generate, blanks, schema, sampling, as_text):
    given = json.dumps(schema) if as_text else schema
    sampling = replace(sampling, logit_bias=blanks)
    [result] = generate("def", json_schema=given, sampling=sampling, max_tokens=400)
    assert result.finish_reason == "stop"
    assert follows(schema, json.loads(result.text))


def test_every_sample_of_a_prompt_matches_by_itself(generate):
    results = generate("def", regex="[a-z]{8}", n=4, sampling=Sampling(seed=3), max_tokens=20)
    assert all(re.fullmatch("[a-z]{8}", result.text) for result in results)
    assert len({result.text for result in results}) > 1
    [third] = generate("def", regex="[a-z]{8}", sampling=Sampling(seed=5), max_tokens=20)
    assert third.ids == results[2].ids


# -- where it ends ---------------------------------------------------------------------------------


def test_it_ends_where_the_grammar_is_complete(generate, tokenizer):
    for stop_ids in (None, ()):
        [result] = generate("def", regex="a{3}", max_tokens=20, stop_ids=stop_ids)
        assert (result.text, result.finish_reason) == ("aaa", "stop")
    [exact] = generate("def", regex="b", max_tokens=1)
    assert (exact.text, exact.finish_reason) == ("b", "stop")


def test_the_last_token_allowed_cuts_it(generate):
    [result] = generate("def", regex="[a-z]{100}", max_tokens=7)
    assert result.finish_reason == "length"
    assert len(result.ids) == 7
    assert re.fullmatch("[a-z]+", result.text)


def test_stop_tokens_come_only_where_it_may_end(generate):
    """With a bias that makes the stop token the likeliest everywhere."""
    [result] = generate("def", regex="[ab]{4}c*", sampling=replace(GREEDY, logit_bias={END: 100}))
    assert re.fullmatch("[ab]{4}", result.text)
    assert (result.ids[-1], result.finish_reason) == (END, "stop")


def test_without_stop_tokens_it_goes_on_as_long_as_it_can(generate):
    [result] = generate("def", regex="a*", max_tokens=9, stop_ids=())
    assert result.finish_reason == "length"
    assert END not in result.ids


def test_a_stop_token_that_is_text_waits_for_the_end_too(generate, tokenizer):
    [dot] = tokenizer.encode(".")
    [result] = generate(
        "def", regex="[.a]{2}[.a]*", stop_ids=[dot], sampling=replace(GREEDY, logit_bias={dot: 100})
    )
    assert (result.text, result.finish_reason, len(result.ids)) == ("aa", "stop", 3)


def test_a_stop_string_cuts_it(generate):
    [result] = generate("def", regex="a{3}b{3}", stop="ab")
    assert (result.text, result.finish_reason) == ("aa", "stop")


# -- who else is there -----------------------------------------------------------------------------

OPTIONS = (
    {},
    {"regex": "[a-z]{30}"},
    {"sampling": Sampling(seed=2)},
    {
        "json_schema": {"type": "array", "items": {"type": "integer"}, "minItems": 9},
        "sampling": Sampling(seed=7),
    },
    {"regex": "(yes|no|perhaps){5}", "n": 3, "sampling": Sampling(seed=4)},
)


def test_neither_it_nor_its_batch_mates_notice_each_other(model, requests):
    made = [requests.make("def add(a, b)", max_tokens=40, **options) for options in OPTIONS]
    together = collect(run(Generator(model, Cpu(), requests).start(made)))
    alone = [
        result for one in made for result in collect(run(Generator(model, Cpu(), requests).start([one])))
    ]
    assert [result.ids for result in together] == [result.ids for result in alone]


def test_preemption_does_not_change_it(model, requests):
    made = [requests.make("def add(a, b)", max_tokens=60, **options) for options in OPTIONS * 2]
    free = collect(run(Generator(model, Cpu(), requests).start(made)))
    core = Generator(model, Cpu(), requests, cache_tokens=4 * BLOCK_TOKENS).start(made)
    tight = collect(run(core))
    assert core.scheduler.preemptions > 0
    assert [result.ids for result in tight] == [result.ids for result in free]


def test_logprobs_are_those_of_the_models_own_distribution(generate):
    [plain] = generate("def", max_tokens=1, logprobs=20)
    [result] = generate("def", regex="[0-9]", logprobs=20)
    assert result.logprobs[0].top == plain.logprobs[0].top
    assert result.logprobs[0].chosen < 0


def test_penalties_and_biases_choose_among_what_is_allowed(generate, tokenizer):
    [seven, eight] = (tokenizer.encode(digit)[0] for digit in "78")
    sampling = replace(GREEDY, logit_bias={seven: 60, eight: 59})
    [biased] = generate("def", regex="[0-9]{5}", sampling=sampling)
    assert biased.text == "77777"
    [penalised] = generate("def", regex="[0-9]{5}", sampling=replace(sampling, frequency_penalty=2.0))
    assert set(penalised.text) == {"7", "8"}
    [elsewhere] = generate("def", regex="[a-c]{5}", sampling=sampling)
    assert re.fullmatch("[a-c]{5}", elsewhere.text)


# -- the matcher -----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_its_answer_depends_on_the_output_alone(tokenizer, lengths, draw):
    """Whatever was asked before: shorter outputs, longer ones, others."""
    grammar = Grammar.from_regex("([ab]{2}|c[de]?)*f", tokenizer)
    kept = grammar.matcher()
    for length in lengths:
        output = []
        for _ in range(length):
            mask = grammar.matcher().allowed(output, ())
            output.append(draw.choice([token for token, allowed in enumerate(mask) if allowed]))
            if grammar.matcher().is_complete(output):
                break
        fresh = grammar.matcher()
        assert kept.is_complete(output) == fresh.is_complete(output)
        if not fresh.is_complete(output):
            assert kept.allowed(output, {END}) == fresh.allowed(output, {END})


def test_an_output_that_has_left_the_grammar_has_no_answer(tokenizer):
    matcher = Grammar.from_regex("ab", tokenizer).matcher()
    a, b = (tokenizer.encode(letter)[0] for letter in "ab")
    assert matcher.allowed([b], {END}) is None
    assert matcher.allowed([a, a, b], {END}) is None
    with pytest.raises(InputError, match="regex does not allow the token"):
        matcher.is_complete([b])
    assert matcher.is_complete([a, b])
    assert matcher.allowed([a, b], ()) is None
    assert matcher.allowed([a, b, END], {END}) is None
    assert not matcher.is_complete([a])


def test_logits_behind_a_forbidden_token_stay_as_they_are(requests, tokenizer):
    """A row that a proposal was verified for: the proposal is refused before, so nobody chooses from it."""
    sequence = Sequence(requests.make("def", regex="ab"))
    logits = torch.randn(1, 320)
    assert penalised(logits, [sequence]).isfinite().sum() < 10
    sequence.tokens.append(tokenizer.encode("b")[0])
    assert torch.equal(penalised(logits, [sequence]), logits)


def test_a_grammar_that_the_library_gives_up_fails_its_request(tokenizer):
    matcher = Grammar.from_regex("ab", tokenizer).matcher()
    matcher._state.consume_token(tokenizer.encode("b")[0])  # as when a limit is exceeded: it never recovers
    with pytest.raises(InputError, match="regex is too complex"):
        matcher.allowed([], ())


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "(ab"}, "regex cannot be used: unclosed group"),
        ({"regex": "(?=a)b"}, "regex cannot be used: look-around"),
        ({"regex": ""}, "regex is ''"),
        ({"regex": "\ud800"}, "regex cannot be used: .*surrogates"),
        ({"regex": r"[^\x00-\U0010FFFF]"}, "regex cannot be used: there is no text that follows it"),
        ({"regex": ".*" * 2000}, "regex cannot be used"),
        ({"regex": 5}, "regex is 5"),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"json_schema": {"a": object()}}, "json_schema is not JSON"),
        ({"json_schema": "[1]"}, r"json_schema is \[1\], expected an object"),
        ({"json_schema": "[" * 100_000}, "json_schema is not JSON"),
        ({"json_schema": {"type": "objct"}}, "json_schema cannot be used: Invalid type: objct"),
        ({"json_schema": {"not": {}}}, "json_schema cannot be used: Unimplemented keys"),
        ({"json_schema": {"$ref": "#"}}, "there is no text that follows it"),
        ({"json_schema": {"minimum": 10**400}}, "json_schema cannot be used"),
        ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "Unsatisfiable"),
        ({"json_schema": {}, "regex": "a"}, "json_schema and regex are two constraints"),
        ({"json_schema": {}, "beams": BeamSearch(2)}, "json_schema does not go with beam search"),
        ({"regex": "a", "beams": BeamSearch(2)}, "regex does not go with beam search"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(requests, options, message):
    with pytest.raises(InputError, match=message) as refused:
        requests.make("def", **options)
    assert "\n" not in str(refused.value)


def test_it_takes_a_tokenizer_that_names_an_end(requests, tokenizer):
    with pytest.raises(InputError, match="no tokenizer"):
        replace(requests, tokenizer=None).make([5], regex="a")
    endless = type(tokenizer)(tokenizer._backend)
    with pytest.raises(InputError, match="names none"):
        replace(requests, tokenizer=endless).make([5], regex="a")


def test_without_the_library_the_way_to_it_is_said(requests, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match=r"pip install 'ridgeline\[constrain\]'"):
        requests.make("def", regex="a")


def test_a_grammar_that_no_token_continues_fails_its_own_request(model, requests, generate):
    """Every continuation is taken away: by a vocabulary that ends before it."""
    core = Generator(model, Cpu(), requests).start(
        [requests.make("def", regex="a"), requests.make("def", max_tokens=3)]
    )
    [first, _] = core.scheduler.waiting
    first.sequences[0].matcher = Nothing()
    events = [event for _ in range(5) for event in core.step()]
    assert [str(event.error) for event in events if hasattr(event, "error")] == ["no token continues"]
    assert sum(getattr(event, "result", None) is not None for event in events) == 1


class Nothing:
    """A matcher in a dead end."""

    def allowed(self, output, stop_ids):
        raise InputError("no token continues")
