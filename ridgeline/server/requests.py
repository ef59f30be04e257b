"""The bodies of requests.

Fields of OpenAI's that are not supported are listed as such, so that what asks for nothing may pass; a field
that is not listed is refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ridgeline.server import fields
from ridgeline.server.fields import (
    Body,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NotTrue,
    StreamOptions,
    TextFormat,
    Unsupported,
)

#: Prompts of one completion request; texts of one embedding request, as in OpenAI's API.
MOST_PROMPTS = 256
MOST_INPUTS = 2048


class Generating(Body):
    """What completions and chat have in common. What is left out the model's folder decides, else OpenAI's
    default; without a seed every request draws its own."""

    model: str | None = None
    n: fields.Samples | None = None
    stop: fields.Stops = None
    max_tokens: fields.Whole | None = None
    temperature: fields.Temperature | None = None
    top_p: fields.Share | None = None
    seed: fields.Seed | None = None
    frequency_penalty: fields.Penalty | None = None
    presence_penalty: fields.Penalty | None = None
    logit_bias: fields.LogitBias = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: (
        Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None
    ) = None
    user: str | None = None

    # What OpenAI's API does not have.
    top_k: Annotated[int | None, Field(ge=0, description="0 keeps all tokens")] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0)] = None
    priority: Annotated[float | None, Field(description="goes before what came so many minutes earlier")] = (
        None
    )
    ignore_eos: Annotated[bool | None, Field(description="go on past the model's end tokens")] = None
    regex: Annotated[str | None, Field(description="what all of the text has to match")] = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionRequest(Generating):
    prompt: fields.texts(MOST_PROMPTS)
    echo: bool | None = None
    logprobs: fields.Logprobs | None = None
    suffix: Unsupported = None
    best_of: Unsupported = None


class ChatRequest(Generating):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: fields.Whole | None = None
    logprobs: bool | None = None
    top_logprobs: fields.Logprobs | None = None
    audio: Unsupported = None
    function_call: Unsupported = None
    functions: Unsupported = None
    metadata: Unsupported = None
    modalities: fields.TextOnly = None
    moderation: Unsupported = None
    parallel_tool_calls: fields.NotFalse = None
    prediction: Unsupported = None
    prompt_cache_key: Unsupported = None
    prompt_cache_options: Unsupported = None
    prompt_cache_retention: Unsupported = None
    reasoning_effort: Unsupported = None
    safety_identifier: Unsupported = None
    service_tier: fields.AnyTier = None
    store: NotTrue = None
    tool_choice: fields.NoTools = None
    tools: fields.NoItems = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None


class EmbeddingRequest(Body):
    input: fields.texts(MOST_INPUTS)
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Unsupported = None
    user: str | None = None


class TokenizeRequest(Body):
    prompt: str
    model: str | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Body):
    tokens: list[fields.TokenId]
    model: str | None = None
