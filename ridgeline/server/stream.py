"""Answers that come in parts, and clients that leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from ridgeline.engine.worker import EngineClosed
from ridgeline.server.errors import api_error

#: How the API's description says that an answer may be events.
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
EVENTS = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class EventStream(StreamingResponse):
    """Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str]) -> None:
        # No proxy may keep parts back until there are more of them.
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


def event(data: str, name: str | None = None) -> str:
    """One event; ``data`` is a single line."""
    named = "" if name is None else f"event: {name}\n"
    return f"{named}data: {data}\n\n"


async def chunks(parts: AsyncIterator[BaseModel]) -> AsyncIterator[str]:
    """The parts of an answer as events, and OpenAI's mark of the end; or the error that ended it before."""
    try:
        async for part in parts:
            yield event(part.model_dump_json())
    except Exception as error:
        found = api_error(error)
        if found.status >= 500 and not isinstance(error, EngineClosed):  # a drain that took too long is none
            _log.error("a stream failed", exc_info=error)
        yield event(found.body.model_dump_json())
    else:
        yield event("[DONE]")


async def unless_left(request: Request, work: Coroutine[None, None, Answer]) -> Answer | Response:
    """What ``work`` gives; it is cancelled if the client leaves, who then gets nothing."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=499)
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
