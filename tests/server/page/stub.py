"""A server that speaks what the page asks for, and does what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ridgeline

PAGE = Path(ridgeline.__file__).parent / "server" / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: Seconds between two events of the status.
PERIOD = 0.05


def memory_bound() -> dict[str, float]:
    """A decode step at 2 FLOP/byte and 16 of 20 GB/s."""
    return {
        "intensity": 2.0,
        "flops_per_second": 32e9,
        "rows": 3,
        "seconds": 5e-3,
        "flops": 160e6,
        "bytes": 80e6,
    }


def compute_bound() -> dict[str, float]:
    """A prefill step at 100 FLOP/byte and 300 of 400 GFLOP/s."""
    return {
        "intensity": 100.0,
        "flops_per_second": 300e9,
        "rows": 512,
        "seconds": 0.1,
        "flops": 30e9,
        "bytes": 0.3e9,
    }


@dataclass
class Stub:
    """What the server answers, and what it was asked."""

    chat: bool = True
    #: The key it asks for; empty for none.
    key: str = ""
    #: What every answer consists of.
    pieces: tuple[str, ...] = ("Four", " tokens", ", well", " spoken.")
    #: After this many pieces an answer waits for `go`.
    hold_after: int | None = None
    #: Instead of an answer: a status and its message.
    refusal: tuple[int, str] | None = None
    #: In the middle of an answer: the message of an error.
    failure: str | None = None
    peak: float | None = 400e9
    bandwidth: float | None = 20e9
    point: dict[str, float] | None = field(default_factory=memory_bound)
    engine: dict[str, float] = field(default_factory=dict)

    go: threading.Event = field(default_factory=threading.Event)
    #: Set once a client has gone in the middle of an answer.
    left: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    #: The bodies of the requests for an answer.
    asked: list[dict[str, Any]] = field(default_factory=list)

    def status(self) -> dict[str, Any]:
        engine = {
            "running": 3,
            "waiting": 1,
            "sequences": 16,
            "kv_used": 128,
            "kv_total": 512,
            "block_size": 32,
            "preemptions": 0,
            "tokens_per_second": 212.4,
            "prompt_tokens_per_second": 1024.0,
            "requests_done": 41,
            "alive": True,
            "uptime": 4000.0,
        }
        return {
            "model": {
                "name": "stub-8m",
                "parameters": 8_400_000,
                "weights": "bf16",
                "window": 1024,
                "chat": self.chat,
            },
            "device": {
                "name": "Stub machine",
                "peak_flops": self.peak,
                "bandwidth": self.bandwidth,
                "measured": True,
            },
            "engine": engine | self.engine,
            "point": self.point,
        }


class _Handler(BaseHTTPRequestHandler):
    stub: Stub

    def do_GET(self) -> None:
        if self.path.startswith("/v1/"):
            if not self._allowed():
                return
            if self.path == "/v1/status/stream":
                self._stream(self._statuses())
            else:
                self._error(404, "no such path")
            return
        path = PAGE / (self.path.lstrip("/") or "index.html")
        if not path.is_file():
            self._error(404, "no such path")
            return
        self._reply(200, TYPES[path.suffix], path.read_bytes())

    def do_POST(self) -> None:
        if not self._allowed():
            return
        self.stub.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.stub.refusal is not None:
            self._error(*self.stub.refusal)
        else:
            self._stream(self._answer(chat=self.path == "/v1/chat/completions"))

    def _allowed(self) -> bool:
        if self.stub.key and self.headers["Authorization"] != f"Bearer {self.stub.key}":
            self._error(401, "a valid API key is needed")
            return False
        return True

    def _statuses(self) -> Iterator[str]:
        while not self.stub.closing.is_set():
            yield f"event: status\ndata: {json.dumps(self.stub.status())}\n\n"
            self.stub.closing.wait(PERIOD)

    def _answer(self, *, chat: bool) -> Iterator[str]:
        stub = self.stub
        for i, piece in enumerate(stub.pieces):
            if i == stub.hold_after:
                while not (stub.go.wait(PERIOD) or stub.closing.is_set()):
                    yield ": still here\n\n"
            if stub.failure is not None and i == 2:
                error = {"message": stub.failure, "type": "server_error", "param": None, "code": None}
                yield f"data: {json.dumps({'error': error})}\n\n"
                return
            said = {"delta": {"content": piece}} if chat else {"text": piece}
            yield f"data: {json.dumps({'choices': [{'index': 0, 'finish_reason': None, **said}]})}\n\n"
        said = {"delta": {}} if chat else {"text": ""}
        yield f"data: {json.dumps({'choices': [{'index': 0, 'finish_reason': 'length', **said}]})}\n\n"
        yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': len(stub.pieces)}})}\n\n"
        yield "data: [DONE]\n\n"

    def _stream(self, events: Iterator[str]) -> None:
        self._head(200, "text/event-stream")
        try:
            for event in events:
                self.wfile.write(event.encode())
        except (BrokenPipeError, ConnectionResetError):
            if self.path != "/v1/status/stream":
                self.stub.left.set()

    def _error(self, status: int, message: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self._reply(status, "application/json", json.dumps({"error": error}).encode())

    def _reply(self, status: int, kind: str, body: bytes) -> None:
        self._head(status, kind)
        self.wfile.write(body)

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(stub: Stub) -> Iterator[str]:
    """The address of a server that answers as ``stub`` says."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": stub}))
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}/"
    finally:
        stub.closing.set()
        httpd.shutdown()
        thread.join()
        httpd.server_close()
