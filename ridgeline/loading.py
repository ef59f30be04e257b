"""``ridgeline.load``: a model ready to run, from whatever the user calls it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridgeline.errors import InputError
from ridgeline.models.model import Model, ModelConfig
from ridgeline.models.registry import DEMOS, builtin_names, config_path, load_config
from ridgeline.weights.chat import ChatTemplate
from ridgeline.weights.files import is_there
from ridgeline.weights.generation import GenerationDefaults
from ridgeline.weights.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ridgeline.engine.encoder_decoder import EncoderDecoderGenerator
    from ridgeline.engine.generate import Generator
    from ridgeline.engine.prompts import Prompt, Requests
    from ridgeline.engine.result import Result, Token
    from ridgeline.engine.sampling import Sampling
    from ridgeline.engine.speculation.speculator import Speculator
    from ridgeline.ops.cpu import Cpu
    from ridgeline.ops.gpu import Gpu
    from ridgeline.ops.torch_cpu import TorchCpu

#: The formats that weights can be run in. The native kernels have all but fp16, which PyTorch runs.
FORMATS = (
    *("bf16", "fp32", "fp16", "int8"),
    *("int4-g32", "int4-g64", "int4-g128", "int4-g32-zp", "int4-g64-zp", "int4-g128-zp"),
)

#: Those that only a GPU runs.
GPU_FORMATS = ("fp8", "fp8-128x128")

#: New tokens of an encoder-decoder at most, unless it is said: its positions set no limit.
MOST_OUTPUT = 512

#: Where a model can run.
DEVICES = ("cpu", "cuda")

#: The packages of the extra ``run`` without which nothing executes.
_NEEDED = {"torch": "PyTorch", "tokenizers": "tokenizers", "jinja2": "Jinja2"}


@dataclass(frozen=True)
class Loaded:
    """A model with its weights in memory, and what its folder says about using it.

    ``config.format`` is the format that the weights are in: those that are multiplied, if it is a quantised
    one. ``folder`` is None for a built-in config; ``tokenizer`` and ``chat_template`` are None where the
    folder has none.
    """

    config: ModelConfig
    model: Model
    ops: Cpu | TorchCpu | Gpu
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    generation: GenerationDefaults
    folder: Path | None

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on the gpu reading."""
        return self.ops.lowering.name.startswith("gpu")

    def requests(self) -> Requests:
        """What makes requests for this model, with the defaults that its folder suggests.

        Raises InputError if the model is an encoder.
        """
        from ridgeline.engine.prompts import Requests

        stop_ids = self.generation.eos_ids if self.tokenizer is None else self.tokenizer.eos_ids
        most = self.generation.max_new_tokens
        if most is None and self.config.is_encoder_decoder:
            most = MOST_OUTPUT
        return Requests(self.config, self.tokenizer, most, self.sampling(), stop_ids)

    def generator(
        self, *, speculator: Speculator | None = None, **options: Any
    ) -> Generator | EncoderDecoderGenerator:
        """A :class:`~ridgeline.engine.generate.Generator` for this model; ``options`` are its own. An
        encoder-decoder has one that takes no options: InputError names one that was given."""
        if self.config.is_encoder_decoder:
            from ridgeline.engine.encoder_decoder import EncoderDecoderGenerator

            for name in ("speculator",) if speculator is not None else tuple(options):
                raise InputError(
                    f"{self.config.name} is an encoder-decoder, which takes no {name}: leave it out"
                )
            start = self.generation.decoder_start_token_id
            return EncoderDecoderGenerator(self.model, self.ops, self.requests(), start)
        from ridgeline.engine.generate import Generator

        return Generator(self.model, self.ops, self.requests(), speculator=speculator, **options)

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


@dataclass(frozen=True)
class WeightChoice:
    """What ``weights`` asks for: the files' own or random ones, in ``format``, None for what they come in."""

    random: bool
    format: str | None


@dataclass(frozen=True)
class Place:
    """Where a model runs, and whether a request's bits may depend on what else is computed."""

    device: str
    invariant: bool


def weight_choice(weights: str) -> WeightChoice:
    """What ``auto``, ``random``, a format or ``random:FORMAT`` asks for. Raises InputError for others."""
    if weights == "auto":
        return WeightChoice(False, None)
    if weights == "random":
        return WeightChoice(True, None)
    prefix, _, name = weights.rpartition(":") if isinstance(weights, str) else ("", "", weights)
    if prefix not in ("", "random") or name not in (*FORMATS, *GPU_FORMATS):
        known = ", ".join((*FORMATS, *GPU_FORMATS))
        raise InputError(f"weights is {weights!r}, expected auto, random, random:FORMAT or a format: {known}")
    return WeightChoice(prefix == "random", name)


