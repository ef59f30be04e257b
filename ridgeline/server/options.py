"""From a request's fields to prepared requests of the engine."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ridgeline.engine.request import Request
from ridgeline.engine.sampling import SEEDS, Sampling
from ridgeline.errors import InputError
from ridgeline.loading import Loaded
from ridgeline.server.errors import ApiError, api_error
from ridgeline.server.fields import JsonObjectFormat, JsonSchemaFormat
from ridgeline.server.requests import Generating
from ridgeline.server.service import Service

#: Fields of ours for options of the engine that have other names.
_FIELDS = {"json_schema": "response_format"}

#: Any JSON object, as a JSON schema.
_ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids, and the name of the ``field`` that they came in. An answer has ``max_tokens`` at
    most if the request says so; else ``most``, or as many as there is room for. With each token come the
    log-probabilities of it and of the ``logprobs`` likeliest (None: of none)."""

    field: str
    ids: Sequence[Sequence[int]]
    max_tokens: int | None
    most: int | None
    logprobs: int | None


def prepare(service: Service, body: Generating, prompts: Prompts) -> list[Request]:
    """A checked request for each prompt. Raises ApiError that names the field to blame."""
    engine = service.need_engine()
    try:
        options = _options(service.loaded, body)
        return [
            engine.prepare(
                ids,
                max_tokens=_room(service, ids, prompts.most, name)
                if prompts.max_tokens is None
                else prompts.max_tokens,
                logprobs=prompts.logprobs,
                name=name,
                **options,
            )
            for name, ids in _named(prompts)
        ]
    except InputError as error:
        raise api_error(error, blamed(str(error), type(body)) or prompts.field) from None


def _named(prompts: Prompts) -> Iterator[tuple[str, Sequence[int]]]:
    """Each prompt with the name by which errors speak of it."""
    alone = len(prompts.ids) == 1
    for place, ids in enumerate(prompts.ids):
        yield prompts.field if alone else f"{prompts.field}[{place}]", ids


def blamed(message: str, body: type[Generating]) -> str | None:
    """The field that a message of the engine begins with, if it does."""
    begins = re.match(r"\w+", message)
    name = _FIELDS.get(begins[0], begins[0]) if begins else None
    return name if name in body.model_fields else None


def _options(loaded: Loaded, body: Generating) -> dict[str, Any]:
    """What the request asks of the engine, beside its length."""
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options goes with stream: true alone", param="stream_options")
    options = {
        "sampling": _sampling(loaded, body),
        "n": body.n or 1,
        "stop": body.stop or (),
        "priority": body.priority or 0.0,
        **_constraints(body),
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


def _constraints(body: Generating) -> dict[str, Any]:
    """The options of the engine that hold an output to a format."""
    schema = None
    if isinstance(body.response_format, JsonSchemaFormat):
        schema = body.response_format.json_schema.json_schema
    if isinstance(body.response_format, JsonObjectFormat):
        schema = _ANY_OBJECT
    return {"json_schema": schema, "regex": body.regex}


def _room(service: Service, ids: Sequence[int], most: int | None, name: str) -> int | None:
    """The tokens that an answer may have if nobody says, of at most ``most``: what the window and the cache
    leave, and None if the window leaves nothing, which the engine then refuses in its words.

    Raises InputError if the prompt ``name`` alone does not fit the cache.
    """
    window, cached = service.loaded.config.window, service.need_engine().cache_tokens
    if cached < len(ids) < window:
        raise InputError(
            f"{name} has {len(ids)} tokens and the server's cache holds {cached}: shorten it, or start the"
            " server with a larger --cache-tokens"
        )
    # The last token of an output is never fed back, so the cache does not hold it.
    room = min(window, cached + 1) - max(len(ids), 1)
    return None if room < 1 else min(room, most or room)
