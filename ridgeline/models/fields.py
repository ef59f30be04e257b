"""Reading a ``config.json`` without passing over a field that changes the computation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ridgeline.errors import InputError

_MISSING = object()

#: Fields of any Hugging Face config that do not touch the forward pass: names, training,
#: generation defaults, outputs asked of the Python class.
# fmt: off
HARMLESS = frozenset((
    "_name_or_path", "_attn_implementation_autoset", "architectures", "auto_map", "bad_words_ids",
    "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_range",
    "label2id", "length_penalty", "max_length", "min_length", "model_type", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions", "output_past",
    "output_projection", "predict_special_tokens", "transformers.js_config", "output_hidden_states",
    "output_scores", "pad_token_id", "prefix", "problem_type", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params",
    "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache", "unsloth_version",
))
# fmt: on

#: Fields of any config that would change the computation, with the one value that does not.
UNSUPPORTED = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "tie_encoder_decoder": False,
}

#: Beyond any model: a config that asks for more is broken, and would only fill memory.
MAX_SIZE = 2**31 - 1
MAX_LAYERS = 10_000

FORMAT_OF_DTYPE = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}


class Fields:
    """The fields of one config; :meth:`finish` refuses those that nobody has read.

    ``where`` names the file or model in messages.
    """

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where
        self._read: set[str] = set()

    def take(self, name: str, kind: type, default: Any = _MISSING) -> Any:
        """The field's value, checked to be of ``kind``; ``default`` also stands for null."""
        self._read.add(name)
        value = self.raw.get(name)
        if value is None:
            if default is _MISSING:
                raise InputError(f"{self.where}: field '{name}' is missing")
            return default
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 2**1023 else math.inf
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InputError(f"{self.where}: field '{name}' must be {kind.__name__}, not {_short(value)}")
        if kind is float and not math.isfinite(value):
            raise InputError(f"{self.where}: field '{name}' must be a finite number, not {value}")
        return value

    def size(self, name: str, default: Any = _MISSING) -> int:
        """A field that must be an integer from 1 to MAX_SIZE."""
        return self._bounded(name, default, MAX_SIZE)

    def layers(self, name: str, default: Any = _MISSING) -> int:
        """A number of layers, from 1 to MAX_LAYERS."""
        return self._bounded(name, default, MAX_LAYERS)

    def _bounded(self, name: str, default: Any, most: int) -> Any:
        value = self.take(name, int, default)
        if value is not None and not 1 <= value <= most:
            raise InputError(f"{self.where}: field '{name}' must be from 1 to {most}, not {_short(value)}")
        return value

    def head_dim(self, width: str, heads: str) -> int:
        """The size of a head where the config has no field for it: width / heads."""
        size, number = self.size(width), self.size(heads)
        if size % number:
            raise InputError(f"{self.where}: {width}={size} is not a multiple of {heads}={number}")
        return size // number

    def choice(self, name: str, options: Mapping[str, Any], default: Any = _MISSING) -> Any:
        """A field whose value must be a key of ``options``; returns what the key stands for."""
        value = self.take(name, str, default)
        if value not in options:
            known = ", ".join(options)
            raise InputError(f"{self.where}: {name} {_short(value)} is not supported; supported are: {known}")
        return options[value]

    def format(self) -> str:
        """The storage format of the weights; a config that names none is taken as bf16."""
        name = self.raw.get("dtype") or self.raw.get("torch_dtype") or "bfloat16"
        if not isinstance(name, str) or name not in FORMAT_OF_DTYPE:
            known = ", ".join(FORMAT_OF_DTYPE)
            raise InputError(f"{self.where}: dtype {_short(name)} is not supported; use one of {known}")
        return FORMAT_OF_DTYPE[name]

    def finish(self, *, harmless: Iterable[str] = (), defaults: Mapping[str, Any] | None = None) -> None:
        """Refuse every field that was not read, is not harmless, and is not at its default.

        ``defaults`` lists fields that would change the computation, with the one value that
        does not; a field unknown altogether must be null, false or empty.
        """
        allowed = {**UNSUPPORTED, **(defaults or {})}
        skip = HARMLESS | self._read | frozenset(harmless)
        for name, value in self.raw.items():
            if name in skip or value is None:
                continue
            if name in allowed:
                if value != allowed[name]:
                    only = _short(allowed[name])
                    raise InputError(f"{self.where}: {name}={_short(value)} is not supported (only {only})")
            elif value not in (False, [], {}, ""):
                raise InputError(
                    f"{self.where}: unknown field {_short(name)}={_short(value)}; it may change the "
                    "computation, so remove it from the config if it does not"
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
