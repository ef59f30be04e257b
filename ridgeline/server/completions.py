"""POST /v1/completions: texts that are continued."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from ridgeline.engine.request import Request as Prepared
from ridgeline.engine.result import Token
from ridgeline.errors import InputError
from ridgeline.server.errors import ApiError, api_error
from ridgeline.server.generation import Generation
from ridgeline.server.options import Prompts, prepare
from ridgeline.server.requests import CompletionRequest
from ridgeline.server.responses import Completion, CompletionChoice
from ridgeline.server.service import Service, ServiceOf
from ridgeline.server.stream import EVENTS, EventStream, chunks, unless_left

#: OpenAI's default for the length of a completion, in tokens.
_MOST = 16

router = APIRouter()


@router.post("/v1/completions", response_model=Completion, responses=EVENTS)
async def completions(body: CompletionRequest, request: Request, service: ServiceOf) -> Completion | Response:
    """Continue one prompt or several."""
    service.check_name(body.model)
    requests = await run_in_threadpool(_prepare, service, body)
    echoes = await run_in_threadpool(_echoes, service, body)
    generation = Generation(service, body, requests, "cmpl")
    if body.stream:
        return EventStream(chunks(_parts(generation, echoes, body.wants_usage)))
    return await unless_left(request, _whole(generation, echoes))


def _prompts(body: CompletionRequest) -> Sequence[str | Sequence[int]]:
    given = body.prompt
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


def _prepare(service: Service, body: CompletionRequest) -> list[Prepared]:
    service.need_engine()
    if body.echo and body.logprobs is not None:
        raise ApiError("echo does not go with logprobs: those of a prompt are not computed", param="echo")
    try:
        ids = [service.need_tokenizer().encode(p) if isinstance(p, str) else p for p in _prompts(body)]
    except InputError as error:
        raise api_error(error, "prompt") from None
    return prepare(service, body, Prompts("prompt", ids, body.max_tokens, _MOST, body.logprobs))


def _echoes(service: Service, body: CompletionRequest) -> list[str]:
    """What stands before the text of each choice: the prompt, if that is asked for."""
    prompts = _prompts(body)
    if not body.echo:
        texts = [""] * len(prompts)
    else:
        texts = [p if isinstance(p, str) else service.need_tokenizer().decode(p) for p in prompts]
    return [text for text in texts for _ in range(body.n or 1)]


async def _whole(generation: Generation, echoes: Sequence[str]) -> Completion:
    choices = [
        CompletionChoice(
            index=choice,
            text=echoes[choice] + result.text,
            logprobs=result.logprobs and generation.texts.for_completion(result.ids, result.logprobs),
            finish_reason=result.finish_reason,
        )
        for choice, result in enumerate(await generation.finish())
    ]
    return Completion(**generation.stamp, choices=choices, usage=generation.usage)


async def _parts(
    generation: Generation, echoes: Sequence[str], with_usage: bool
) -> AsyncIterator[Completion]:
    """A part for every piece of text, and at the end the usage if asked for."""
    for choice, echo in enumerate(echoes):
        if echo:
            yield Completion(**generation.stamp, choices=[CompletionChoice(index=choice, text=echo)])
    offsets = [0] * len(echoes)
    async for choice, token in generation.tokens():
        part = _part(generation, choice, token, offsets)
        if part.text or part.logprobs is not None or part.finish_reason is not None:
            yield Completion(**generation.stamp, choices=[part])
    if with_usage:
        yield Completion(**generation.stamp, choices=[], usage=generation.usage)


def _part(generation: Generation, choice: int, token: Token, offsets: list[int]) -> CompletionChoice:
    """What comes with a token, which stands at the choice's offset; that is moved behind it."""
    logprobs = None
    if token.logprobs is not None:
        logprobs = generation.texts.for_completion([token.id], [token.logprobs], offsets[choice])
        offsets[choice] += len(logprobs.tokens[0])
    return CompletionChoice(
        index=choice,
        text=token.text,
        logprobs=logprobs,
        finish_reason=token.result and token.result.finish_reason,
    )
