"""A server that speculates: the same answers, and what came of it in its metrics and its status."""

import json
import os
import signal
import subprocess
import sys

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

import ridgeline
from ridgeline.engine.speculation.beside import Beside
from ridgeline.engine.speculation.choice import choose
from ridgeline.engine.speculation.draft_model import DraftModel
from ridgeline.engine.speculation.length import FixedLength
from ridgeline.engine.speculation.speculator import Speculator
from tests.server.conftest import running

PROMPTS = ["def add(a, b):\n", "class Stack:\n", "import os\nimport os\n"]


@pytest.fixture(scope="module")
def draft():
    return ridgeline.load("demo-draft")


@pytest.fixture(scope="module", params=["ngram", "self", "draft model", "draft model, beside"])
def speculating(request, loaded, draft):
    if request.param.startswith("draft model"):
        proposer = DraftModel(draft, loaded)
        proposer = Beside(proposer, threads=1) if request.param.endswith("beside") else proposer
    else:
        proposer = choose(request.param, loaded).proposer
    with running(loaded, speculator=Speculator(proposer, length=FixedLength(3))) as server:
        yield server
        assert server.is_idle()


def metrics(server):
    families = text_string_to_metric_families(server.get("/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "seed": 4}])
def test_answers_are_those_of_a_server_without(server, speculating, sampling, stream):
    def texts(client):
        asked = {"model": "tiny", "prompt": PROMPTS, "max_tokens": 40, **sampling}
        if not stream:
            found = client.completions.create(**asked, n=2)
            return [(c.text, c.finish_reason) for c in found.choices], found.usage.completion_tokens
        found = [""] * len(PROMPTS)
        for part in client.completions.create(**asked, stream=True):
            found[part.choices[0].index] += part.choices[0].text
        return found

    assert texts(speculating.client()) == texts(server.client())


def test_logprobs_stops_and_formats_are_those_of_a_server_without(server, speculating):
    for more in (
        {"logprobs": 2, "seed": 1},
        {"stop": ["\n\n", ":"], "seed": 2},
        {"extra_body": {"regex": "[a-z ]{5,30}"}, "seed": 3},
    ):
        asked = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 30, **more}
        first, second = (s.client().completions.create(**asked).choices[0] for s in (server, speculating))
        assert first == second


def test_metrics_and_status_say_what_came_of_it(speculating):
    speculating.client().completions.create(model="tiny", prompt=PROMPTS, max_tokens=60, temperature=0)
    found, status = metrics(speculating), speculating.get("/v1/status").json()["speculation"]
    name = "ridgeline_speculation_{}_total".format
    assert found[name("trials")] == status["trials"] > 0
    assert found[name("proposed_tokens")] == status["proposed"] >= status["judged"] >= status["accepted"]
    assert found[name("accepted_tokens")] == status["accepted"] > 0
    assert found[name("judged_tokens")] == status["judged"]
    assert found[name("draft_seconds")] > 0
    assert status["acceptance"] == pytest.approx(status["accepted"] / status["judged"])
    assert status["tokens_per_trial"] == pytest.approx(1 + status["accepted"] / status["trials"])
    assert found["ridgeline_speculation_acceptance_ratio"] == status["acceptance"]
    assert found["ridgeline_speculation_tokens_per_trial"] == status["tokens_per_trial"]


def test_the_gain_stands_beside_the_predicted_one(loaded):
    """Known once there were plain steps to compare with."""
    with running(loaded, speculator=choose("draft:demo-draft", loaded)) as server:
        before = server.get("/v1/status").json()["speculation"]
        assert (before["trials"], before["acceptance"], before["gain"]) == (0, None, None)
        assert "ridgeline_speculation_gain_ratio" not in metrics(server)
        for _ in range(4):
            asked = {"prompt": "def", "max_tokens": 120, "temperature": 0, "ignore_eos": True}
            assert server.post("/v1/completions", asked).status_code == 200
        status, found = server.get("/v1/status").json()["speculation"], metrics(server)
        assert status["acceptance"] == 1  # the draft is the target
        assert found["ridgeline_speculation_gain_ratio"] == status["gain"] > 0
        assert found["ridgeline_speculation_predicted_gain_ratio"] == status["predicted_gain"] > 0


def test_without_speculation_nothing_is_said_of_it(server):
    assert server.get("/v1/status").json()["speculation"] is None
    assert "speculation" not in server.get("/metrics").text


def test_a_client_that_leaves_is_forgotten_by_the_draft(loaded, draft):
    proposer = DraftModel(draft, loaded)
    speculator = Speculator(Beside(proposer, threads=1), length=FixedLength(3))
    with running(loaded, speculator=speculator) as server:
        asked = {"prompt": "def", "max_tokens": 1000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=asked) as stream:
            next(stream.iter_lines())
        assert server.is_idle()
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 5}).status_code == 200
    assert proposer.pool.available == proposer.pool.blocks


def test_the_command_serves_with_a_draft_beside():
    arguments = ("demo", "--port", "0", "--cache-tokens", "4096", "--threads", "1")
    command = [sys.executable, "-m", "ridgeline.cli", "serve", *arguments]
    command += ["--speculate", "draft", "--draft-threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            line = process.stdout.readline()
            url = line.split("curl ")[1].split("/v1")[0]
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            asked = {"model": "demo", "prompt": PROMPTS[0], "max_tokens": 50, "temperature": 0}
            text = client.completions.create(**asked).choices[0].text
            loaded = ridgeline.load("demo")
            greedy = loaded.sampling(temperature=0.0)
            [expected] = loaded.generate(PROMPTS[0], max_tokens=50, sampling=greedy)
            assert text == expected.text
            assert json.loads(httpx.get(f"{url}/v1/status").text)["speculation"]["trials"] > 0
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
