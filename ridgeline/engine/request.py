"""A request: its prompt, how its tokens are chosen, how far it is, and what comes out of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal

from ridgeline.errors import InputError
from ridgeline.weights.tokenizer import TextStream

if TYPE_CHECKING:
    from ridgeline.models.model import ModelConfig

FinishReason = Literal["stop", "length"]

#: Below this, logits divided by the temperature leave float32's range.
MIN_TEMPERATURE = 1e-6
SEEDS = 2**63


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits; the defaults draw from the model's own distribution.

    Raises InputError that names the option and its range.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token (greedy)."""
    top_k: int = 0
    """Only the k likeliest tokens stay; 0 keeps all."""
    top_p: float = 1.0
    """Only the likeliest tokens stay whose probabilities together reach p."""
    min_p: float = 0.0
    """Only tokens stay that are at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Divides a positive logit of a token already in the prompt or output, multiplies a negative one."""
    seed: int = 0
    """With the token's position it fixes the noise: requests of one seed draw the same noise."""

    def __post_init__(self) -> None:
        for option, expected, holds in (
            (
                "temperature",
                f"0 (greedy) or a number of at least {MIN_TEMPERATURE}",
                _is_finite(self.temperature)
                and (self.temperature == 0 or self.temperature >= MIN_TEMPERATURE),
            ),
            ("top_k", "a whole number of 0 (all) or more", _is_whole(self.top_k) and self.top_k >= 0),
            ("top_p", "a number above 0 and at most 1", _is_finite(self.top_p) and 0 < self.top_p <= 1),
            ("min_p", "a number from 0 to 1", _is_finite(self.min_p) and 0 <= self.min_p <= 1),
            (
                "repetition_penalty",
                "a number above 0",
                _is_finite(self.repetition_penalty) and self.repetition_penalty > 0,
            ),
            (
                "seed",
                "a whole number from 0 to 2^63 - 1",
                _is_whole(self.seed) and 0 <= self.seed < SEEDS,
            ),
        ):
            if not holds:
                raise InputError(f"{option} is {getattr(self, option)!r}, expected {expected}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling(temperature=0.0)


def refuse_encoder(config: ModelConfig) -> None:
    """Raises InputError if the model is an encoder, before its weights are loaded for nothing."""
    if not config.is_decoder:
        raise InputError(f"{config.name} is an encoder, which generates nothing: use a decoder")


@dataclass(eq=False)
class Request:
    """A prompt on its way to an output of at most ``max_tokens``.

    It has no phases: ``computed`` of its ``tokens`` have their keys and values in the cache, and
    those that are pending, of the prompt or of the output, are computed next.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    tokens: list[int] = field(init=False)
    computed: int = field(default=0, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def pending(self) -> int:
        """How many tokens are known but not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def output(self) -> list[int]:
        """The tokens generated so far, a stop token included."""
        return self.tokens[len(self.prompt) :]

    @property
    def longest(self) -> int:
        """The length in tokens that the request may reach, prompt included."""
        return len(self.prompt) + self.max_tokens

    @property
    def cached_at_most(self) -> int:
        """The tokens that the cache must have room for: the last output is never fed back."""
        return self.longest - 1

    def accept(self, token: int) -> None:
        """Append a generated token, and finish if it is a stop token or the last one allowed."""
        self.tokens.append(token)
        if token in self.stop_ids:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.longest:
            self.finish_reason = "length"


@dataclass(frozen=True)
class Timings:
    """How long a request took, in seconds; what a stream's consumer does between tokens counts too.

    ``queued`` is the time from submission to admission, when the request gets its cache blocks and its
    place in the batch. ``ttft``, the time to first token, runs from admission to the first token.
    ``tpot``, the time per output token, is (last - first) / (n - 1) of n tokens, None for a single one.
    """

    queued: float
    ttft: float
    tpot: float | None


@dataclass(frozen=True)
class Result:
    """A finished request. ``ids`` end with the stop token, if one ended it; ``text`` leaves it out."""

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    timings: Timings


@dataclass(frozen=True)
class Token:
    """One generated token of the request at place ``request`` of the call.

    ``text`` is what became final with it: a character whose bytes come in several tokens arrives with
    the last of them. ``result`` comes with the request's last token.
    """

    request: int
    id: int
    text: str
    result: Result | None = None


@dataclass
class Output:
    """What a request has given so far: its text, and when its tokens came (``time.perf_counter``)."""

    place: int
    text: TextStream | None
    pieces: list[str] = field(default_factory=list, init=False)
    submitted: float = field(default_factory=time.perf_counter, init=False)
    admitted: float = field(default=0.0, init=False)
    first: float | None = field(default=None, init=False)

    def add(self, request: Request, now: float) -> Token:
        """The event of the request's newest token, which came ``now``."""
        if self.first is None:
            self.first = now
        self.pieces.append(self._new_text(request))
        result = None if request.finish_reason is None else self._result(request, now)
        return Token(self.place, request.tokens[-1], self.pieces[-1], result)

    def _new_text(self, request: Request) -> str:
        if self.text is None:
            return ""
        text = "" if request.finish_reason == "stop" else self.text.push(request.tokens[-1])
        return text if request.finish_reason is None else text + self.text.finish()

    def _result(self, request: Request, now: float) -> Result:
        ids = tuple(request.output)
        tpot = (now - self.first) / (len(ids) - 1) if len(ids) > 1 else None
        timings = Timings(self.admitted - self.submitted, self.first - self.admitted, tpot)
        return Result("".join(self.pieces), ids, request.finish_reason, len(request.prompt), timings)
