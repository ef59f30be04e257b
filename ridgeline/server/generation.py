"""From a request's fields to prepared requests of the engine, and its tokens on their way to an answer."""

from __future__ import annotations

import re
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from ridgeline.engine.engine import Engine, TokenStream
from ridgeline.engine.prompts import Requests
from ridgeline.engine.request import Request
from ridgeline.engine.result import Result, Token
from ridgeline.engine.sampling import SEEDS, Sampling
from ridgeline.errors import InputError
from ridgeline.loading import Loaded
from ridgeline.server.errors import ApiError, api_error
from ridgeline.server.fields import JsonSchemaFormat, TextFormat
from ridgeline.server.metrics import Metrics
from ridgeline.server.requests import Generating
from ridgeline.server.responses import PromptTokensDetails, Usage
from ridgeline.server.service import Service


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids, and the name of the ``field`` that they came in. An answer has at most ``most``
    tokens where the request does not say (None: as many as there is room for), and with each come the
    log-probabilities of it and of the ``logprobs`` likeliest (None: of none)."""

    field: str
    ids: Sequence[Sequence[int]]
    most: int | None
    logprobs: int | None


def prepare(service: Service, body: Generating, prompts: Prompts, max_tokens: int | None) -> list[Request]:
    """A checked request for each prompt, of at most ``max_tokens`` tokens if that is given.

    Raises ApiError that names the field to blame.
    """
    engine = service.need_engine()
    try:
        options = _options(service.loaded, body)
        return [
            engine.prepare(
                ids,
                max_tokens=_room(service, ids, prompts.most) if max_tokens is None else max_tokens,
                logprobs=prompts.logprobs,
                name=prompts.field if len(prompts.ids) == 1 else f"{prompts.field}[{place}]",
                **options,
            )
            for place, ids in enumerate(prompts.ids)
        ]
    except InputError as error:
        [blamed] = re.findall(r"^\w+", str(error)) or [""]
        raise api_error(error, blamed if blamed in type(body).model_fields else prompts.field) from None


def _options(loaded: Loaded, body: Generating) -> dict[str, Any]:
    """What the request asks of the engine, beside its length."""
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options goes with stream: true alone", param="stream_options")
    options = {
        "sampling": _sampling(loaded, body),
        "n": body.n or 1,
        "stop": body.stop or (),
        "priority": body.priority or 0.0,
        **_constraint(body.response_format),
    }
    return options | {"stop_ids": ()} if body.ignore_eos else options


def _sampling(loaded: Loaded, body: Generating) -> Sampling:
    temperature = loaded.generation.temperature if body.temperature is None else body.temperature
    return loaded.sampling(
        temperature=temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        seed=secrets.randbelow(SEEDS) if body.seed is None else body.seed,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
    )


def _constraint(format: TextFormat | JsonSchemaFormat | None) -> dict[str, Any]:
    """The option of the engine that holds an output to a format."""
    if not isinstance(format, JsonSchemaFormat):
        return {}
    if "json_schema" not in signature(Requests.make).parameters:
        raise ApiError(
            "response_format of type json_schema is not supported: leave it out", param="response_format"
        )
    return {"json_schema": format.json_schema.json_schema}


def _room(service: Service, ids: Sequence[int], most: int | None) -> int | None:
    """The tokens that an answer may have if nobody says, of at most ``most``: what the window and the cache
    leave, and None if that is nothing, which the engine then refuses in its words."""
    # The last token of an output is never fed back, so the cache does not hold it.
    longest = min(service.loaded.config.window, service.need_engine().cache_tokens + 1)
    room = longest - max(len(ids), 1)
    return None if room < 1 else min(room, most or room)


@dataclass
class Generation:
    """Prepared requests that the engine computes, for one answer called ``id``.

    Raises EngineClosed.
    """

    engine: Engine
    metrics: Metrics
    requests: Sequence[Request]
    prefix: str
    results: dict[int, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._stream: TokenStream = self.engine.start(self.requests)

    async def tokens(self) -> AsyncIterator[Token]:
        """The tokens as they come. The results are kept; whoever leaves early aborts the requests."""
        async with aclosing(self._stream) as stream:
            async for token in stream:
                if token.result is not None:
                    self.results[self.choice(token)] = token.result
                    self.metrics.answered(token.result)
                yield token

    async def finish(self) -> list[Result]:
        """All results in the order of their choices."""
        async for _ in self.tokens():
            pass
        return [self.results[choice] for choice in sorted(self.results)]

    def choice(self, token: Token) -> int:
        """The number of the answer's choice that a token is part of: all samples of the first prompt come
        before those of the second."""
        return token.request * self.requests[0].samples + token.sample

    @property
    def usage(self) -> Usage:
        """Of the results so far; a prompt counts once."""
        prompt = sum(len(request.prompt) for request in self.requests)
        output = sum(len(result.ids) for result in self.results.values())
        cached = sum(result.cached_tokens for result in self.results.values() if result.sample == 0)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=output,
            total_tokens=prompt + output,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )
