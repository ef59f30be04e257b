"""What a server says of its model: its name, its tokens, its health."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from ridgeline.errors import InputError
from ridgeline.server.errors import ApiError, api_error
from ridgeline.server.requests import DetokenizeRequest, TokenizeRequest
from ridgeline.server.responses import Health, ModelEntry, ModelList, Text, Tokens
from ridgeline.server.service import Service, ServiceOf

router = APIRouter()


@router.get("/v1/models")
async def models(service: ServiceOf) -> ModelList:
    """The one model that there is."""
    return ModelList(data=[_entry(service)])


@router.get("/v1/models/{name:path}")
async def model(name: str, service: ServiceOf) -> ModelEntry:
    service.check_name(name)
    return _entry(service)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, service: ServiceOf) -> Tokens:
    """The token ids of a text."""
    service.check_name(body.model)
    encode = service.need_tokenizer().encode
    try:
        ids = await run_in_threadpool(encode, body.prompt, body.add_special_tokens)
    except InputError as error:
        raise api_error(error, "prompt") from None
    return Tokens(count=len(ids), max_model_len=service.loaded.config.window, tokens=ids)


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, service: ServiceOf) -> Text:
    """The text of token ids, special tokens included."""
    service.check_name(body.model)
    vocab = service.loaded.config.vocab
    for token in body.tokens:
        if token >= vocab:
            raise ApiError(f"tokens holds the id {token}, expected 0 to {vocab - 1}", param="tokens")
    decode = service.need_tokenizer().decode
    return Text(prompt=await run_in_threadpool(decode, body.tokens, skip_special_tokens=False))


@router.get("/health", responses={503: {"model": Health}})
async def health(request: Request, service: ServiceOf) -> Health:
    """200 while requests are taken and can be computed, else 503."""
    if not service.is_alive:
        return _unwell("dead")
    if request.app.state.admission.draining:
        return _unwell("draining")
    return Health(status="ok")


def _unwell(status: str) -> JSONResponse:
    return JSONResponse(Health(status=status).model_dump(), 503)


@router.get("/metrics", response_class=Response)
async def metrics(service: ServiceOf) -> Response:
    """For Prometheus, in its text format."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _entry(service: Service) -> ModelEntry:
    return ModelEntry(
        id=service.name, created=int(service.started), max_model_len=service.loaded.config.window
    )
