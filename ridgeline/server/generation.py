"""What the engine makes of prepared requests, on its way to an answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from ridgeline.engine.request import Request
from ridgeline.engine.result import Result, Token
from ridgeline.errors import InputError
from ridgeline.server.errors import api_error
from ridgeline.server.logprobs import TokenTexts
from ridgeline.server.options import blamed
from ridgeline.server.requests import Generating
from ridgeline.server.responses import PromptTokensDetails, Usage
from ridgeline.server.service import Service


class Generation:
    """Prepared ``requests``, alike but for their prompts, that are computed for the one answer to ``body``.
    ``stamp`` is what the answer and all its parts begin with: an id, which begins with ``prefix``, the time,
    and the model.

    Raises EngineClosed.
    """

    def __init__(self, service: Service, body: Generating, requests: Sequence[Request], prefix: str) -> None:
        self.stamp: dict[str, Any] = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.name,
        }
        self.texts = TokenTexts(service.loaded.tokenizer)
        self.samples = requests[0].samples
        self._body = type(body)
        self._requests = requests
        self._metrics = service.metrics
        self._results: dict[int, Result] = {}
        self._stream = service.need_engine().start(requests)

    async def tokens(self) -> AsyncIterator[tuple[int, Token]]:
        """The tokens as they come, each with the number of the choice that it is part of: all samples of the
        first prompt come before those of the second. Whoever leaves early aborts the requests. Bad input that
        shows only now is an ApiError that names the field, if its message does."""
        async with aclosing(self._stream) as stream:
            try:
                async for token in stream:
                    choice = token.request * self.samples + token.sample
                    if token.result is not None:
                        self._results[choice] = token.result
                        self._metrics.answered(token.result)
                    yield choice, token
            except InputError as error:
                raise api_error(error, blamed(str(error), self._body)) from None

    async def finish(self) -> list[Result]:
        """All results in the order of their choices."""
        async for _ in self.tokens():
            pass
        return [self._results[choice] for choice in sorted(self._results)]

    @property
    def usage(self) -> Usage:
        """Of the results so far; a prompt counts once."""
        prompt = sum(len(request.prompt) for request in self._requests)
        output = sum(len(result.ids) for result in self._results.values())
        cached = sum(result.cached_tokens for result in self._results.values() if result.sample == 0)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=output,
            total_tokens=prompt + output,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )
