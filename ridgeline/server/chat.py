"""POST /v1/chat/completions: conversations that are answered, in the form of the model's own template."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from ridgeline.chat.prompt import chat_ids
from ridgeline.engine.request import Request as Prepared
from ridgeline.engine.result import Token
from ridgeline.errors import InputError
from ridgeline.server.errors import ApiError, api_error
from ridgeline.server.generation import Generation
from ridgeline.server.options import Prompts, prepare
from ridgeline.server.requests import ChatRequest
from ridgeline.server.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
)
from ridgeline.server.service import Service, ServiceOf
from ridgeline.server.stream import EVENTS, EventStream, chunks, unless_left

router = APIRouter()


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=EVENTS)
async def chat_completions(
    body: ChatRequest, request: Request, service: ServiceOf
) -> ChatCompletion | Response:
    """Answer a conversation. A model without a chat template refuses."""
    service.check_name(body.model)
    requests = await run_in_threadpool(_prepare, service, body)
    generation = Generation(service, body, requests, "chatcmpl")
    if body.stream:
        return EventStream(chunks(_parts(generation, body.wants_usage)))
    return await unless_left(request, _whole(generation))


def _prepare(service: Service, body: ChatRequest) -> list[Prepared]:
    service.need_engine()
    template, tokenizer = service.loaded.chat_template, service.need_tokenizer()
    if template is None:
        raise ApiError(
            f"{service.name} has no chat template, so it takes no messages: use /v1/completions",
            param="messages",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs goes with logprobs: true alone", param="top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(
            "max_tokens is another name of max_completion_tokens: give one of them", param="max_tokens"
        )
    try:
        ids = chat_ids([{"role": m.role, "content": m.text} for m in body.messages], template, tokenizer)
    except InputError as error:
        raise api_error(error, "messages") from None
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    most, usual = body.max_completion_tokens or body.max_tokens, service.loaded.generation.max_new_tokens
    return prepare(service, body, Prompts("messages", [ids], most, usual, logprobs))


async def _whole(generation: Generation) -> ChatCompletion:
    choices = [
        ChatChoice(
            index=choice,
            message=ChatMessage(content=result.text),
            logprobs=result.logprobs and generation.texts.for_chat(result.ids, result.logprobs),
            finish_reason=result.finish_reason,
        )
        for choice, result in enumerate(await generation.finish())
    ]
    return ChatCompletion(**generation.stamp, choices=choices, usage=generation.usage)


async def _parts(generation: Generation, with_usage: bool) -> AsyncIterator[ChatChunk]:
    """A part for every piece of text, the role with the first, and at the end the usage if asked for."""
    roles: dict[int, Literal["assistant"]] = dict.fromkeys(range(generation.samples), "assistant")
    async for choice, token in generation.tokens():
        if token.text or token.logprobs is not None or token.result is not None:
            part = _part(
                generation, choice, token, ChatDelta(role=roles.pop(choice, None), content=token.text)
            )
            yield ChatChunk(**generation.stamp, choices=[part])
    if with_usage:
        yield ChatChunk(**generation.stamp, choices=[], usage=generation.usage)


def _part(generation: Generation, choice: int, token: Token, delta: ChatDelta) -> ChatChunkChoice:
    return ChatChunkChoice(
        index=choice,
        delta=delta,
        logprobs=token.logprobs and generation.texts.for_chat([token.id], [token.logprobs]),
        finish_reason=token.result and token.result.finish_reason,
    )
