"""Models, tokens, health, metrics and status."""

import json
import re

import httpx
import openai
import pytest

from tests.server.conftest import running


def test_the_one_model_is_listed_under_its_name(client, loaded):
    [entry] = client.models.list().data
    assert (entry.id, entry.object) == ("tiny", "model")
    assert client.models.retrieve("tiny").model_extra["max_model_len"] == loaded.config.window
    with pytest.raises(openai.NotFoundError, match="'org/other' does not exist"):
        client.models.retrieve("org/other")


def test_text_becomes_tokens_and_tokens_text(server, loaded):
    found = server.post("/tokenize", {"prompt": "def add(a, b):"}).json()
    assert found["tokens"] == loaded.tokenizer.encode("def add(a, b):")
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), loaded.config.window)
    assert server.post("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "def add(a, b):"}
    assert server.post("/detokenize", {"tokens": [0]}).json() == {"prompt": "<|endoftext|>"}


@pytest.mark.parametrize("token", [-1, 4096, 2**80])
def test_a_token_outside_the_vocabulary_is_refused(server, token):
    found = server.post("/detokenize", {"tokens": [1, token]})
    assert found.status_code == 400
    assert found.json()["error"]["param"].startswith("tokens")


def test_health_reflects_the_engine(loaded, monkeypatch):
    with running(loaded) as server:
        assert (server.get("/health").status_code, server.get("/health").json()) == (200, {"status": "ok"})
        monkeypatch.setattr(server.engine._scheduler, "schedule", lambda: 1 / 0)
        failed = server.post("/v1/completions", {"prompt": "x"})
        assert failed.status_code == 500
        assert failed.json()["error"]["type"] == "server_error"
        assert (server.get("/health").status_code, server.get("/health").json()) == (503, {"status": "dead"})
        assert server.get("/v1/status").json()["engine"]["alive"] is False
        assert server.post("/v1/completions", {"prompt": "x"}).status_code == 503


def test_metrics_count_what_was_done(loaded):
    with running(loaded) as server:
        asked = {"prompt": [5] * 65, "max_tokens": 4, "n": 2, "ignore_eos": True}
        for _ in range(2):
            server.post("/v1/completions", asked)
        server.post("/v1/completions", {"prompt": 5})
        text = server.get("/metrics").text
    found = dict(re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE))
    for name, value in {
        'ridgeline_http_requests_total{path="/v1/completions",status="200"}': 2,
        'ridgeline_http_requests_total{path="/v1/completions",status="400"}': 1,
        "ridgeline_prompt_tokens_total": 130,
        "ridgeline_prompt_tokens_cached_total": 64,
        "ridgeline_prompt_tokens_computed_total": 66,
        "ridgeline_output_tokens_total": 16,
        "ridgeline_time_to_first_token_seconds_count": 4,
        "ridgeline_time_per_output_token_seconds_count": 4,
        "ridgeline_running_sequences": 0,
        "ridgeline_waiting_requests": 0,
        "ridgeline_cache_blocks": 256,
        "ridgeline_cache_blocks_used": 0,
        "ridgeline_preemptions_total": 0,
        "ridgeline_step_seconds_count": 8,
    }.items():
        assert float(found[name]) == value, name


def test_preemptions_are_counted(loaded):
    with running(loaded, cache_tokens=96) as server:
        prompts = [[5, 6], [7, 8]]
        server.post("/v1/completions", {"prompt": prompts, "max_tokens": 80, "ignore_eos": True})
        assert server.get("/v1/status").json()["engine"]["preemptions"] > 0


def test_the_status_says_what_the_page_shows(slowly, loaded):
    asked = {"prompt": "x", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{slowly.url}/v1/completions", json=asked) as stream:
        lines = stream.iter_lines()  # held, because the stream is closed with it
        next(lines)
        status = slowly.get("/v1/status").json()
    parameters = loaded.model.parameter_count()
    assert status["model"] == {
        "name": "tiny",
        "parameters": parameters,
        "weights": "bf16",
        "window": 1024,
        "chat": True,
    }
    assert status["device"].keys() == {"name", "peak_flops", "bandwidth", "measured"}
    engine = status["engine"]
    assert (engine["running"], engine["waiting"], engine["sequences"], engine["alive"]) == (1, 0, 64, True)
    assert 0 < engine["kv_used"] <= engine["kv_total"] == 256
    assert engine["block_size"] == 32
    assert engine["uptime"] > 0
    point = status["point"]
    assert point["rows"] == 1
    assert point["intensity"] == point["flops"] / point["bytes"] > 0
    assert point["flops_per_second"] == point["flops"] / point["seconds"] > 0
    assert slowly.is_idle()
    assert slowly.get("/v1/status").json()["point"] is None  # nothing is computed


KEYS = {"model", "device", "engine", "point", "speculation"}


def test_the_status_is_streamed_as_events(server):
    server.post("/v1/completions", {"prompt": "x", "max_tokens": 200, "ignore_eos": True})
    with httpx.stream("GET", f"{server.url}/v1/status/stream") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        for _ in range(2):
            name, data, end = next(lines), next(lines), next(lines)
            assert (name, end) == ("event: status", "")
            assert json.loads(data.removeprefix("data: ")).keys() == KEYS
    assert json.loads(data.removeprefix("data: "))["engine"]["tokens_per_second"] > 0
