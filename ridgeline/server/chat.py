"""POST /v1/chat/completions: conversations that are answered, in the form of the model's own template."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from ridgeline.chat.prompt import chat_ids
from ridgeline.engine.request import Request as Prepared
from ridgeline.engine.result import Result, Token
from ridgeline.errors import InputError
from ridgeline.server.errors import ApiError, api_error
from ridgeline.server.generation import Generation, Prompts, prepare
from ridgeline.server.logprobs import TokenTexts
from ridgeline.server.requests import ChatRequest
from ridgeline.server.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Usage,
)
from ridgeline.server.service import Service, ServiceOf
from ridgeline.server.stream import EventStream, chunks, unless_left

router = APIRouter()


@router.post("/v1/chat/completions", response_model=ChatCompletion)
async def chat_completions(
    body: ChatRequest, request: Request, service: ServiceOf
) -> ChatCompletion | Response:
    """Answer a conversation. A model without a chat template refuses."""
    service.check_name(body.model)
    requests = await run_in_threadpool(_prepare, service, body)
    generation = Generation(service.need_engine(), service.metrics, requests, "chatcmpl")
    answer = _Answer(service, body, generation)
    if body.stream:
        return EventStream(chunks(answer.parts()))
    return await unless_left(request, answer.whole())


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
    try:
        ids = chat_ids([{"role": m.role, "content": m.text} for m in body.messages], template, tokenizer)
    except InputError as error:
        raise api_error(error, "messages") from None
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    asked = Prompts("messages", [ids], service.loaded.generation.max_new_tokens, logprobs)
    return prepare(service, body, asked, body.max_completion_tokens or body.max_tokens)


class _Answer:
    """A generation as a chat completion."""

    def __init__(self, service: Service, body: ChatRequest, generation: Generation) -> None:
        self._model = service.name
        self._with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._generation = generation
        self._texts = TokenTexts(service.loaded.tokenizer)

    async def whole(self) -> ChatCompletion:
        results = await self._generation.finish()
        generation = self._generation
        return ChatCompletion(
            id=generation.id,
            created=generation.created,
            model=self._model,
            choices=[self._choice(choice, result) for choice, result in enumerate(results)],
            usage=generation.usage,
        )

    async def parts(self) -> AsyncIterator[ChatChunk]:
        """A part for every piece of text, the role with the first, and at the end the usage if asked for."""
        begun: set[int] = set()
        async for token in self._generation.tokens():
            choice = self._generation.choice(token)
            part = self._part(choice, token, "assistant" if choice not in begun else None)
            if token.text or token.result is not None or part.logprobs is not None:
                begun.add(choice)
                yield self._chunk([part])
        if self._with_usage:
            yield self._chunk([], usage=self._generation.usage)

    def _choice(self, choice: int, result: Result) -> ChatChoice:
        logprobs: ChatLogprobs | None = None
        if result.logprobs is not None:
            logprobs = self._texts.for_chat(result.ids, result.logprobs)
        message = ChatMessage(content=result.text)
        return ChatChoice(
            index=choice, message=message, logprobs=logprobs, finish_reason=result.finish_reason
        )

    def _part(self, choice: int, token: Token, role: str | None) -> ChatChunkChoice:
        logprobs: ChatLogprobs | None = None
        if token.logprobs is not None:
            logprobs = self._texts.for_chat([token.id], [token.logprobs])
        return ChatChunkChoice(
            index=choice,
            delta=ChatDelta(role=role, content=token.text),
            logprobs=logprobs,
            finish_reason=None if token.result is None else token.result.finish_reason,
        )

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatChunk:
        generation = self._generation
        return ChatChunk(
            id=generation.id, created=generation.created, model=self._model, choices=choices, usage=usage
        )
