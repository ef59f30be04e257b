"""Who gets in: API keys, a drain, and limits on bodies and on requests at once."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ridgeline.errors import InputError
from ridgeline.server.errors import ApiError, unavailable

#: Seconds in which a request's body has to arrive.
BODY_SECONDS = 60.0
#: Paths of requests that are counted by name; all others are one.
_COUNTED = (
    *("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/models", "/v1/status"),
    *("/tokenize", "/detokenize"),
)


@dataclass(frozen=True)
class Limits:
    """API ``keys``, any of which opens the API (none: it is open), bytes of a body at most, and requests that
    are answered at once.

    Raises InputError that names the option.
    """

    keys: tuple[str, ...] = ()
    body_bytes: int = 4 * 2**20
    requests: int = 256

    def __post_init__(self) -> None:
        if not all(key.strip() and key.isascii() for key in self.keys):
            raise InputError("--api-key needs plain characters that are not all spaces: give another key")


@dataclass
class Admission:
    """The gate's state: how many requests are being answered, and whether no more are taken."""

    served: int = 0
    draining: bool = False


class Gate:
    """Turns requests away before their bodies are read. Paths in ``open_paths`` need no key."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        admission: Admission,
        open_paths: Collection[str],
        count: Callable[[str, int], None],
    ) -> None:
        self._app = app
        self._limits = limits
        self._admission = admission
        self._open_paths = open_paths
        self._count = count
        self._keys = [key.encode() for key in limits.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal.response(scope, receive, self._counted(scope, send))
        elif scope["method"] != "POST":
            await self._app(scope, receive, self._counted(scope, send))
        else:
            self._admission.served += 1
            try:
                await self._app(scope, self._limited(receive), self._counted(scope, send))
            finally:
                self._admission.served -= 1

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._keys and scope["path"] not in self._open_paths and not self._is_known(headers):
            return ApiError(
                "give the server's API key, as Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if scope["method"] != "POST":
            return None
        if self._admission.draining:
            return unavailable()
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            return self._too_large()
        if self._admission.served >= self._limits.requests:
            return ApiError(
                f"{self._limits.requests} requests are being answered, which is all at once: try again",
                status=429,
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        return None

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip().encode("latin-1")
        # Every key is compared, so that the time tells nothing of which came close.
        found = [hmac.compare_digest(given, key) for key in self._keys]
        return scheme.lower() == "bearer" and any(found)

    def _too_large(self) -> ApiError:
        most = self._limits.body_bytes
        # What is left of the body is not read, so the connection cannot be used again.
        return ApiError(
            f"the body has more than {most} bytes: send less, or start the server with a larger --body-limit",
            status=413,
            code="request_too_large",
            headers={"Connection": "close"},
        )

    def _limited(self, receive: Receive) -> Receive:
        """``receive`` for a body that is neither too large nor too slow, whatever its headers say."""
        size, complete = 0, False
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS

        async def limited() -> Message:
            nonlocal size, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body did not arrive in time", {"Connection": "close"}) from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > self._limits.body_bytes:
                refusal = self._too_large()
                raise HTTPException(refusal.status, str(refusal), refusal.headers)
            return message

        return limited

    def _counted(self, scope: Scope, send: Send) -> Send:
        """``send`` that counts the answer when it begins."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"]
                self._count(path if path in _COUNTED else "other", message["status"])
            await send(message)

        return counted
