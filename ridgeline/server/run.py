"""Running a server: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ridgeline.errors import InputError
from ridgeline.server.gate import Admission, Limits
from ridgeline.server.service import Service

#: Seconds that connections get to be closed in, once their requests are answered or aborted.
_CLOSING_SECONDS = 5


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any that is free. Raises InputError if it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except socket.gaierror as error:
        raise InputError(
            f"--host {host} is not known ({error.strerror}): give an address of this machine"
        ) from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(
            f"cannot listen on {host} port {port} ({reason}): choose another --port or --host"
        ) from None


def address(listening: socket.socket) -> str:
    """The address of a bound socket, as clients on this machine write it."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def example(service: Service, limits: Limits, address: str) -> str:
    """A command that asks the server at ``address`` for something."""
    loaded = service.loaded
    text = '"Hello"' if loaded.tokenizer is not None else "[1, 2, 3]"
    if service.engine is None:
        path, body = "/v1/embeddings", f'{{"input": {text}}}'
    elif loaded.chat_template is None:
        path, body = "/v1/completions", f'{{"prompt": {text}, "max_tokens": 32}}'
    else:
        path, body = "/v1/chat/completions", f'{{"messages": [{{"role": "user", "content": {text}}}]}}'
    key = " -H 'Authorization: Bearer KEY'" if limits.keys else ""
    return f"curl {address}{path} -H 'Content-Type: application/json'{key} -d '{body}'"


class Server(uvicorn.Server):
    """Serves ``app`` until a signal comes. Then it takes no more requests and answers those that there are,
    for at most ``drain_seconds``; a second signal ends the process at once."""

    def __init__(self, app: FastAPI, drain_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="on",
                log_config=LOGGING,
                server_header=False,
                timeout_graceful_shutdown=_CLOSING_SECONDS,
            )
        )
        self._service: Service = app.state.service
        self._admission: Admission = app.state.admission
        self._drain_seconds = drain_seconds
        self._deadline = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._admission.draining:
            os._exit(128 + sig)
        self._admission.draining = True
        self._deadline = time.monotonic() + self._drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end; uvicorn asks ten times a second."""
        if self._admission.draining:
            if not self._admission.served:
                return True
            if time.monotonic() > self._deadline:
                await asyncio.to_thread(self._service.close)  # those that still wait are told so
                return True
        return await super().on_tick(counter)


#: A line for every request, and what goes wrong, on stderr. What cannot be written (a full disk) is lost, and
#: the server goes on: that is how logging's handlers are.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        "uvicorn.access": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "ridgeline": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}
