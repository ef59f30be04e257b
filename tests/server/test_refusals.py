"""What is not done is refused: 400 in OpenAI's form that names the field, and the next request is served."""

import json

import httpx
import openai
import pytest

from ridgeline.engine.constrained import Matcher
from ridgeline.errors import InputError
from tests.server.conftest import running

MESSAGES = [{"role": "user", "content": "Hello"}]
WINDOW = 1024


def refused(answer, status=400):
    """The error of an answer, which has OpenAI's form."""
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.fixture(autouse=True)
def _the_next_request_is_served(server):
    yield
    assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "end"),
        ("best_of", 2),
        ("guided_json", {}),
        ("echoes", True),
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", 1e-9),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("frequency_penalty", 3),
        ("presence_penalty", -2.5),
        ("max_tokens", 0),
        ("max_tokens", 2.0),
        ("max_tokens", True),
        ("n", 0),
        ("n", 129),
        ("seed", -1),
        ("seed", 2**63),
        ("logprobs", 21),
        ("stop", ""),
        ("stop", ["a"] * 17),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"4096": 1}),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("priority", "high"),
        ("ignore_eos", 1),
        ("regex", 5),
        ("regex", "("),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}},
        ),
        ("prompt", {}),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", ["a", 1]),
        ("prompt", [4096]),
        ("prompt", ["a"] * 257),
        ("prompt", [1] * WINDOW),
        ("response_format", {"type": "xml"}),
        ("response_format", {}),
        ("response_format", "json"),
    ],
)
def test_a_completion_with_a_field_that_cannot_be_honoured_names_it(server, field, value):
    error = refused(server.post("/v1/completions", {"prompt": "x", field: value}))
    assert error["param"] == field
    assert error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", []),
        ("store", True),
        ("metadata", {"a": "b"}),
        ("modalities", ["audio"]),
        ("reasoning_effort", "high"),
        ("service_tier", "priority"),
        ("parallel_tool_calls", False),
        ("web_search_options", {}),
        ("top_logprobs", 2),
        ("max_completion_tokens", 0),
        ("messages", []),
        ("messages", "Hello"),
        ("unknown", 1),
    ],
)
def test_a_chat_with_a_field_that_cannot_be_honoured_names_it(server, field, value):
    error = refused(server.post("/v1/chat/completions", {"messages": MESSAGES, field: value}))
    assert error["param"] == field


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content"),
        ({"role": "user", "content": "x", "name": "me"}, "messages[0].name"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
        ({"role": "user", "content": "x", "colour": "red"}, "messages[0].colour"),
    ],
)
def test_a_message_that_cannot_be_honoured_is_named_with_its_place(server, message, param):
    assert refused(server.post("/v1/chat/completions", {"messages": [message]}))["param"] == param


@pytest.mark.parametrize(
    ("format", "param", "says"),
    [
        ({"type": "json_schema"}, ".json_schema", "is missing"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, ".json_schema.schema", "is missing"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, ".json_schema.name", "is missing"),
        ({"type": "json_schema", "json_schema": {"name": 1, "schema": {}}}, ".json_schema.name", "string"),
        ({"type": "text", "schema": {}}, ".schema", "not a field that this server knows"),
        ({"type": "xml"}, "", "must be an object whose type is text, json_object or json_schema"),
        ({"schema": {}}, "", "must be an object whose type is text, json_object or json_schema"),
    ],
)
def test_what_is_wrong_with_a_response_format_is_said_of_the_type_that_was_given(server, format, param, says):
    error = refused(server.post("/v1/completions", {"prompt": "x", "response_format": format}))
    assert error["param"] == f"response_format{param}"
    assert says in error["message"]


def test_a_list_that_holds_nothing_is_told_what_it_needs(server):
    error = refused(server.post("/v1/chat/completions", {"messages": []}))
    assert error["message"] == "messages holds too little: give at least 1"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_constraint_that_fails_while_generating_is_named(server, monkeypatch, path):
    def fail(self, output, stop_ids):
        raise InputError("regex is too complex: too many states")

    asked = {"regex": "a*", **({"prompt": "x"} if path == "/v1/completions" else {"messages": MESSAGES})}
    with monkeypatch.context() as patched:
        patched.setattr(Matcher, "allowed", fail)
        assert refused(server.post(path, asked))["param"] == "regex"
        streamed = server.post(path, {**asked, "stream": True}).text
    event = json.loads(streamed.strip().splitlines()[-1].removeprefix("data: "))
    assert event["error"]["param"] == "regex"
    assert event["error"]["message"] == "regex is too complex: too many states"


def test_a_prompt_larger_than_the_cache_says_which_option_to_raise(loaded):
    with running(loaded, cache_tokens=64) as small:
        error = refused(small.post("/v1/completions", {"prompt": [5] * 65}))
        assert error["param"] == "prompt"
        assert "has 65 tokens and the server's cache holds 64" in error["message"]
        assert "--cache-tokens" in error["message"]
        fits = small.post("/v1/completions", {"prompt": [5] * 64, "ignore_eos": True})
        assert fits.json()["usage"]["completion_tokens"] == 1


