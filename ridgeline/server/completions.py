"""POST /v1/completions: texts that are continued."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from ridgeline.engine.request import Request as Prepared
from ridgeline.engine.result import Result, Token
from ridgeline.errors import InputError
from ridgeline.server.errors import api_error
from ridgeline.server.generation import Generation, Prompts, prepare
from ridgeline.server.logprobs import TokenTexts
from ridgeline.server.requests import CompletionRequest
from ridgeline.server.responses import Completion, CompletionChoice, Usage
from ridgeline.server.service import Service, ServiceOf
from ridgeline.server.stream import EventStream, chunks, unless_left

#: OpenAI's default for the length of a completion, in tokens.
_MOST = 16

router = APIRouter()


@router.post("/v1/completions", response_model=Completion)
async def completions(body: CompletionRequest, request: Request, service: ServiceOf) -> Completion | Response:
    """Continue one prompt or several."""
    service.check_name(body.model)
    prompts = _prompts(body)
    requests = await run_in_threadpool(_prepare, service, body, prompts)
    echoes = await run_in_threadpool(_echoes, service, prompts) if body.echo else [""] * len(prompts)
    generation = Generation(service.need_engine(), service.metrics, requests, "cmpl")
    answer = _Answer(service, body, generation, echoes)
    if body.stream:
        return EventStream(chunks(answer.parts()))
    return await unless_left(request, answer.whole())


def _prompts(body: CompletionRequest) -> Sequence[str | Sequence[int]]:
    given = body.prompt
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


def _prepare(
    service: Service, body: CompletionRequest, prompts: Sequence[str | Sequence[int]]
) -> list[Prepared]:
    service.need_engine()
    try:
        ids = [service.need_tokenizer().encode(p) if isinstance(p, str) else p for p in prompts]
    except InputError as error:
        raise api_error(error, "prompt") from None
    return prepare(service, body, Prompts("prompt", ids, _MOST, body.logprobs), body.max_tokens)


def _echoes(service: Service, prompts: Sequence[str | Sequence[int]]) -> list[str]:
    return [p if isinstance(p, str) else service.need_tokenizer().decode(p) for p in prompts]


class _Answer:
    """A generation as a completion, each choice after the echo of its prompt."""

    def __init__(
        self, service: Service, body: CompletionRequest, generation: Generation, echoes: Sequence[str]
    ) -> None:
        self._model = service.name
        self._with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._generation = generation
        samples = generation.requests[0].samples
        self._echoes = [echo for echo in echoes for _ in range(samples)]
        self._texts = TokenTexts(service.loaded.tokenizer)

    async def whole(self) -> Completion:
        results = await self._generation.finish()
        choices = [self._choice(choice, result) for choice, result in enumerate(results)]
        return self._completion(choices, usage=self._generation.usage)

    async def parts(self) -> AsyncIterator[Completion]:
        """A part for every piece of text, and at the end the usage if asked for."""
        offsets = [0] * len(self._echoes)
        async for token in self._generation.tokens():
            choice = self._generation.choice(token)
            part = self._part(choice, token, offsets)
            if part.text or part.logprobs is not None or part.finish_reason is not None:
                yield self._completion([part])
        if self._with_usage:
            yield self._completion([], usage=self._generation.usage)

    def _choice(self, choice: int, result: Result) -> CompletionChoice:
        echo, logprobs = self._echoes[choice], None
        if result.logprobs is not None:
            logprobs = self._texts.for_completion(result.ids, result.logprobs, len(echo))
        return CompletionChoice(
            index=choice, text=echo + result.text, logprobs=logprobs, finish_reason=result.finish_reason
        )

    def _part(self, choice: int, token: Token, offsets: list[int]) -> CompletionChoice:
        """The part of a choice that comes with a token; the echo comes with the first one. ``offsets`` are
        moved behind the token."""
        echo, self._echoes[choice] = self._echoes[choice], ""
        offsets[choice] += len(echo)
        logprobs = None
        if token.logprobs is not None:
            logprobs = self._texts.for_completion([token.id], [token.logprobs], offsets[choice])
            offsets[choice] += len(logprobs.tokens[0])
        return CompletionChoice(
            index=choice,
            text=echo + token.text,
            logprobs=logprobs,
            finish_reason=None if token.result is None else token.result.finish_reason,
        )

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        generation = self._generation
        return Completion(
            id=generation.id, created=generation.created, model=self._model, choices=choices, usage=usage
        )
