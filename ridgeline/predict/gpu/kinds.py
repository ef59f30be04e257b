"""The kinds of kernel that can be calibrated, and what the time model of each must offer.

A kind's module holds a frozen dataclass of its constants and a :class:`Kind` named ``KIND``; a line in
``MODULES`` plugs it in. Modules are imported when their kind is asked for, because they need NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ridgeline.errors import InputError

if TYPE_CHECKING:
    from numpy import ndarray

    from ridgeline.hardware.device import Device
    from ridgeline.ops.kernel import Kernel
    from ridgeline.predict.gpu.kernels import Needed

#: Where the time model of each kind is.
MODULES: Mapping[str, str] = {
    "gemm": "ridgeline.predict.gpu.gemm",
    "elementwise": "ridgeline.predict.gpu.elementwise",
    "attention": "ridgeline.predict.gpu.attention",
    "collective": "ridgeline.predict.gpu.collective",
}


@dataclass(frozen=True)
class Points:
    """Measured times of one kind of kernel: ``columns`` by name, each an array of [points] numbers or
    texts, and ``seconds`` [points]."""

    kind: str
    columns: Mapping[str, ndarray]
    seconds: ndarray

    def __len__(self) -> int:
        return len(self.seconds)

    def __getitem__(self, column: str) -> ndarray:
        return self.columns[column]

    def take(self, chosen: ndarray) -> Points:
        """The points of these indices, or those where a mask of [points] is true."""
        columns = {name: values[chosen] for name, values in self.columns.items()}
        return Points(self.kind, columns, self.seconds[chosen])


@dataclass(frozen=True)
class Kind:
    """One kind of kernel.

    ``numbers`` are the columns of a point that are positive whole numbers (zero where ``zero`` names
    them), ``texts`` those that are one of the given words; ``defaults`` gives the value of columns that
    a file may leave out. ``constants`` is the frozen dataclass of the model's constants, all floats, whose
    values without arguments are the generic ones. ``seconds`` predicts the time of every point, [points],
    and ``fit`` finds the constants from a few of them. ``share`` is how many of 64 points this kind
    should get when points of other kinds are there too. ``kernel``, where a kind has kernels of a trace to
    itself, gives such a kernel's seconds and needs (:class:`ridgeline.predict.gpu.kernels.Needed`), or
    None for one that the model is not for.
    ``assumed`` gives what is taken on a device that is not calibrated, of the constants that others have.
    ``roofline`` gives what the datasheet alone says of every point, to hold the model against.
    """

    name: str
    numbers: tuple[str, ...]
    constants: type
    seconds: Callable[[Device, Any, Points], ndarray]
    fit: Callable[[Device, Points], Any]
    share: int
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    zero: frozenset[str] = frozenset()
    defaults: Mapping[str, float | str] = field(default_factory=dict)
    kernel: Callable[[Device, Any, Kernel], Needed | None] | None = None
    roofline: Callable[[Device, Points], ndarray] | None = None
    assumed: Callable[[Device, Any], Any] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that a point of this kind has, beside its time."""
        return (*self.numbers, *self.texts)


def kind(name: str) -> Kind:
    """The kind of that name. Raises InputError for one that is not known."""
    if name not in MODULES:
        raise InputError(f"unknown kind of kernel '{name}'; choose one of: {', '.join(MODULES)}")
    return import_module(MODULES[name]).KIND
