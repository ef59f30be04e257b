"""Which family reads and builds which ``model_type``, and the configs that ship with us."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ridgeline.errors import InputError
from ridgeline.models import bert, gpt2, llama, opt
from ridgeline.models.model import Declared, Model, ModelConfig, WeightMaker

BUILTIN = Path(__file__).parent / "configs"
DEMO = Path(__file__).parent.parent / "demo" / "model"


@dataclass(frozen=True)
class Family:
    """How a ``model_type`` is read and built."""

    read: Callable[[Mapping[str, Any], str], ModelConfig]
    build: Callable[[Any, WeightMaker], Model]
    architectures: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    "llama": Family(llama.read_llama, llama.build, ("LlamaForCausalLM",)),
    "mistral": Family(llama.read_mistral, llama.build, ("MistralForCausalLM",)),
    "qwen2": Family(llama.read_qwen2, llama.build, ("Qwen2ForCausalLM",)),
    "qwen3": Family(llama.read_qwen3, llama.build, ("Qwen3ForCausalLM",)),
    "gpt2": Family(gpt2.read, gpt2.build, ("GPT2LMHeadModel",)),
    "opt": Family(opt.read, opt.build, ("OPTForCausalLM",)),
    "bert": Family(bert.read, bert.build, bert.ARCHITECTURES),
}


def read_config(raw: Mapping[str, Any], name: str) -> ModelConfig:
    """A ``config.json``'s contents as a ModelConfig; InputError names what is not supported."""
    kind = raw.get("model_type")
    if kind is None:
        raise InputError(f"{name}: no 'model_type' in the config; is it a Hugging Face config.json?")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise InputError(
            f"{name}: model_type {kind!r} is not supported; supported are: {', '.join(FAMILIES)}"
        )
    architectures = raw.get("architectures") or list(family.architectures[:1])
    if not isinstance(architectures, list):
        raise InputError(f"{name}: field 'architectures' must be list, not {architectures!r}")
    for architecture in architectures:
        if architecture not in family.architectures:
            known = " or ".join(family.architectures)
            raise InputError(
                f"{name}: architecture {architecture!r} is not supported for {kind}; use {known}"
            )
    return family.read({**raw, "architectures": architectures}, name)


@cache
def builtin_names() -> tuple[str, ...]:
    """The names of the configs that ship with Ridgeline, sorted."""
    return tuple(sorted(path.stem for path in BUILTIN.glob("*.json")))


def load_config(model: str | Path) -> ModelConfig:
    """The config of a built-in name, of ``demo``, or of a model folder.

    Raises InputError for an unknown name (with the closest ones), a missing or broken
    ``config.json``, and any field that is not supported.
    """
    name = str(model).lower()
    ours = name == "demo" or name in builtin_names()
    return read_config(_read_json(config_path(model)), name if ours else str(model))


def config_path(model: str | Path) -> Path:
    """Where the model's config lies on this machine; a hub model's is downloaded. Raises InputError."""
    name = str(model).lower()
    if name == "demo":
        return DEMO / "config.json"
    if name in builtin_names():
        return BUILTIN / f"{name}.json"
    from ridgeline.weights.resolve import find_config

    return find_config(str(model), ("demo", *builtin_names()))


def _read_json(path: Path) -> dict[str, Any]:
    from ridgeline.weights.files import read_json

    return read_json(path)


def declare(config: ModelConfig, format: str | None = None) -> Model:
    """The model's structure without data; ``format`` is the storage of its matrices."""
    plain = config.format if format is None or _is_quantised(format) else format
    return build(config, Declared(format or config.format, plain))


def build(config: ModelConfig, make: WeightMaker) -> Model:
    """The model with the weights that ``make`` supplies."""
    return FAMILIES[config.family].build(config, make)


def _is_quantised(format: str) -> bool:
    from ridgeline.ops.formats import get_format

    return get_format(format).is_quantised
