"""/v1/completions through OpenAI's client: what comes back is what the engine gives."""

import asyncio
import re

import pytest

from ridgeline.engine.sampling import Sampling

PROMPT = "def fibonacci(n):\n"


def texts(stream):
    """The text of each choice, and the finish reasons that came, of a stream."""
    found, reasons = {}, {}
    for chunk in stream:
        for choice in chunk.choices:
            assert choice.index not in reasons
            found[choice.index] = found.get(choice.index, "") + choice.text
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    return found, reasons


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "seed": 7, "top_p": 0.9}])
def test_the_text_is_that_of_the_engine_alone(server, client, loaded, sampling):
    [expected] = loaded.generate(PROMPT, max_tokens=30, sampling=loaded.sampling(**sampling))
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=30, **sampling)
    assert found.choices[0].text == expected.text
    assert found.choices[0].finish_reason == expected.finish_reason
    assert found.usage.prompt_tokens == expected.prompt_tokens
    assert found.usage.completion_tokens == len(expected.ids)
    assert found.usage.total_tokens == expected.prompt_tokens + len(expected.ids)
    assert (found.object, found.model) == ("text_completion", "tiny")


def test_our_own_options_reach_the_engine(client, loaded):
    options = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.3}
    sampling = loaded.sampling(temperature=1.0, seed=3, top_p=1.0, **options)
    [expected] = loaded.generate(PROMPT, max_tokens=30, sampling=sampling, stop_ids=())
    found = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=30,
        temperature=1.0,
        top_p=1.0,
        seed=3,
        extra_body={**options, "priority": 2, "ignore_eos": True},
    )
    assert found.choices[0].text == expected.text


@pytest.mark.parametrize(
    "options",
    [{"frequency_penalty": 1.5}, {"presence_penalty": -1.5}, {"logit_bias": {"300": 60, "5": -100}}],
)
def test_penalties_and_biases_reach_the_engine(client, loaded, options):
    biases = {int(token): bias for token, bias in options.get("logit_bias", {}).items()}
    sampling = Sampling(temperature=0.0, **{**options, **({"logit_bias": biases} if biases else {})})
    [expected] = loaded.generate(PROMPT, max_tokens=20, sampling=sampling)
    [greedy] = loaded.generate(PROMPT, max_tokens=20, sampling=Sampling(temperature=0.0))
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, temperature=0, **options)
    assert found.choices[0].text == expected.text != greedy.text


def test_a_stream_gives_the_same_text_piece_by_piece(client):
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "seed": 5, "n": 2, "temperature": 0.8}
    whole = client.completions.create(**asked)
    found, reasons = texts(client.completions.create(**asked, stream=True))
    assert found == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}


def test_a_stream_ends_with_its_usage_if_it_is_asked_for_and_with_done(server, client):
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 9, "stream": True, "ignore_eos": True}
    text = server.post("/v1/completions", {**asked, "stream_options": {"include_usage": True}}).text
    *_, usage, done, _ = text.split("\n\n")
    assert done == "data: [DONE]"
    assert '"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18,' in usage
    assert "usage" not in server.post("/v1/completions", asked).text


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_samples_are_numbered_prompt_by_prompt(client, loaded, stream):
    prompts = ["def add(a, b):", "class Ridge:", "import os"]
    asked = {"model": "tiny", "prompt": prompts, "max_tokens": 8, "n": 2, "seed": 4, "temperature": 1}
    expected = loaded.generate(prompts, max_tokens=8, n=2, sampling=loaded.sampling(temperature=1.0, seed=4))
    found = client.completions.create(**asked, stream=stream)
    if stream:
        found, _ = texts(found)
        assert [found[i] for i in range(6)] == [result.text for result in expected]
        return
    assert [choice.index for choice in found.choices] == list(range(6))
    assert [choice.text for choice in found.choices] == [result.text for result in expected]
    assert found.usage.prompt_tokens == sum(result.prompt_tokens for result in expected[::2])
    assert found.usage.completion_tokens == sum(len(result.ids) for result in expected)


def test_prompts_may_be_token_ids(client, loaded):
    ids = loaded.tokenizer.encode(PROMPT)
    asked = {"model": "tiny", "max_tokens": 9, "temperature": 0}
    by_text = client.completions.create(prompt=PROMPT, **asked)
    assert client.completions.create(prompt=ids, **asked).choices[0].text == by_text.choices[0].text
    several = client.completions.create(prompt=[ids, ids[:2]], **asked)
    assert several.choices[0].text == by_text.choices[0].text
    assert several.usage.prompt_tokens == len(ids) + 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("as_ids", [False, True])
