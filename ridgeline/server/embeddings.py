"""POST /v1/embeddings: texts as vectors, of an encoder."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from ridgeline.errors import InputError
from ridgeline.server.encoder import Encoder
from ridgeline.server.errors import api_error
from ridgeline.server.requests import EmbeddingRequest
from ridgeline.server.responses import Embedding, EmbeddingList, EmbeddingUsage
from ridgeline.server.service import Service, ServiceOf
from ridgeline.server.stream import unless_left

router = APIRouter()


@router.post("/v1/embeddings", response_model=EmbeddingList)
async def embeddings(
    body: EmbeddingRequest, request: Request, service: ServiceOf
) -> EmbeddingList | Response:
    """Vectors of length 1, from the mean of a text's last hidden states (or its first one, where the model's
    folder says so)."""
    service.check_name(body.model)
    encoder = service.need_encoder()
    given = body.input
    texts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    ids = await run_in_threadpool(_ids, encoder, texts)
    return await unless_left(request, _answer(service, encoder, ids, body.encoding_format == "base64"))


async def _answer(service: Service, encoder: Encoder, ids: list[list[int]], as_base64: bool) -> EmbeddingList:
    vectors = []
    for batch in encoder.batches(ids):
        async with encoder.turn:
            vectors.extend(await run_in_threadpool(encoder.embed, batch))
    tokens = sum(map(len, ids))
    service.metrics.prompt_answered(tokens)
    encode = _base64 if as_base64 else torch.Tensor.tolist
    return EmbeddingList(
        data=[Embedding(index=place, embedding=encode(vector)) for place, vector in enumerate(vectors)],
        model=service.name,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _ids(encoder: Encoder, texts: Sequence[str | Sequence[int]]) -> list[list[int]]:
    names = ["input"] if len(texts) == 1 else [f"input[{place}]" for place in range(len(texts))]
    try:
        return [encoder.ids(text, name) for text, name in zip(texts, names, strict=True)]
    except InputError as error:
        raise api_error(error, "input") from None


def _base64(vector: torch.Tensor) -> str:
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
