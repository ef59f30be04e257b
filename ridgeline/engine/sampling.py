"""How a request wants its next tokens chosen: by sampling, greedily, or by beam search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ridgeline.engine.checks import is_finite, is_whole
from ridgeline.errors import InputError

#: Below this, logits divided by the temperature leave float32's range.
MIN_TEMPERATURE = 1e-6
SEEDS = 2**63
#: What OpenAI's API takes for frequency and presence penalties, and for a bias, either way.
MOST_PENALTY = 2.0
MOST_BIAS = 100.0


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
    frequency_penalty: float = 0.0
    """Taken off a token's logit for every time that it is in the output; at most 2 either way."""
    presence_penalty: float = 0.0
    """Taken off a token's logit once if it is in the output; at most 2 either way."""
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    """Added to the logits of some token ids; at most 100 either way. Kept as pairs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", _bias_pairs(self.logit_bias))
        for option, expected, holds in (
            (
                "temperature",
                f"0 (greedy) or a number of at least {MIN_TEMPERATURE}",
                is_finite(self.temperature)
                and (self.temperature == 0 or self.temperature >= MIN_TEMPERATURE),
            ),
            ("top_k", "a whole number of 0 (all) or more", is_whole(self.top_k) and self.top_k >= 0),
            ("top_p", "a number above 0 and at most 1", is_finite(self.top_p) and 0 < self.top_p <= 1),
            ("min_p", "a number from 0 to 1", is_finite(self.min_p) and 0 <= self.min_p <= 1),
            (
                "repetition_penalty",
                "a number above 0",
                is_finite(self.repetition_penalty) and self.repetition_penalty > 0,
            ),
            ("seed", "a whole number from 0 to 2^63 - 1", is_whole(self.seed) and 0 <= self.seed < SEEDS),
            ("frequency_penalty", "a number from -2 to 2", _is_within(self.frequency_penalty, MOST_PENALTY)),
            ("presence_penalty", "a number from -2 to 2", _is_within(self.presence_penalty, MOST_PENALTY)),
        ):
            if not holds:
                raise InputError(f"{option} is {getattr(self, option)!r}, expected {expected}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class BeamSearch:
    """Keep the ``width`` likeliest continuations at every step, and answer with the best finished ones.

    A finished one scores its log-probability / (new tokens ** ``length_penalty``), so that a larger penalty
    favours longer answers. ``early_stopping`` ends the search as soon as ``width`` have finished (True),
    when the best running one would not do better if it ended now (False), or only when it could not at any
    length ("never"). That is the meaning that these have in transformers.

    Raises InputError that names the option and its range.
    """

    width: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        for option, expected, holds in (
            ("width", "a whole number of at least 2", is_whole(self.width) and self.width >= 2),
            ("length_penalty", "a finite number", is_finite(self.length_penalty)),
            ("early_stopping", "True, False or 'never'", self.early_stopping in (True, False, "never")),
        ):
            if not holds:
                raise InputError(f"beam {option} is {getattr(self, option)!r}, expected {expected}")


def _is_within(value: object, most: float) -> bool:
    return is_finite(value) and -most <= value <= most


def _bias_pairs(given: Any) -> tuple[tuple[int, float], ...]:
    pairs = given.items() if isinstance(given, Mapping) else given
    if not isinstance(pairs, Iterable):
        raise InputError(f"logit_bias is {given!r}, expected token ids and what to add to each, -100 to 100")
    try:
        pairs = tuple((token, bias) for token, bias in pairs)
    except (TypeError, ValueError):
        raise InputError(f"logit_bias is {given!r}, expected pairs of a token id and what to add") from None
    for token, bias in pairs:
        if not is_whole(token) or token < 0 or not _is_within(bias, MOST_BIAS):
            raise InputError(f"logit_bias of {token!r} is {bias!r}, expected a token id and -100 to 100")
    return pairs


GREEDY = Sampling(temperature=0.0)
