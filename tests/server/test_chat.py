"""/v1/chat/completions through OpenAI's client: the model's own template, and what the engine makes of it."""

import asyncio
import json
from dataclasses import replace

import openai
import pytest

from ridgeline.engine.sampling import Sampling
from tests.server.conftest import running

MESSAGES = [{"role": "system", "content": "You write Python."}, {"role": "user", "content": "Write add."}]
PROMPT = "system: You write Python.\nuser: Write add.\nassistant:"


def test_a_conversation_is_answered_as_its_template_says(client, loaded):
    ids = loaded.tokenizer.encode(PROMPT)
    [expected] = loaded.generate(ids, max_tokens=20, sampling=loaded.sampling(seed=2))
    found = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20, seed=2)
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].finish_reason == expected.finish_reason
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids), len(expected.ids))
    assert found.object == "chat.completion"


def test_an_answer_can_be_given_back_as_it_came(client):
    asked = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    first = client.chat.completions.create(messages=MESSAGES, **asked).choices[0].message
    again = [*MESSAGES, first, {"role": "user", "content": [{"type": "text", "text": "And sub."}]}]
    assert client.chat.completions.create(messages=again, **asked).usage.completion_tokens == 5


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_an_answer_may_fill_the_window_and_be_limited_under_either_name(client, loaded, limit):
    asked = {"model": "tiny", "messages": MESSAGES, "extra_body": {"ignore_eos": True}}
    found = client.chat.completions.create(**asked, **{limit: 7})
    assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (7, "length")
    assert client.chat.completions.create(**asked).usage.total_tokens == loaded.config.window


def test_a_cache_smaller_than_the_window_limits_answers_that_are_not_limited(loaded):
    with running(loaded, cache_tokens=128) as server:
        asked = {"model": "tiny", "messages": MESSAGES, "extra_body": {"ignore_eos": True}}
        assert server.client().chat.completions.create(**asked).usage.total_tokens == 129
        with pytest.raises(openai.BadRequestError, match="the cache has 4: lower max_tokens"):
            server.client().chat.completions.create(**asked, max_tokens=500)


def test_a_stream_gives_the_role_once_and_the_same_text(client):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "seed": 3, "n": 2, "temperature": 1}
    whole = client.chat.completions.create(**asked)
    roles, texts, reasons = {}, {0: "", 1: ""}, {}
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content
            roles.setdefault(choice.index, []).append(choice.delta.role)
            reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert all(role == "assistant" and not any(rest) for role, *rest in roles.values())
    assert chunk.usage.model_copy(update={"prompt_tokens_details": None}) == whole.usage.model_copy(
        update={"prompt_tokens_details": None}
    )


def test_an_asynchronous_client_streams_too(server):
    async def ask():
        stream = await server.async_client().chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=12, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content async for chunk in stream])

    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = server.client().chat.completions.create(**asked)
    assert asyncio.run(ask()) == whole.choices[0].message.content


def test_log_probabilities_come_with_their_bytes(client, loaded):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 6, "temperature": 0, "logprobs": True}
    [expected] = loaded.generate(PROMPT, max_tokens=6, logprobs=2, sampling=Sampling(temperature=0.0))
    found = client.chat.completions.create(**asked, top_logprobs=2).choices[0]
    assert [entry.logprob for entry in found.logprobs.content] == [p.chosen for p in expected.logprobs]
    assert b"".join(bytes(entry.bytes) for entry in found.logprobs.content).decode() == found.message.content
    assert all(entry.top_logprobs[0].token == entry.token for entry in found.logprobs.content)
    stream = client.chat.completions.create(**asked, stream=True)
    chunks = [chunk.choices[0].logprobs.content[0] for chunk in stream]
    assert [chunk.token for chunk in chunks] == [entry.token for entry in found.logprobs.content]
    assert not any(chunk.top_logprobs for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_follows_the_schema_that_is_asked_for(client, stream):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    found = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=300,
        seed=1,
        stream=stream,
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "answer",
                "strict": True,
                "schema": schema | {"additionalProperties": False},
            },
        },
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content for chunk in found)
    else:
        text = found.choices[0].message.content
    assert isinstance(json.loads(text)["ok"], bool)


@pytest.mark.parametrize(("liked", "expected"), [(("{", "}"), {}), (("{", '"', ":", "1", "}"), None)])
def test_an_answer_is_some_json_object_if_no_more_is_asked_for(client, loaded, liked, expected):
    """A list, a number and text are not, however likely they are made."""
    pytest.importorskip("llguidance")
    [*ids] = (i for i in range(loaded.config.vocab) if loaded.tokenizer.decode([i]) in (*liked, "[", "1"))
    found = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=300,
        temperature=0,
        logit_bias={str(token): 50 for token in ids},
        response_format={"type": "json_object"},
    )
    text = found.choices[0].message.content
    assert text.startswith("{")
    if found.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    assert expected is None or json.loads(text) == expected


def test_control_tokens_in_messages_are_plain_characters(client, loaded):
    found = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "<|endoftext|>"}], max_tokens=1
    )
    assert found.usage.prompt_tokens > len(loaded.tokenizer.encode("user: <|endoftext|>\nassistant:"))


def test_a_model_without_a_template_says_what_to_use_instead(loaded):
    with running(replace(loaded, chat_template=None)) as server:
        with pytest.raises(openai.BadRequestError, match=r"no chat template.*use /v1/completions") as refused:
            server.client().chat.completions.create(model="tiny", messages=MESSAGES)
        assert refused.value.param == "messages"
        assert server.get("/v1/status").json()["model"]["chat"] is False
