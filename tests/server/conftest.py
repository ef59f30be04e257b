"""Servers on free ports of this machine, with tiny models and the official client."""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

import httpx
import openai

import ridgeline
from ridgeline.server.app import make_app
from ridgeline.server.gate import Admission, Limits
from ridgeline.server.run import Server, address, bind
from ridgeline.server.service import Service
from ridgeline.weights.chat import ChatTemplate

TEMPLATE = """\
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


@dataclass(frozen=True)
class Running:
    """A server in a thread of this process."""

    url: str
    service: Service
    server: Server

    @property
    def engine(self):
        return self.service.engine

    def client(self, **options):
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    def async_client(self):
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, path, body, **options):
        return httpx.post(f"{self.url}{path}", json=body, timeout=30, **options)

    def get(self, path, **options):
        return httpx.get(f"{self.url}{path}", timeout=30, **options)

    def is_idle(self):
        """Whether nothing is left of any request, once a moment has passed: a client that leaves is noticed
        between two steps."""
        return soon(self._nothing_is_left)

    def _nothing_is_left(self):
        scheduler, worker = self.engine._scheduler, self.engine._worker
        scheduler.check()
        return (
            not scheduler.has_work
            and scheduler.pool.available == scheduler.pool.blocks
            and not any((worker._orders, worker._core._answers, worker._core._outputs))
            and not self.server._admission.served
        )


def soon(holds, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def running(loaded, *, limits=None, origins=(), name="tiny", drain_seconds=5.0, **options):
    options = {"token_budget": 512, "sequences": 64, "cache_tokens": 8192, **options}
    service = Service.start(loaded, name, **options)
    admission = Admission()
    server = Server(make_app(service, limits or Limits(), admission, origins), drain_seconds)
    with bind("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Running(address(listening), service, server)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def loaded():
    """A trained model small enough for tests, which is given a chat template and ends no answer early."""
    template = ChatTemplate(TEMPLATE, {}, Path("chat_template.jinja"))
    return replace(ridgeline.load("demo-draft"), chat_template=template)


@pytest.fixture(scope="module")
def shared_server(loaded):
    with running(loaded) as server:
        yield server


@pytest.fixture
def server(shared_server):
    """One server for all tests of a file that do not change it; each must leave it idle."""
    yield shared_server
    assert shared_server.engine.is_alive
    assert shared_server.is_idle()


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture
def slowly(server, monkeypatch):
    """The server's engine, made so slow that nothing is done before it is looked at."""
    schedule = server.engine._scheduler.schedule

    def after_a_while():
        time.sleep(0.01)
        return schedule()

    monkeypatch.setattr(server.engine._scheduler, "schedule", after_a_while)
    return server
