"""From what a caller gives to a checked request."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from operator import index
from typing import Any

from ridgeline.engine.checks import at_least_one, is_finite, is_whole
from ridgeline.engine.constrained import Grammar
from ridgeline.engine.request import Request, refuse_encoder
from ridgeline.engine.sampling import GREEDY, BeamSearch, Sampling
from ridgeline.errors import InputError
from ridgeline.models.model import ModelConfig
from ridgeline.weights.tokenizer import Tokenizer

Prompt = str | Sequence[int]

#: What OpenAI's API takes at most, of samples and of likeliest tokens.
MOST_SAMPLES = 128
MOST_LOGPROBS = 20
MOST_STOPS = 16


@dataclass(frozen=True)
class Requests:
    """Makes requests for one model. What a request leaves open is taken from here: how to choose tokens,
    which of them end an output (by default those that the tokenizer names), and how many there are at most;
    an output ends at the end of the model's window in any case.

    Raises InputError if the model is an encoder.
    """

    config: ModelConfig
    tokenizer: Tokenizer | None = None
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop_ids: Collection[int] | None = None

    def __post_init__(self) -> None:
        refuse_encoder(self.config)
        if self.max_tokens is not None:
            at_least_one("max_tokens", self.max_tokens)

    def make(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop_ids: Collection[int] | None = None,
        stop: str | Sequence[str] = (),
        n: int = 1,
        beams: BeamSearch | None = None,
        logprobs: int | None = None,
        priority: float = 0.0,
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        name: str = "the prompt",
    ) -> Request:
        """A checked request; see :class:`~ridgeline.engine.request.Request` for what is not said here.

        ``prompt`` is text, which the tokenizer encodes, or token ids; an empty one becomes the tokenizer's
        first token. ``n`` outputs are wanted. ``stop_ids`` () never stop. An output follows ``json_schema``
        or ``regex`` (:class:`~ridgeline.engine.constrained.Grammar`) up to where ``max_tokens`` or a stop
        string cuts it.

        Raises InputError, with ``name`` for the prompt, if the prompt is empty without such a token, holds an
        id outside the vocabulary, is text without a tokenizer, or does not fit the window with its output;
        and for an option that is out of range or does not go with another.
        """
        ids = self._prompt_ids(prompt, name)
        sampling = self.sampling if sampling is None else sampling
        stop_ids = self._default_stop_ids() if stop_ids is None else stop_ids
        most = self._max_tokens(len(ids), max_tokens, name)
        self._check_biases(sampling)
        _check_range("n", n, 1, MOST_SAMPLES)
        if logprobs is not None:
            _check_range("logprobs", logprobs, 0, MOST_LOGPROBS)
        if not is_finite(priority):
            raise InputError(f"priority is {priority!r}, expected a number")
        stops = self._stops(stop)
        if beams is not None:
            given = {"temperature": not sampling.greedy, "stop": stops, "logprobs": logprobs is not None}
            given |= {"json_schema": json_schema is not None, "regex": regex is not None}
            _check_beams(beams, n, [option for option, is_given in given.items() if is_given])
        return Request(
            ids,
            most,
            sampling,
            frozenset(_token_ids(stop_ids, "stop_ids")),
            stops,
            n,
            beams,
            logprobs,
            float(priority),
            self._context(len(ids) + most),
            self._grammar(json_schema, regex),
        )

    def make_all(self, prompts: Prompt | Sequence[Prompt], **options: object) -> list[Request]:
        """A request for a single prompt or for each of several, with the options of :meth:`make`."""
        prompts = _as_prompts(prompts)
        names = ["the prompt"] if len(prompts) == 1 else [f"prompts[{i}]" for i in range(len(prompts))]
        return [self.make(prompt, **options, name=name) for prompt, name in zip(prompts, names, strict=True)]

    def _default_stop_ids(self) -> Collection[int]:
        if self.stop_ids is not None:
            return self.stop_ids
        return () if self.tokenizer is None else self.tokenizer.eos_ids

    def _prompt_ids(self, prompt: Prompt, name: str) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise InputError(f"{name} is text, and the model has no tokenizer: give token ids")
            prompt = self.tokenizer.encode(prompt)
        ids = _token_ids(prompt, name)
        if not ids:
            if self.tokenizer is None or self.tokenizer.bos_id is None:
                some = "token ids" if self.tokenizer is None else "some text"
                raise InputError(f"{name} is empty, and the model has no token to begin with: give {some}")
            ids = (self.tokenizer.bos_id,)
        vocab = self.config.vocab
        for token in ids:
            if not 0 <= token < vocab:
                raise InputError(f"{name} holds the token id {token}, expected 0 to {vocab - 1}")
        return ids

    def _max_tokens(self, prompt_tokens: int, max_tokens: int | None, name: str) -> int:
        window = self.config.window
        room = window - prompt_tokens
        if room < 1:
            raise InputError(
                f"{name} has {prompt_tokens} tokens and the model's window is {window}, its output included:"
                f" shorten it to at most {window - 1}"
            )
        if max_tokens is None:
            return room if self.max_tokens is None else min(room, self.max_tokens)
        if at_least_one("max_tokens", max_tokens) > room:
            raise InputError(
                f"max_tokens is {max_tokens}, but {name} has {prompt_tokens} tokens, which leaves {room} of"
                f" the model's window of {window}: lower max_tokens or shorten the prompt"
            )
        return max_tokens

    def _check_biases(self, sampling: Sampling) -> None:
        for token, _ in sampling.logit_bias:
            if token >= self.config.vocab:
                raise InputError(
                    f"logit_bias names the token id {token}, expected 0 to {self.config.vocab - 1}"
                )

    def _stops(self, stop: str | Sequence[str]) -> tuple[str, ...]:
        stops = (stop,) if isinstance(stop, str) or not isinstance(stop, Iterable) else tuple(stop)
        if not all(isinstance(text, str) and text for text in stops):
            raise InputError(f"stop is {stop!r}, expected text that is not empty, or a list of such")
        if len(stops) > MOST_STOPS:
            raise InputError(f"stop has {len(stops)} texts, expected at most {MOST_STOPS}")
        if stops and self.tokenizer is None:
            raise InputError("stop is text, and the model has no tokenizer: give stop_ids")
        return stops

    def _grammar(self, json_schema: str | Mapping[str, Any] | None, regex: str | None) -> Grammar | None:
        if json_schema is not None and regex is not None:
            raise InputError("json_schema and regex are two constraints of one output: give one of them")
        if json_schema is not None:
            return Grammar.from_json_schema(json_schema, self.tokenizer)
        return None if regex is None else Grammar.from_regex(regex, self.tokenizer)

    def _context(self, longest: int) -> bytes:
        """What keys and values depend on beside the tokens: the length that dynamic RoPE is fixed at, or
        whether LongRoPE takes the request for a long one."""
        rope = getattr(self.config, "rope", None)
        if rope is None or not rope.by_request:
            return b""
        if rope.scaling.kind == "longrope":
            return b"long" if longest > rope.scaling.original_length else b"short"
        return b"admitted %d" % max(longest, rope.scaling.original_length)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A list of prompts, where a single one is text or a list that begins with a token id."""
    if not isinstance(prompts, Sequence):
        raise InputError(f"the prompt is {repr(prompts)[:60]}, expected text, token ids, or a list of such")
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], Integral)):
        return [prompts]
    if not prompts:
        raise InputError("no prompt was given: give at least one")
    return prompts


def _token_ids(value: Collection[int], name: str) -> tuple[int, ...]:
    try:
        return tuple(index(token) for token in value)
    except TypeError:
        raise InputError(f"{name} is {repr(value)[:60]}, expected token ids") from None


def _check_range(option: str, value: int, least: int, most: int) -> None:
    if not (is_whole(value) and least <= value <= most):
        raise InputError(f"{option} is {value!r}, expected a whole number from {least} to {most}")


def _check_beams(beams: BeamSearch, n: int, given: Sequence[str]) -> None:
    """Options that a beam search cannot be combined with are refused by name."""
    if n > beams.width:
        raise InputError(f"n is {n}, and a beam search of width {beams.width} has no more results")
    if given:
        raise InputError(f"{given[0]} does not go with beam search: leave it out, or use no beams")
