"""Which family reads and builds which ``model_type``, and the configs that ship with us."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ridgeline.errors import InputError
from ridgeline.models import bert, deepseek, gemma, gpt2, llama, mixtral, neox, opt, t5
from ridgeline.models.model import Declared, Model, ModelConfig, WeightMaker
from ridgeline.models.products import products
from ridgeline.ops.formats import get_format

BUILTIN = Path(__file__).parent / "configs"
_DEMO = Path(__file__).parent.parent / "demo"
#: The trained models that ship with Ridgeline: the demo model, and the draft that proposes for it.
DEMOS = {"demo": _DEMO / "model", "demo-draft": _DEMO / "draft"}


@dataclass(frozen=True)
class Family:
    """How a ``model_type`` of transformers, or a class of diffusers, is read and built."""

    read: Callable[[Mapping[str, Any], str], ModelConfig]
    build: Callable[[Any, WeightMaker], Model]
    architectures: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    "llama": Family(llama.read_llama, llama.build, ("LlamaForCausalLM",)),
    "mistral": Family(llama.read_mistral, llama.build, ("MistralForCausalLM",)),
    "qwen2": Family(llama.read_qwen2, llama.build, ("Qwen2ForCausalLM",)),
    "qwen3": Family(llama.read_qwen3, llama.build, ("Qwen3ForCausalLM",)),
    "phi3": Family(llama.read_phi3, llama.build, ("Phi3ForCausalLM",)),
    "gemma": Family(gemma.read_gemma, gemma.build, ("GemmaForCausalLM",)),
    "gemma2": Family(gemma.read_gemma2, gemma.build, ("Gemma2ForCausalLM",)),
    "gemma3_text": Family(gemma.read_gemma3, gemma.build, ("Gemma3ForCausalLM",)),
    "mixtral": Family(mixtral.read_mixtral, mixtral.build, ("MixtralForCausalLM",)),
    "qwen2_moe": Family(mixtral.read_qwen2_moe, mixtral.build, ("Qwen2MoeForCausalLM",)),
    "qwen3_moe": Family(mixtral.read_qwen3_moe, mixtral.build, ("Qwen3MoeForCausalLM",)),
    "deepseek_v2": Family(deepseek.read_v2, deepseek.build, ("DeepseekV2ForCausalLM",)),
    "deepseek_v3": Family(deepseek.read_v3, deepseek.build, ("DeepseekV3ForCausalLM",)),
    "gpt2": Family(gpt2.read, gpt2.build, ("GPT2LMHeadModel",)),
    "opt": Family(opt.read, opt.build, ("OPTForCausalLM",)),
    "gpt_neox": Family(neox.read_neox, neox.build, ("GPTNeoXForCausalLM",)),
    "falcon": Family(neox.read_falcon, neox.build, ("FalconForCausalLM",)),
    "t5": Family(t5.read, t5.build, ("T5ForConditionalGeneration",)),
    "bert": Family(bert.read, bert.build, bert.ARCHITECTURES),
}
#: Classes of diffusers, whose configs name them instead of a ``model_type``, and the families that they are;
#: a family's module has its name, and is imported when it is asked for.
DIFFUSION = {
    "DiTTransformer2DModel": "dit",
    "PixArtTransformer2DModel": "pixart",
    "SD3Transformer2DModel": "sd3",
    "LatteTransformer3DModel": "latte",
    "CogVideoXTransformer3DModel": "cogvideox",
}
#: What the class that DiT and PixArt once shared is now, by its norm.
_SHARED_CLASS = "Transformer2DModel"
_CLASS_OF_NORM = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}


def read_config(raw: Mapping[str, Any], name: str) -> ModelConfig:
    """A ``config.json``'s contents as a ModelConfig; InputError names what is not supported."""
    kind = raw.get("model_type")
    if kind is None and "_class_name" in raw:
        return _read_diffusion(raw, name)
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


def _read_diffusion(raw: Mapping[str, Any], name: str) -> ModelConfig:
    """The config of a class of diffusers."""
    given = raw["_class_name"]
    kind = _CLASS_OF_NORM.get(str(raw.get("norm_type"))) if given == _SHARED_CLASS else given
    if not isinstance(kind, str) or kind not in DIFFUSION:
        known = ", ".join(DIFFUSION)
        raise InputError(f"{name}: class {given!r} of diffusers is not supported; supported are: {known}")
    return _family(DIFFUSION[kind]).read(raw, name)


def _family(name: str) -> Family:
    """The family of that name, one of ours."""
    if name in FAMILIES:
        return FAMILIES[name]
    (architecture,) = (kind for kind, family in DIFFUSION.items() if family == name)
    module = import_module(f"ridgeline.models.{name}")
    return Family(module.read, module.build, (architecture,))


@cache
def builtin_names() -> tuple[str, ...]:
    """The names of the configs that ship with Ridgeline, sorted."""
    return tuple(sorted(path.stem for path in BUILTIN.glob("*.json")))


def load_config(model: str | Path) -> ModelConfig:
    """The config of a built-in name, of ``demo`` or ``demo-draft``, or of a model folder.

    Raises InputError for an unknown name (with the closest ones), a missing or broken
    ``config.json``, and any field that is not supported.
    """
    name = str(model).lower()
    ours = name in DEMOS or name in builtin_names()
    return read_config(_read_json(config_path(model)), name if ours else str(model))


def config_path(model: str | Path) -> Path:
    """Where the model's config lies on this machine; a hub model's is downloaded. Raises InputError."""
    name = str(model).lower()
    if name in DEMOS:
        return DEMOS[name] / "config.json"
    if name in builtin_names():
        return BUILTIN / f"{name}.json"
    from ridgeline.weights.resolve import find_config

    return find_config(str(model), (*DEMOS, *builtin_names()))


def _read_json(path: Path) -> dict[str, Any]:
    from ridgeline.weights.files import read_json

    return read_json(path)


def declare(config: ModelConfig, format: str | None = None) -> Model:
    """The model's structure without data, stored as ``format``, by default as it is published.

    A quantised format is that of all weights that are multiplied, the output head included; what is only
    looked up or added (an embedding of its own, norms, biases) keeps the config's.
    """
    format = format or config.stored_format
    if not get_format(format).is_quantised:
        return build(config, Declared(format))
    model = build(config, Declared(config.format))
    for weight, _ in products(model):
        weight.format = format
    return model


def build(config: ModelConfig, make: WeightMaker) -> Model:
    """The model with the weights that ``make`` supplies."""
    return _family(config.family).build(config, make)
