"""How a model's authors suggest to generate: ``generation_config.json``."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ridgeline.errors import InputError
from ridgeline.weights.files import read_optional_json
from ridgeline.weights.special_tokens import role_ids

# Fields that don't change which tokens come out, and the roles of tokens, which special_tokens.py reads.
_WITHOUT_EFFECT = {
    "_from_model_config",
    "transformers_version",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
}

# Fields we don't act on, with the value at which they do nothing; for others that value is null.
# Source: GenerationConfig of transformers 5.
_NEUTRAL = {
    "diversity_penalty": 0.0,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "length_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0.0,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "token_healing": False,
    "typical_p": 1.0,
}


@dataclass(frozen=True)
class GenerationDefaults:
    """What ``generation_config.json`` asks for; a field that it lacks leaves the distribution as it is.

    (transformers takes ``top_k`` 50 when the file asks for sampling without naming one.)
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    decoder_start_token_id: int | None = None
    """The token that an encoder-decoder's output begins behind."""
    eos_ids: tuple[int, ...] = ()
    """The tokens that end a generation."""
    ignored: tuple[str, ...] = ()
    """Fields of the file that ask for something we don't do, for the caller to tell."""

    @classmethod
    def from_folder(cls, folder: Path) -> "GenerationDefaults":
        """Read ``generation_config.json``; where it gives no eos ids, they are ``config.json``'s.

        Raises InputError if a file is broken or a value has the wrong type or lies outside its range.
        """
        file = Path(folder) / "generation_config.json"
        fields = {name: value for name, value in read_optional_json(file).items() if value is not None}
        values = {
            name: _checked(file, name, fields[name], rule) for name, rule in _RULES.items() if name in fields
        }
        ignored = tuple(
            name
            for name, value in fields.items()
            if name not in _RULES
            and name not in _WITHOUT_EFFECT
            and not (name in _NEUTRAL and value == _NEUTRAL[name])
        )
        return cls(**values, eos_ids=role_ids(Path(folder), "eos_token_id"), ignored=ignored)


@dataclass(frozen=True)
class _Rule:
    expected: str
    holds: Callable[[Any], bool]


def _real(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


_RULES = {
    "do_sample": _Rule("true or false", lambda value: type(value) is bool),
    "temperature": _Rule("a number of 0 or more", lambda value: _real(value) and value >= 0),
    "top_k": _Rule("a whole number of 0 or more", lambda value: type(value) is int and value >= 0),
    "top_p": _Rule("a number above 0 and at most 1", lambda value: _real(value) and 0 < value <= 1),
    "min_p": _Rule("a number from 0 to 1", lambda value: _real(value) and 0 <= value <= 1),
    "repetition_penalty": _Rule("a number above 0", lambda value: _real(value) and value > 0),
    "decoder_start_token_id": _Rule(
        "a whole number of 0 or more", lambda value: type(value) is int and value >= 0
    ),
    "max_new_tokens": _Rule("a whole number above 0", lambda value: type(value) is int and value > 0),
}


def _checked(file: Path, name: str, value: Any, rule: _Rule) -> Any:
    if not rule.holds(value):
        raise InputError(f"{file}: {name} is {value!r}, expected {rule.expected}")
    return value
