"""Packing a model's weights for the native kernels, or a GPU's, while it is loaded or drawn.

What is multiplied is packed in one format, the output head included. What is only looked up or added keeps
the plain format: an embedding that is not the head, positions, norms and biases. They are a few bytes a
token to read, and the errors of a norm's weight would be in every row. A tied embedding is held once, packed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.fp8 import FP8_BLOCKS, Fp8Linear, pack_fp8
from ridgeline.kernels.linear import FORMATS, PackedLinear, pack_linear
from ridgeline.models.model import Declared, Each, Model, ModelConfig, Source, WeightMaker
from ridgeline.models.products import products, routers
from ridgeline.models.registry import build
from ridgeline.ops.formats import get_format, packed_shape
from ridgeline.ops.records import Weight
from ridgeline.ops.torch_batch import FORMAT_NAME
from ridgeline.weights.load import CheckpointMaker, RandomMaker, torch_dtype

#: The plain format of a quantised model whose checkpoint has one that the kernels don't read.
READ_AS = {"fp64": "fp32", "fp16": "bf16"}


def load_packed(
    config: ModelConfig, folder: Path, format: str, progress: Callable[[int], None] | None = None
) -> Model:
    """The model with the weights of ``folder``'s safetensors, packed as ``format``.

    ``config.format`` is the plain format beside a quantised one. Weights are read, packed on all threads
    and dropped one after another, so that memory holds one of them in floating point at most.
    ``progress`` is called with the parameters of each weight that is ready.

    Raises InputError as :func:`~ridgeline.weights.load.load_model` does, for an unknown format, and for a
    weight that the format can't hold.
    """
    maker = CheckpointMaker(config, folder, dtype=None)
    model = build_packed(config, maker, format, progress)
    maker.refuse_surplus(model)
    return model


def random_packed(
    config: ModelConfig, format: str, seed: int = 0, progress: Callable[[int], None] | None = None
) -> Model:
    """The random model of that seed, packed as ``format``; the rest is as for :func:`load_packed`."""
    return build_packed(config, RandomMaker(torch_dtype(_plain(config, format)), seed), format, progress)


def build_packed(
    config: ModelConfig,
    make: WeightMaker,
    format: str,
    progress: Callable[[int], None] | None = None,
) -> Model:
    """The model with the tensors that ``make`` supplies, those of linear layers packed as ``format``."""
    known = (*FORMATS, *FP8_BLOCKS)
    if format not in known:
        raise InputError(f"weights can't be packed as '{format}'; choose one of: {', '.join(known)}")
    plain = torch_dtype(_plain(config, format))
    # A family asks for its weights in one order, whoever makes them.
    multiplied = iter(_multiplied(config))

    def store(weight: Weight, source: str) -> Weight:
        use = next(multiplied)
        if use is None:
            stored = replace(weight, format=FORMAT_NAME[plain], data=weight.data.to(plain))
        else:
            packed = FORMAT_NAME[plain] if use.plain else format
            stored = replace(
                weight,
                format=packed,
                data=_pack(weight.data, packed, use.gated, source),
                stored=None if packed in FP8_BLOCKS else packed_shape(weight.shape, packed, use.gated),
            )
        if progress is not None:
            progress(weight.numel)
        return stored

    return build(replace(config, format=format), _Passed(make, store))


def _plain(config: ModelConfig, format: str) -> str:
    return READ_AS.get(config.format, config.format) if get_format(format).is_quantised else format


def _pack(
    weight: torch.Tensor, format: str, gated: bool, source: str
) -> PackedLinear | Fp8Linear | tuple[PackedLinear | Fp8Linear, ...]:
    """The packed weight; of experts [experts, out, in], each one's."""
    if weight.dim() == 3 and format in FP8_BLOCKS:
        raise InputError(
            f"tensor '{source}' holds experts, which don't run in {format}: choose int8 or int4-g128"
        )
    if weight.dim() == 3:
        return tuple(_pack(one, format, gated, source) for one in weight)
    try:
        if format in FP8_BLOCKS:
            return pack_fp8(weight, format, gated=gated)
        return pack_linear(weight, format, gated=gated)
    except InputError as error:
        raise InputError(f"tensor '{source}': {error}") from None


class _Use(NamedTuple):
    """How a weight is multiplied: whether half of its outputs gate the others, and whether it keeps the plain
    format."""

    gated: bool
    plain: bool = False


def _multiplied(config: ModelConfig) -> list[_Use | None]:
    """Of each weight in the order in which they are made: None if it is not multiplied, else how."""
    made: list[Weight] = []

    def note(weight: Weight, source: str) -> Weight:
        made.append(weight)
        return weight

    model = build(config, _Passed(Declared(config.format), note))
    uses = {id(weight): _Use(False, plain=True) for weight in routers(model)}
    uses |= {id(weight): _Use(gated) for weight, gated in products(model)}
    return [uses.get(id(weight)) for weight in made]


@dataclass(frozen=True)
class _Passed:
    """A maker that passes on what ``then`` makes of each weight of ``make`` and of the name of its (first)
    tensor in the checkpoint."""

    make: WeightMaker
    then: Callable[[Weight, str], Weight]

    def matrix(self, name: str, *sources: Source, transposed: bool = False) -> Weight:
        return self.then(self.make.matrix(name, *sources, transposed=transposed), sources[0].name)

    def table(self, name: str, source: Source) -> Weight:
        return self.then(self.make.table(name, source), source.name)

    def experts(self, name: str, stacked: Source, each: Each) -> Weight:
        return self.then(self.make.experts(name, stacked, each), stacked.name)

    def vector(self, name: str, *sources: Source, fill: float) -> Weight:
        return self.then(self.make.vector(name, *sources, fill=fill), sources[0].name)