def test_a_cache_that_is_exhausted_makes_requests_wait_and_what_never_fits_is_refused(loaded, server):
    """Three blocks for twelve requests, each of which grows to two: some are preempted, all are answered."""
    asked = {"prompt": [[7, i] for i in range(1, 13)], "max_tokens": 50, "seed": 3, "ignore_eos": True}
    expected = server.post("/v1/completions", asked).json()["choices"]
    with running(loaded, cache_tokens=96) as small:
        for _ in range(2):
            assert small.post("/v1/completions", asked).json()["choices"] == expected
            message = refused(small.post("/v1/completions", {"prompt": "x", "max_tokens": 500}))["message"]
            assert "the cache has 3: lower max_tokens, or make the cache larger" in message
        assert small.engine.status().preemptions > 0
        assert small.is_idle()


def test_fields_that_ask_for_nothing_may_stand(server):
    nothing = {
        **{"n": 1, "user": "me", "store": False, "tools": None, "tool_choice": "auto", "stream": False},
        **{"service_tier": "auto", "parallel_tool_calls": True, "modalities": ["text"], "stop": None},
        **{"response_format": {"type": "text"}, "temperature": None, "metadata": None, "seed": None},
    }
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2, **nothing}
    assert server.post("/v1/chat/completions", asked).status_code == 200


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        ("/v1/completions", {"prompt": "x", "echo": True, "logprobs": 1}, "echo"),
        ("/v1/chat/completions", {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ("/v1/chat/completions", {"top_logprobs": 1, "logprobs": False}, "top_logprobs"),
        ("/v1/chat/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(server, path, asked, param):
    given = asked if "prompt" in asked else {"messages": MESSAGES, **asked}
    assert refused(server.post(path, given))["param"] == param


def test_a_missing_field_is_named(server):
    assert refused(server.post("/v1/completions", {}))["message"] == "prompt is missing"
    assert refused(server.post("/v1/chat/completions", {}))["param"] == "messages"


def test_a_prompt_one_token_over_the_window_says_both_numbers(server):
    for path, asked in (
        ("/v1/completions", {"prompt": [5] * WINDOW}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a b " * WINDOW}]}),
    ):
        message = refused(server.post(path, asked))["message"]
        assert f"window is {WINDOW}" in message
    assert "has 1024 tokens" in refused(server.post("/v1/completions", {"prompt": [5] * WINDOW}))["message"]
    fits = server.post("/v1/completions", {"prompt": [5] * (WINDOW - 1), "ignore_eos": True})
    assert fits.json()["usage"]["completion_tokens"] == 1


def test_of_several_prompts_the_one_to_blame_is_named_and_none_is_started(server):
    message = refused(server.post("/v1/completions", {"prompt": [[5], [5] * 2000]}))["message"]
    assert message.startswith("prompt[1] has 2000 tokens")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"prompt": "\xff\xfe"}', "UTF-8"),
        (b'{"prompt": "x"', "not JSON"),
        (b"", "JSON object"),
        (b"[]", "JSON object"),
        (b'"prompt"', "JSON object"),
        (b"[" * 100_000, "JSON"),
        (b'{"prompt": "\\ud800"}', "not valid Unicode"),
        (b'{"\\ud800": 1, "prompt": "x"}', "JSON object"),
        (b'{"prompt": "x", "stop": "\\ud800"}', "stop"),
        (b'{"prompt": "x", "temperature": NaN}', "temperature"),
        (b'{"prompt": "x", "temperature": 1e999}', "temperature"),
        (b'{"prompt": "x", "n": 1' + b"0" * 5000 + b"}", "JSON"),
        (b"\x00" * 50_000, "JSON"),
    ],
)
def test_a_body_that_is_no_request_is_refused(server, body, says):
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/completions", content=body, headers=headers)
    assert says in refused(answer)["message"]


def test_a_body_that_does_not_say_it_is_json_is_told_how(server):
    answer = httpx.post(f"{server.url}/v1/completions", content=b'{"prompt": "x"}')
    assert "Content-Type: application/json" in refused(answer)["message"]


def test_another_model_an_unknown_path_and_a_wrong_method(server):
    error = refused(server.post("/v1/completions", {"model": "gpt-4", "prompt": "x"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "this server has 'tiny'" in error["message"]
    assert "/v1/nothing" in refused(server.post("/v1/nothing", {}), 404)["message"]
    refused(server.get("/v1/completions"), 405)


def test_the_official_client_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="tiny", prompt="x", suffix="y")
    assert (error.value.param, error.value.status_code) == ("suffix", 400)
    with pytest.raises(openai.NotFoundError) as error:
        client.completions.create(model="other", prompt="x")
    assert error.value.code == "model_not_found"
