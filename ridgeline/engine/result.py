"""What comes out of a request: tokens as they are generated, and the result at the end."""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.engine.request import FinishReason


@dataclass(frozen=True)
class Timings:
    """How long an output took, in seconds.

    ``queued`` is the time from submission to admission, when the request gets its cache blocks and its
    place in the batch. ``ttft``, the time to first token, runs from submission to the first token.
    ``tpot``, the time per output token, is (last - first) / (n - 1) of n tokens, None for a single one.
    """

    queued: float
    ttft: float
    tpot: float | None


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities by the model's own distribution, before any penalty, bias or
    temperature: of the token that was ``chosen``, and of the likeliest ones with their ids, best first."""

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Result:
    """A finished output. ``ids`` end with the stop token, if one ended it, or with those that a stop string
    is in; ``text`` leaves either out. ``sample`` is its place among the outputs of its request, for which a
    beam search sorts them by ``score``. ``cached_tokens`` of the prompt's were taken from the cache.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    timings: Timings
    sample: int = 0
    cached_tokens: int = 0
    logprobs: tuple[Logprobs, ...] | None = None
    score: float | None = None


@dataclass(frozen=True)
class Token:
    """One generated token of the request at place ``request`` of the call.

    ``text`` is what became final with it: a character whose bytes come in several tokens arrives with the
    last of them, and text that may still become a stop string waits until it can not. ``result`` comes with
    the last token of an output. A beam search, whose tokens are final only at its end, gives a single one for
    each result, with all of its text.
    """

    request: int
    id: int
    text: str
    result: Result | None = None
    sample: int = 0
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Failure:
    """What ends the request at place ``request`` of the call, if it could not be computed."""

    request: int
    error: Exception