def load(
    model: str | Path,
    *,
    weights: str = "auto",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    device: str = "cpu",
    invariant: bool = False,
) -> Loaded:
    """The model ``model``: ``demo`` or its draft ``demo-draft``, a folder in Hugging Face format, a hub id,
    or a built-in config.

    ``weights`` is ``auto`` (the files, in the format they are stored in), one of :data:`FORMATS` to convert
    them to, on a GPU also of :data:`GPU_FORMATS`, or, the only choice for a built-in config, ``random``:
    N(0, 0.02) from ``seed`` in the config's format, or in another one as ``random:int4-g128``. A quantised
    format is that of all weights that are multiplied, the output head included; an embedding of its own,
    norms and biases keep bf16 or fp32.
    ``progress`` is called with the parameters of each weight that is ready. ``device`` is where the model
    runs, ``cpu`` or ``cuda``. ``invariant`` gives a request the same bits whatever else is computed with it:
    what the cpu's kernels do anyway, and a GPU only when it is asked to, for its price in time.

    Raises InputError if the model or a file of it is missing, broken or not supported, if a weight can't be
    quantised, if PyTorch is missing, or if there is no such device or its memory is too small.
    """
    choice = weight_choice(weights)
    if device not in DEVICES:
        raise InputError(f"device is {device!r}; choose one of: {', '.join(DEVICES)}")
    if device == "cpu" and choice.format in GPU_FORMATS:
        raise InputError(
            f"weights are {choice.format}, which only a GPU runs: choose int8 or bf16, or device cuda"
        )
    config = load_config(model)
    builtin = str(model).lower() in builtin_names()
    if builtin and not choice.random:
        raise InputError(
            f"{model} is a built-in config, which carries no weights: give a folder or a hub id, or random"
            " weights (--weights random)"
        )
    require_run_extra()
    if device == "cuda":
        require_gpu()
    from ridgeline.kernels import runtime

    runtime.isa(), runtime.threads()  # what the environment asks for in vain is said before weights are read
    if choice.random:
        folder = None if builtin else config_path(model).parent
        format = choice.format or config.format
        return _loaded(folder, *_random(config, format, seed, progress, Place(device, invariant)))
    folder = _folder(model)
    config = replace(config, format=_stored_format(folder) or config.format)
    format = choice.format or config.format
    return _loaded(folder, *_from_files(config, folder, format, progress, Place(device, invariant)))


def _loaded(folder: Path | None, model: Model, ops: Cpu | TorchCpu | Gpu) -> Loaded:
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


def _random(
    config: ModelConfig, format: str, seed: int, progress: Callable[[int], None] | None, place: Place
) -> tuple[Model, Cpu | TorchCpu | Gpu]:
    if _is_packed(format, place.device):
        from ridgeline.weights.pack import random_packed

        return _on_packed(random_packed(config, format, seed, progress), place)
    from ridgeline.weights.load import random_model

    _refuse_varying(format, place)
    return _on_torch(random_model(replace(config, format=format), seed=seed, progress=progress), place)


def _from_files(
    config: ModelConfig, folder: Path, format: str, progress: Callable[[int], None] | None, place: Place
) -> tuple[Model, Cpu | TorchCpu | Gpu]:
    if _is_packed(format, place.device):
        from ridgeline.weights.pack import load_packed

        return _on_packed(load_packed(config, folder, format, progress), place)
    from ridgeline.weights.load import load_model

    _refuse_varying(format, place)
    return _on_torch(load_model(replace(config, format=format), folder, progress=progress), place)


def _is_packed(format: str, device: str) -> bool:
    """Whether products read weights of that format from a layout of their own: on a GPU only quantised
    ones."""
    from ridgeline.kernels.linear import FORMATS
    from ridgeline.ops.formats import get_format

    if device == "cuda":
        return get_format(format).is_quantised
    return format in FORMATS


def _refuse_varying(format: str, place: Place) -> None:
    """Raises InputError if invariance is asked of PyTorch's products on the CPU."""
    if place.invariant and place.device == "cpu":
        raise InputError(
            f"{format} weights run on PyTorch's operators on the cpu, whose sums depend on the batch: choose "
            "bf16 or fp32 weights, or leave out invariant"
        )


def _on_packed(model: Model, place: Place) -> tuple[Model, Cpu | Gpu]:
    if place.device == "cuda":
        return _on_gpu(model, place, quantised=True)
    from ridgeline.ops.cpu import Cpu

    return model, Cpu(attention_format=model.plain_format)


def _on_torch(model: Model, place: Place) -> tuple[Model, TorchCpu | Gpu]:
    if place.device == "cuda":
        return _on_gpu(model, place, quantised=False)
    from ridgeline.ops.torch_batch import TORCH_DTYPE
    from ridgeline.ops.torch_cpu import TorchCpu

    return model, TorchCpu(TORCH_DTYPE[model.plain_format])


def _on_gpu(model: Model, place: Place, quantised: bool) -> tuple[Model, Gpu]:
    from ridgeline.ops.gpu import Gpu, to_gpu
    from ridgeline.ops.torch_batch import TORCH_DTYPE

    ops = Gpu(TORCH_DTYPE[model.plain_format], quantised=quantised, invariant=place.invariant)
    return to_gpu(model, ops.device), ops


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

    ours = DEMOS.get(str(model).lower())
    return ours or find_folder(str(model), (*DEMOS, *builtin_names()))


def require_gpu(way_out: str = "take device cpu, or a machine that has one") -> None:
    """Raises InputError, which ends in ``way_out``, where there is no GPU (or interpreter), or no Triton."""
    import torch

    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError(f"PyTorch sees no CUDA device here: {way_out}")
    import ridgeline.kernels.triton  # noqa: F401  says so if Triton is missing


def require_run_extra() -> None:
    """Raises InputError if a package that running a model takes is missing."""
    for package, name in _NEEDED.items():
        if find_spec(package) is None:
            raise InputError(f"running a model needs {name}: pip install 'ridgeline[run]'")
