"""``ridgeline serve`` as a process: how it starts, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest

from ridgeline.cli import main

SERVE = (sys.executable, "-m", "ridgeline.cli", "serve")


@contextmanager
def served(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, port=0, **environment):
    """The process of a server, which is ended in any case."""
    command = [*SERVE, "demo-draft", "--port", str(port), "--cache-tokens", "4096", *arguments]
    process = subprocess.Popen(
        command, stdout=stdout, stderr=stderr, text=True, env={**os.environ, **environment}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process):
    """The start-up line, and the address in it."""
    line = process.stdout.readline()
    return line, re.search(r"http://[\d.:]+\d", line)[0]


@pytest.fixture
def refused(monkeypatch, capsys):
    """What a server that cannot start says; it must be one line, and exit code 2."""

    def refused(*arguments):
        monkeypatch.setattr(sys, "argv", ["ridgeline", "serve", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert (end.value.code, said.out, said.err.count("\n")) == (2, "", 1), said.err
        return said.err

    return refused


def test_the_first_line_says_how_to_try_it_and_that_works():
    with served("--name", "draft") as process:
        line, url = first_line(process)
        assert "draft is served" in line
        command = line[line.index("curl") :]
        body = json.loads(re.search(r"-d '(.*)'", command)[1])
        found = httpx.post(re.search(r"curl (\S+)", command)[1], json=body).json()
        assert found["model"] == "draft"
        assert found["usage"]["completion_tokens"] > 0
        assert url.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert "POST /v1/completions" in err
    assert "Traceback" not in err


def test_keys_may_come_from_the_environment():
    with served(RIDGELINE_API_KEYS="one two") as process:
        line, url = first_line(process)
        assert "Authorization: Bearer KEY" in line
        for key, status in (("one", 200), ("two", 200), ("one two", 401)):
            answer = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status


def test_a_drain_answers_those_that_there_are_and_takes_no_more():
    with served() as process:
        _, url = first_line(process)
        asked = {"prompt": ["x"] * 32, "max_tokens": 900, "ignore_eos": True}
        found = {}
        thread = threading.Thread(
            target=lambda: found.update(httpx.post(f"{url}/v1/completions", json=asked, timeout=60).json())
        )
        thread.start()
        while not httpx.get(f"{url}/v1/status").json()["engine"]["running"]:
            pass
        process.send_signal(signal.SIGTERM)
        refused = httpx.post(f"{url}/v1/completions", json=asked)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        thread.join()
        process.communicate(timeout=20)
    assert found["usage"]["completion_tokens"] == 32 * 900
    assert process.returncode == 0


def test_a_drain_that_takes_too_long_aborts_what_is_left_and_says_so():
    with served("--drain-seconds", "0.3") as process:
        _, url = first_line(process)
        asked = {"prompt": ["x"] * 256, "max_tokens": 1000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        process.communicate(timeout=20)
    assert "the server is shutting down" in last
    assert process.returncode == 0


def test_a_second_signal_ends_it_at_once():
    with served() as process:
        _, url = first_line(process)
        asked = {"prompt": ["x"] * 256, "max_tokens": 1000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            while httpx.get(f"{url}/health").status_code == 200:
                pass
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT


def test_a_full_disk_for_logs_does_not_stop_it():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with open("/dev/full", "w") as full, served(stdout=full, stderr=full, port=port) as process:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.ConnectError:
                assert process.poll() is None
            time.sleep(0.1)
        for _ in range(3):
            assert httpx.post(f"{url}/v1/completions", json={"prompt": "x"}).status_code == 200
        assert httpx.post(f"{url}/v1/completions", json={}).status_code == 400
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def test_a_port_in_use_is_one_line(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused("demo-draft", "--port", str(port))
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use)" in message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("demo-draft", "--host", "no.such.host.invalid", "--port", "0"), "--host no.such.host.invalid"),
        (("demo-draft", "--host", "192.0.2.1", "--port", "0"), "cannot listen on 192.0.2.1"),
        (("no-such-model", "--port", "0"), "no-such-model"),
        (("tinyllama-1.1b", "--port", "0"), "--weights random"),
        (("demo-draft", "--port", "0", "--api-key", " "), "--api-key"),
        (("demo-draft", "--port", "0", "--sequences", "0"), "--sequences"),
        (("demo-draft", "--port", "0", "--threads", "0"), "threads"),
        (("demo-draft", "--port", "70000"), "port"),
        (("demo-draft", "--port", "0", "--speculate", "much"), "speculate is 'much', expected off, ngram"),
        (("demo-draft", "--port", "0", "--speculate", "draft:"), "speculate is 'draft:', expected off"),
        (("demo-draft", "--port", "0", "--speculate", "draft:gpt2"), "the draft gpt2 is a built-in config"),
        (("demo-draft", "--port", "0", "--speculate", "draft"), "ships with no draft"),
        (("demo-draft", "--port", "0", "--draft-threads", "1"), "draft_threads goes with a draft model"),
        (
            ("demo-draft", "--port", "0", "--speculate", "draft:demo-draft", "--draft-threads", "0"),
            "draft_threads is 0; give a whole number from 1 to 1024",
        ),
        (("bert-base", "--port", "0", "--speculate", "ngram", "--weights", "random"), "is an encoder"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(refused, arguments, says):
    assert says in refused(*arguments)
