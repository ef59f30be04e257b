"""Storage formats: how many bytes a tensor really takes, scales and zero points included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

from ridgeline.errors import InputError
from ridgeline.ops.numbers import round_up

Number = Any  # int, float, or a NumPy array of them when a trace sweeps over shapes


@dataclass(frozen=True)
class Format:
    """A storage format.

    ``bits`` are those of one element; ``group`` elements of a row share ``group_bits`` bits of
    scale and zero point (group 0: the whole row shares them; None: no scales at all). Where several rows
    share them too, ``group_bits`` is one row's part.
    """

    name: str
    bits: int
    group: int | None = None
    group_bits: float = 0

    def nbytes(self, shape: tuple[Number, ...]) -> Number:
        """Bytes of a tensor of this shape; the last dimension is the row that groups divide."""
        elements = prod(shape)
        if self.group is None:
            return elements * self.bits / 8 if self.bits % 8 else elements * (self.bits // 8)
        row = shape[-1]
        groups_in_row = 1 if self.group == 0 else -(-row // self.group)
        rows = prod(shape[:-1])
        return elements * self.bits / 8 + rows * groups_in_row * self.group_bits / 8

    @property
    def is_quantised(self) -> bool:
        return self.group is not None


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("fp64", 64),
        Format("fp32", 32),
        Format("bf16", 16),
        Format("fp16", 16),
        Format("fp8", 8, group=0, group_bits=32),
        Format("fp8-128x128", 8, group=128, group_bits=32 / 128),  # as DeepSeek-V3 is published
        Format("int64", 64),
        Format("int32", 32),
        Format("bool", 8),  # as PyTorch keeps a mask
        Format("int8-g256", 8, group=256, group_bits=32),
        Format("int8", 8, group=0, group_bits=16),
        Format("int4-g32", 4, group=32, group_bits=16),
        Format("int4-g64", 4, group=64, group_bits=16),
        Format("int4-g128", 4, group=128, group_bits=16),
        Format("int4-g32-zp", 4, group=32, group_bits=20),
        Format("int4-g64-zp", 4, group=64, group_bits=20),
        Format("int4-g128-zp", 4, group=128, group_bits=20),
    )
}


@cache
def kv_format(name: str) -> Format:
    """How keys and values [.., elements of a head] are stored in the format of that name: as weights are,
    but where a head has one scale it is a float32."""
    format = get_format(name)
    return replace(format, group_bits=32) if format.group == 0 else format


#: Outputs that a packed weight stores side by side (csrc/linear/layout.h).
PANEL = 32


def packed_shape(shape: tuple[int, ...], format: str, gated: bool) -> tuple[int, ...]:
    """What a weight [out, in], or [experts, out, in], that is packed for the native kernels takes in memory,
    padding included: whole panels of outputs, those of a gated weight of 16 gates and what they gate, and
    whole groups of inputs.

    Left out is the padding of zero points, less than 64 bytes a panel.
    """
    *experts, out, inputs = shape
    found = get_format(format)
    panels = 2 * round_up(out // 2, PANEL // 2) if gated else round_up(out, PANEL)
    return (
        *experts,
        panels,
        round_up(inputs, found.group or 32 // found.bits),
    )  # a step holds 4 bytes of every output


def product_format(format: str) -> str:
    """What the native kernels multiply weights of this format in: quantised ones meet activations in int8."""
    return "int8" if get_format(format).is_quantised else format


#: Formats of token ids, positions and masks, and of an 8-bit optimizer's state, which no weight is stored in.
INDEX_FORMATS = frozenset({"int64", "int32", "bool", "int8-g256"})


def storage_format(name: str) -> str:
    """``name`` if weights or a cache can be stored so; InputError lists what they can be."""
    if name not in FORMATS or name in INDEX_FORMATS:
        known = ", ".join(f for f in FORMATS if f not in INDEX_FORMATS)
        raise InputError(f"unknown storage format '{name}'; choose one of: {known}")
    return name


def get_format(name: str) -> Format:
    """The format of that name; InputError lists the known ones."""
    try:
        return FORMATS[name]
    except KeyError:
        known = ", ".join(FORMATS)
        raise InputError(f"unknown storage format '{name}'; choose one of: {known}") from None
