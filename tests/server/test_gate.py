"""Who gets in: keys, limits and origins."""

import socket
import threading

import httpx
import openai
import pytest

from ridgeline.errors import InputError
from ridgeline.server import gate
from ridgeline.server.gate import Limits
from tests.server.conftest import running, soon

ASKED = {"prompt": "x", "max_tokens": 2}


@pytest.fixture(scope="module")
def closed(loaded):
    """A server with two keys, which takes small bodies, two at once."""
    limits = Limits(keys=("first", "second"), body_bytes=10_000, requests=2)
    with running(loaded, limits=limits) as server:
        yield server


def test_every_key_opens_the_api_and_nothing_else_does(closed):
    for key in ("first", "second"):
        assert closed.client(api_key=key).models.list().data
    for headers in (
        {},
        {"Authorization": "Bearer firs"},
        {"Authorization": "Bearer firstt"},
        {"Authorization": "Bearer clé".encode("latin-1")},
        {"Authorization": "first"},
        {"Authorization": "Basic first"},
    ):
        for path in ("/v1/models", "/v1/status", "/metrics", "/openapi.json", "/nothing"):
            answer = closed.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        closed.client().completions.create(model="tiny", prompt="x")


def test_health_and_the_page_need_no_key(closed):
    assert closed.get("/health").status_code == 200
    assert closed.get("/").status_code == 200


@pytest.mark.parametrize("keys", [("",), ("good", "  "), ("clé",)])
def test_a_key_that_no_client_could_send_is_refused(keys):
    with pytest.raises(InputError, match="--api-key"):
        Limits(keys=keys)


def test_a_body_of_50_mb_is_refused_before_it_is_read(closed):
    body = b'{"prompt": "' + b"x" * 50_000_000 + b'"}'
    headers = {"Authorization": "Bearer first", "Content-Type": "application/json"}
    answer = httpx.post(f"{closed.url}/v1/completions", content=body, headers=headers)
    assert answer.status_code == 413
    assert "more than 10000 bytes" in answer.json()["error"]["message"]
    assert closed.client(api_key="first").completions.create(model="tiny", prompt="x").choices


def test_a_body_that_does_not_say_its_length_is_counted_as_it_comes(closed):
    def pieces():
        for _ in range(20):
            yield b"x" * 1000

    headers = {"Authorization": "Bearer first", "Content-Type": "application/json"}
    answer = httpx.post(f"{closed.url}/v1/completions", content=pieces(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_a_body_that_does_not_come_is_not_waited_for(loaded, monkeypatch):
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.2)
    with running(loaded) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as sent:
            sent.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n")
            sent.sendall(b"Content-Type: application/json\r\n\r\n{")
            assert sent.recv(1000).startswith(b"HTTP/1.1 408")
        assert server.is_idle()


def test_more_requests_than_allowed_are_told_to_come_again(closed, monkeypatch):
    release = threading.Event()
    schedule = closed.engine._scheduler.schedule
    monkeypatch.setattr(closed.engine._scheduler, "schedule", lambda: release.wait(20) and schedule())
    headers = {"Authorization": "Bearer first"}
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(closed.post("/v1/completions", ASKED, headers=headers)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    assert soon(lambda: closed.server._admission.served == 2)
    answer = closed.post("/v1/completions", ASKED, headers=headers)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert closed.get("/v1/models", headers=headers).status_code == 200
    release.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in found] == [200, 200]
    assert closed.post("/v1/completions", ASKED, headers=headers).status_code == 200


def preflight(server, origin):
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    return httpx.options(f"{server.url}/v1/completions", headers=headers)


def test_pages_from_elsewhere_are_not_let_in(server):
    answer = preflight(server, "https://page.example")
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


def test_pages_from_an_allowed_origin_are(loaded):
    with running(loaded, origins=["https://page.example"], limits=Limits(keys=("key",))) as server:
        answer = preflight(server, "https://page.example")
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert "access-control-allow-origin" not in preflight(server, "https://other.example").headers
        refused = server.get("/v1/models", headers={"Origin": "https://page.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://page.example"