def test_the_prompt_is_echoed_once_for_each_sample(client, loaded, stream, as_ids):
    asked = {"model": "tiny", "max_tokens": 5, "temperature": 0, "n": 2}
    plain = client.completions.create(prompt=PROMPT, **asked)
    prompt = loaded.tokenizer.encode(PROMPT) if as_ids else PROMPT
    found = client.completions.create(prompt=prompt, echo=True, stream=stream, **asked)
    found = texts(found)[0] if stream else {choice.index: choice.text for choice in found.choices}
    assert found == {choice.index: PROMPT + choice.text for choice in plain.choices}


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(client, stream):
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "temperature": 0}
    text = client.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 :][:4]
    found = client.completions.create(**asked, stop=[stop, "never comes"], stream=stream)
    if stream:
        found, reasons = texts(found)
        assert (found[0], reasons[0]) == (text[: text.index(stop)], "stop")
    else:
        assert (found.choices[0].text, found.choices[0].finish_reason) == (text[: text.index(stop)], "stop")
        assert found.usage.completion_tokens < 30


def test_an_end_token_stops_unless_it_is_ignored(server, loaded):
    [end] = loaded.tokenizer.eos_ids
    asked = {"prompt": PROMPT, "temperature": 0, "max_tokens": 5, "logit_bias": {str(end): 100}}
    found = server.post("/v1/completions", asked).json()
    assert found["choices"][0]["finish_reason"] == "stop"
    assert (found["choices"][0]["text"], found["usage"]["completion_tokens"]) == ("", 1)
    found = server.post("/v1/completions", {**asked, "ignore_eos": True}).json()
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 5


def test_a_completion_has_16_tokens_unless_it_is_told_or_has_less_room(client, loaded):
    found = client.completions.create(model="tiny", prompt=PROMPT, extra_body={"ignore_eos": True})
    assert found.usage.completion_tokens == 16
    almost_full = [5] * (loaded.config.window - 3)
    found = client.completions.create(model="tiny", prompt=almost_full, extra_body={"ignore_eos": True})
    assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (3, "length")


def test_without_a_seed_answers_differ_and_with_one_they_do_not(client):
    def ask(**options):
        asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "temperature": 1.5}
        return client.completions.create(**asked, **options).choices[0].text

    assert ask() != ask()
    assert ask(seed=1) == ask(seed=1) != ask(seed=2)


def test_log_probabilities_are_those_of_the_engine(client, loaded):
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6, "temperature": 0, "logprobs": 3}
    [expected] = loaded.generate(PROMPT, max_tokens=6, logprobs=3, sampling=Sampling(temperature=0.0))
    found = client.completions.create(**asked).choices[0]
    shown = found.logprobs
    assert shown.token_logprobs == [logprobs.chosen for logprobs in expected.logprobs]
    assert "".join(shown.tokens) == found.text
    assert [found.text[o:].startswith(t) for o, t in zip(shown.text_offset, shown.tokens)] == [True] * 6
    for likeliest, logprobs in zip(shown.top_logprobs, expected.logprobs):
        assert len(likeliest) == 3
        assert max(likeliest.values()) == logprobs.top[0][1]
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**asked, stream=True)]
    assert [chunk.tokens[0] for chunk in chunks] == shown.tokens
    assert [chunk.text_offset[0] for chunk in chunks] == shown.text_offset


def test_the_cache_is_found_again_and_said_so(client):
    asked = {"model": "tiny", "prompt": [9, 8, 7] * 40, "max_tokens": 2}
    client.completions.create(**asked)
    assert client.completions.create(**asked).usage.prompt_tokens_details.cached_tokens == 96


def test_a_text_matches_the_regex_that_is_asked_for(client):
    pytest.importorskip("llguidance")
    found = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=20, extra_body={"regex": "[0-9]{3}-[a-z]{2}"}
    )
    assert re.fullmatch("[0-9]{3}-[a-z]{2}", found.choices[0].text)
    assert found.choices[0].finish_reason == "stop"


def test_two_clients_at_once_each_get_their_own_answer(server, loaded):
    prompts = ["def add(a, b):", "class Ridge:"]
    expected = loaded.generate(prompts, max_tokens=40, sampling=loaded.sampling(seed=1))

    async def ask(prompt, stream):
        client = server.async_client()
        asked = {"model": "tiny", "prompt": prompt, "max_tokens": 40, "seed": 1}
        if not stream:
            return (await client.completions.create(**asked)).choices[0].text
        stream = await client.completions.create(**asked, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def both():
        return await asyncio.gather(ask(prompts[0], False), ask(prompts[1], True))

    assert asyncio.run(both()) == [result.text for result in expected]
