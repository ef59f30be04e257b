"""``ridgeline.load``: a model ready to run, from whatever the user calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridgeline.errors import InputError
from ridgeline.models.model import Model, ModelConfig
from ridgeline.models.registry import DEMO, builtin_names, config_path, load_config
from ridgeline.weights.chat import ChatTemplate
from ridgeline.weights.files import is_there
from ridgeline.weights.generation import GenerationDefaults
from ridgeline.weights.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ridgeline.engine.generate import Generator
    from ridgeline.engine.prompts import Prompt, Requests
    from ridgeline.engine.result import Result, Token
    from ridgeline.engine.sampling import Sampling
    from ridgeline.ops.cpu import Cpu

#: What ``weights`` may be besides ``auto`` and ``random``.
DTYPES = ("bf16", "fp16", "fp32")

#: The packages of the extra ``run`` without which nothing executes.
_NEEDED = {"torch": "PyTorch", "tokenizers": "tokenizers", "jinja2": "Jinja2"}


@dataclass(frozen=True)
class Loaded:
    """A model with its weights in memory, and what its folder says about using it.

    ``config.format`` is the format that the weights are in. ``folder`` is None for a built-in config;
    ``tokenizer`` and ``chat_template`` are None where the folder has none.
    """

    config: ModelConfig
    model: Model
    ops: Cpu
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    generation: GenerationDefaults
    folder: Path | None

    def requests(self) -> Requests:
        """What makes requests for this model, with the defaults that its folder suggests.

        Raises InputError if the model is an encoder.
        """
        from ridgeline.engine.prompts import Requests

        stop_ids = self.generation.eos_ids if self.tokenizer is None else self.tokenizer.eos_ids
        most = self.generation.max_new_tokens
        return Requests(self.config, self.tokenizer, most, self.sampling(), stop_ids)

    def generator(self, **options: Any) -> Generator:
        """A :class:`~ridgeline.engine.generate.Generator` for this model; ``options`` are its own."""
        from ridgeline.engine.generate import Generator

        return Generator(self.model, self.ops, self.requests(), **options)

    def sampling(self, **options: Any) -> Sampling:
        """How the model's folder suggests to choose tokens, changed by the ``options`` that are not None.

        They are the fields of :class:`~ridgeline.engine.sampling.Sampling`. Greedy, unless the folder's
        ``generation_config.json`` asks for sampling or one of temperature, top_k, top_p and min_p is given.
        Raises InputError if an option is out of range.
        """
        from ridgeline.engine.sampling import Sampling

        given = {name: value for name, value in options.items() if value is not None}
        samples = self.generation.do_sample or bool(given.keys() & {"temperature", "top_k", "top_p", "min_p"})
        defaults = {
            "temperature": self.generation.temperature if samples else 0.0,
            "top_k": self.generation.top_k,
            "top_p": self.generation.top_p,
            "min_p": self.generation.min_p,
            "repetition_penalty": self.generation.repetition_penalty,
        }
        return Sampling(**{**defaults, **given})

    def stream(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> Iterator[Token]:
        """The tokens of one prompt or several, text or token ids, as they are generated.

        ``options`` are those of :meth:`~ridgeline.engine.prompts.Requests.make`. Without ``max_tokens`` an
        output goes as far as the model's folder suggests, at most to the end of its window; without
        ``sampling`` tokens are chosen as :meth:`sampling` says; without ``stop_ids`` the model's own end it.

        Raises InputError, at once, for an option out of range and a prompt that is empty, too long or holds
        an unknown token.
        """
        return self.generator().stream(prompts, **options)

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Result]:
        """The result of each prompt, in their order; ``options`` are those of :meth:`stream`."""
        from ridgeline.engine.generate import collect

        return collect(self.stream(prompts, **options))


def load(
    model: str | Path,
    *,
    weights: str = "auto",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Loaded:
    """The model ``model``: ``demo``, a folder in Hugging Face format, a hub id, or a built-in config.

    ``weights`` is ``auto`` (the files, in the dtype they are stored in), a dtype to convert them to
    (``bf16``, ``fp16`` or ``fp32``), or ``random``: N(0, 0.02) from ``seed`` in the config's dtype, the only
    choice for a built-in config. ``progress`` is called with the bytes of each weight that is ready.

    Raises InputError if the model or a file of it is missing, broken or not supported, or if PyTorch is.
    """
    if weights not in ("auto", "random", *DTYPES):
        raise InputError(f"weights is {weights!r}, expected auto, random, {' or '.join(DTYPES)}")
    config = load_config(model)
    builtin = str(model).lower() in builtin_names()
    if builtin and weights != "random":
        raise InputError(
            f"{model} is a built-in config, which carries no weights: give a folder or a hub id, or random"
            " weights (--weights random)"
        )
    require_run_extra()
    if weights == "random":
        folder = None if builtin else config_path(model).parent
        built = _random(config, seed, progress)
    else:
        folder = _folder(model)
        built = _from_files(config, folder, weights, progress)
    return _loaded(built, folder)


def _loaded(model: Model, folder: Path | None) -> Loaded:
    from ridgeline.ops.cpu import Cpu
    from ridgeline.ops.torch_batch import TORCH_DTYPE

    ops = Cpu(TORCH_DTYPE[model.config.format])
    if folder is None:
        return Loaded(model.config, model, ops, None, None, GenerationDefaults(), None)
    has_tokenizer = is_there(folder / "tokenizer.json")
    return Loaded(
        model.config,
        model,
        ops,
        Tokenizer.from_folder(folder) if has_tokenizer else None,
        ChatTemplate.from_folder(folder),
        GenerationDefaults.from_folder(folder),
        folder,
    )


def _random(config: ModelConfig, seed: int, progress: Callable[[int], None] | None) -> Model:
    from ridgeline.weights.load import random_model

    return random_model(config, seed=seed, progress=progress)


def _from_files(
    config: ModelConfig, folder: Path, weights: str, progress: Callable[[int], None] | None
) -> Model:
    from ridgeline.weights.load import load_model

    format = (_stored_format(folder) or config.format) if weights == "auto" else weights
    return load_model(replace(config, format=format), folder, progress=progress)


def _stored_format(folder: Path) -> str | None:
    """The floating-point format of most of the files' bytes, whatever dtype the config names; None if
    the files hold no such tensor, which the loader then refuses by name."""
    from ridgeline.models.fields import FORMAT_OF_DTYPE
    from ridgeline.weights.checkpoint import Checkpoint

    stored = Counter()
    for info in Checkpoint.open(folder).tensors.values():
        if info.dtype in FORMAT_OF_DTYPE:
            stored[FORMAT_OF_DTYPE[info.dtype]] += info.nbytes
    return stored.most_common(1)[0][0] if stored else None


def _folder(model: str | Path) -> Path:
    from ridgeline.weights.resolve import find_folder

    return DEMO if str(model).lower() == "demo" else find_folder(str(model), ("demo", *builtin_names()))


def require_run_extra() -> None:
    """Raises InputError if a package that running a model takes is missing."""
    for package, name in _NEEDED.items():
        if find_spec(package) is None:
            raise InputError(f"running a model needs {name}: pip install 'ridgeline[run]'")
