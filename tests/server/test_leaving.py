"""Clients that leave, and engines that fail: nobody else notices."""

import asyncio
import json
import signal
import subprocess
import sys

import httpx
import pytest

from tests.server.conftest import running

ENDLESS = {"prompt": "def", "max_tokens": 1000, "ignore_eos": True, "temperature": 0}


def others_answer(server, loaded):
    """A request beside the one that is left, and what it should give."""
    [expected] = loaded.generate("class", max_tokens=30, sampling=loaded.sampling(seed=3))
    found = server.post("/v1/completions", {"prompt": "class", "max_tokens": 30, "seed": 3})
    return found.json()["choices"][0]["text"] == expected.text


def test_a_client_that_leaves_a_stream_aborts_its_request_only(slowly, loaded):
    before = slowly.engine.status().output_tokens
    with httpx.stream("POST", f"{slowly.url}/v1/completions", json={**ENDLESS, "stream": True}) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert slowly.engine.status().running == 1
    assert others_answer(slowly, loaded)
    assert slowly.is_idle()
    assert slowly.engine.status().output_tokens - before < 1000


def test_a_client_that_does_not_wait_for_its_answer_aborts_it(slowly, loaded):
    answered = slowly.engine.status().answered
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{slowly.url}/v1/completions", json={**ENDLESS, "n": 3}, timeout=0.3)
    assert slowly.is_idle()
    assert slowly.engine.status().answered == answered
    assert others_answer(slowly, loaded)


def test_an_asynchronous_client_that_is_cancelled_aborts_its_request(slowly):
    async def ask():
        client = slowly.async_client()
        asked = {"model": "tiny", "prompt": "x", "max_tokens": 900, "extra_body": {"ignore_eos": True}}
        reading = asyncio.create_task(client.completions.create(**asked))
        await asyncio.sleep(0.3)
        assert slowly.engine.status().running == 1
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(ask())
    assert slowly.is_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_is_killed_aborts_its_request_only(slowly, loaded, stream):
    code = (
        "import httpx, json, sys\n"
        "url, asked = sys.argv[1], json.loads(sys.argv[2])\n"
        "print('asking', flush=True)\n"
        "with httpx.stream('POST', url, json=asked, timeout=60) as stream:\n"
        "    for line in stream.iter_lines(): print(line, flush=True)\n"
    )
    asked = json.dumps({**ENDLESS, "stream": stream})
    command = [sys.executable, "-c", code, f"{slowly.url}/v1/completions", asked]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        client.stdout.readline()
        while not slowly.engine.status().running:
            assert client.poll() is None
        client.send_signal(signal.SIGKILL)
    assert others_answer(slowly, loaded)
    assert slowly.is_idle()


def test_a_step_that_fails_is_an_error_event_in_a_stream_and_500_without(server, monkeypatch):
    runner = server.engine._worker._core.runner
    run = type(runner).run

    def sometimes(plan):
        if any(len(chunk.sequence.tokens) > 20 for chunk in plan.chunks):
            raise RuntimeError("out of memory")
        return run(runner, plan)

    monkeypatch.setattr(runner, "run", sometimes)
    answer = server.post("/v1/completions", {**ENDLESS, "stream": True})
    *_, last, end = answer.text.split("\n\n")
    assert (answer.status_code, end) == (200, "")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "out of memory" in error["message"]
    assert "[DONE]" not in answer.text
    whole = server.post("/v1/completions", ENDLESS)
    assert (whole.status_code, whole.json()["error"]["type"]) == (500, "server_error")
    assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 3}).status_code == 200


def test_a_stream_whose_engine_ends_is_told_so(loaded):
    with running(loaded) as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json={**ENDLESS, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.engine.close()
            events = [line for line in lines if line]
        assert "shutting down" in events[-1]
        assert "[DONE]" not in events[-1]
