"""The bodies of answers, as OpenAI's API documents them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


Value = TypeVar("Value")

#: A field that is left out where it is None.
WhereThere = Annotated[Value | None, Field(exclude_if=lambda value: value is None)]


class PromptTokensDetails(Answer):
    cached_tokens: int


class Usage(Answer):
    """Tokens of a request: prompts count once, however many answers there are to them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishReason = Literal["stop", "length"]


class CompletionLogprobs(Answer):
    """One entry for each generated token; offsets are in characters, from the beginning of the text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(Answer):
    """The answer to a completion request, or a part of it in a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: WhereThere[Usage] = None


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(Answer):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Answer):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Answer):
    role: WhereThere[Literal["assistant"]] = None
    content: str


class ChatChunkChoice(Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Answer):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: WhereThere[Usage] = None


class ModelEntry(Answer):
    """``max_model_len`` is the window in tokens, prompt and output together."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ridgeline"
    max_model_len: int


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[ModelEntry]


class Embedding(Answer):
    """A vector of numbers, or the base64 of its little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answer):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Tokens(Answer):
    count: int
    max_model_len: int
    tokens: list[int]


class Text(Answer):
    prompt: str


class Health(Answer):
    status: Literal["ok", "draining", "dead"]
