"""What a prediction needs to know of a device: rates, memory levels, and where each figure comes from.

Units are SI throughout: bytes, bytes/s, seconds, and FLOP/s where a multiply-add is 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from math import isfinite
from typing import Any

from ridgeline.errors import InputError

KINDS = ("gpu", "cpu", "tpu", "apple", "phone")
DTYPES = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp4", "int8", "int4")

# In what a dtype is computed where its own rate is not listed, first choice first. Every conversion
# is exact but two: a device with one 16-bit format is given the model in that format.
CONVERSIONS: Mapping[str, tuple[str, ...]] = {
    "fp64": (),
    "fp32": (),
    "tf32": ("fp32",),
    "bf16": ("fp16", "fp32"),
    "fp16": ("bf16", "fp32"),
    "fp8": ("fp16", "bf16", "fp32"),
    "fp4": ("fp8", "fp16", "bf16", "fp32"),
    "int8": ("bf16", "fp16", "fp32"),
    "int4": ("int8", "bf16", "fp16", "fp32"),
}


class Provenance(StrEnum):
    """Where a figure comes from."""

    DATASHEET = "datasheet"
    CALIBRATED = "calibrated"
    MEASURED = "measured"
    ASSUMED = "assumed"


# "levels" are the caches (their capacities in `on_chip` too), "memory" is main memory.
SECTIONS = (
    "matrix",
    "vector",
    "exp",
    "memory",
    "levels",
    "launch",
    "storage",
    "link",
    "price",
    "kernels",
    "calibration",
    "network",
)


@dataclass(frozen=True)
class Level:
    """A level of the memory hierarchy: ``capacity`` in bytes and ``bandwidth`` in bytes/s, each as
    all units together have it."""

    name: str
    capacity: float
    bandwidth: float

    def __post_init__(self) -> None:
        _check_text("levels.name", self.name)
        _check_positive(f"levels.{self.name}.capacity", self.capacity)
        _check_positive(f"levels.{self.name}.bandwidth", self.bandwidth)


@dataclass(frozen=True)
class OnChip:
    """Capacities on the chip in bytes, known even where a bandwidth is not published.

    ``scratch_per_unit`` is what one unit's kernel can keep to itself (shared memory of an SM, L2 of a
    core); ``cache`` is the last-level cache of the whole device.
    """

    scratch_per_unit: float | None = None
    cache: float | None = None

    def __post_init__(self) -> None:
        _check_optional("on_chip.scratch_per_unit", self.scratch_per_unit)
        _check_optional("on_chip.cache", self.cache)


@dataclass(frozen=True)
class Device:
    """One device: a GPU, the CPUs of one socket, a phone.

    ``source`` and ``date`` name the document (or the measurement) the file follows, which also gives
    ``units`` (SMs, compute units, cores), ``clock_hz``, at which the matrix rates hold, and ``boost_hz``, up
    to which it clocks if that is higher; ``provenance`` says the same of each
    section that is present. ``matrix`` and ``vector`` are dense FLOP/s by dtype: of matrix
    products accumulated in float32 (or int32), and of element-wise work. ``exp_rate`` is
    exponentials/s. ``levels`` run from the nearest cache with a known bandwidth to main memory, the
    last. Capacities follow the vendor's decimal gigabytes; a driver may report a few per cent more.
    ``link_bandwidth`` is bytes/s out of one device, in one direction. ``kernels`` holds measured
    kernel times as ``ridgeline measure`` wrote them. ``calibration`` holds, by kind of kernel (gemm,
    elementwise, attention, collective), the few constants of that kind's time model as ``ridgeline
    calibrate`` fitted them to measured points. ``node_devices`` is how many of them the vendor's own node
    holds, and ``network_bandwidth`` bytes/s that each of them has between nodes, in one direction.

    Raises InputError on a value that is not a positive finite number (``launch_seconds`` and
    ``price_per_hour`` may be 0), an unknown kind, dtype or section, levels that do not grow, a
    calibration that is not tables of finite numbers, and a ``provenance`` that does not cover exactly
    the sections present.
    """

    name: str
    title: str
    kind: str
    source: str
    date: str
    provenance: Mapping[str, Provenance]
    units: int
    vector: Mapping[str, float]
    exp_rate: float
    levels: tuple[Level, ...]
    launch_seconds: float
    matrix: Mapping[str, float] = field(default_factory=dict)
    clock_hz: float | None = None
    boost_hz: float | None = None
    on_chip: OnChip = field(default_factory=OnChip)
    storage_bandwidth: float | None = None
    link_name: str | None = None
    link_bandwidth: float | None = None
    price_per_hour: float | None = None
    kernels: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    node_devices: int | None = None
    network_bandwidth: float | None = None

    def __post_init__(self) -> None:
        for name in ("name", "title", "source", "date"):
            _check_text(name, getattr(self, name))
        _check_choice("kind", self.kind, KINDS)
        if not isinstance(self.units, int):
            raise InputError(f"units must be a whole number, not {self.units!r}")
        for name in ("units", "exp_rate"):
            _check_positive(name, getattr(self, name))
        for name in ("clock_hz", "boost_hz", "storage_bandwidth", "link_bandwidth", "network_bandwidth"):
            _check_optional(name, getattr(self, name))
        _check_positive("launch_seconds", self.launch_seconds, or_zero=True)
        if self.price_per_hour is not None:
            _check_positive("price_per_hour", self.price_per_hour, or_zero=True)
        _check_rates("matrix", self.matrix)
        _check_rates("vector", self.vector)
        if not self.vector:
            raise InputError("vector needs the rate of at least one dtype")
        if self.link_name is not None:
            _check_text("link_name", self.link_name)
        if (self.link_name is None) != (self.link_bandwidth is None):
            raise InputError("link_name and link_bandwidth go together: give both or neither")
        if (self.node_devices is None) != (self.network_bandwidth is None):
            raise InputError("node_devices and network_bandwidth go together: give both or neither")
        if self.node_devices is not None and (type(self.node_devices) is not int or self.node_devices < 1):
            raise InputError(f"node_devices must be a whole number from 1 on, not {self.node_devices!r}")
        _check_levels(self.levels)
        _check_calibration(self.calibration)
        _check_provenance(self.provenance, self._sections())

    def _sections(self) -> set[str]:
        """The sections this device has figures in."""
        present = {
            "matrix": bool(self.matrix),
            "levels": len(self.levels) > 1 or self.on_chip != OnChip(),
            "storage": self.storage_bandwidth is not None,
            "link": self.link_bandwidth is not None,
            "price": self.price_per_hour is not None,
            "kernels": bool(self.kernels),
            "calibration": bool(self.calibration),
            "network": self.network_bandwidth is not None,
        }
        return {section for section in SECTIONS if present.get(section, True)}

    @property
    def memory_bytes(self) -> float:
        """Capacity of main memory, in bytes."""
        return self.levels[-1].capacity

    @property
    def bandwidth(self) -> float:
        """Bandwidth of main memory, in bytes/s."""
        return self.levels[-1].bandwidth

    def matrix_rate(self, dtype: str) -> float:
        """FLOP/s of matrix products on operands of this dtype.

        Without a rate of its own a dtype is computed in the first of ``CONVERSIONS`` that has one,
        and without any matrix unit at ``vector_rate``. A storage format with scales (4-bit weights
        times 16-bit activations) is the caller's to name: ask for the dtype that is multiplied.

        Raises InputError for a dtype that is unknown or that nothing here can compute.
        """
        for candidate in (dtype, *self._conversions(dtype)):
            if candidate in self.matrix:
                return self.matrix[candidate]
        return self.vector_rate(dtype)

    def vector_rate(self, dtype: str) -> float:
        """FLOP/s of element-wise work on this dtype, converted like ``matrix_rate`` does.

        Raises InputError for a dtype that is unknown or that nothing here can compute.
        """
        for candidate in (dtype, *self._conversions(dtype)):
            if candidate in self.vector:
                return self.vector[candidate]
        raise self._no_rate(dtype)

    def ridge(self, dtype: str) -> float:
        """FLOP/byte at which a matrix product stops being bound by main memory: the ridge point of
        the roofline model (Williams, Waterman and Patterson, 2009)."""
        return self.matrix_rate(dtype) / self.bandwidth

    def _conversions(self, dtype: str) -> tuple[str, ...]:
        if dtype not in CONVERSIONS:
            raise self._no_rate(dtype)
        return CONVERSIONS[dtype]

    def _no_rate(self, dtype: str) -> InputError:
        matrix = ", ".join(self.matrix) or "none"
        vector = ", ".join(self.vector)
        return InputError(f"{self.name} has no rate for dtype '{dtype}'; matrix: {matrix}; vector: {vector}")


def _check_positive(name: str, value: Any, *, or_zero: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and isfinite(value) and (value > 0 or (or_zero and value == 0)):
        return
    wanted = "finite and not negative" if or_zero else "a positive finite number"
    raise InputError(f"{name} must be {wanted}, not {value!r}")


def _check_optional(name: str, value: Any) -> None:
    if value is not None:
        _check_positive(name, value)


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} must be text in quotes, not {value!r}")


def _check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        raise InputError(f"{name} is {value!r}; choose one of: {', '.join(known)}")


def _check_rates(name: str, rates: Mapping[str, float]) -> None:
    for dtype, rate in rates.items():
        _check_choice(f"a dtype of {name}", dtype, DTYPES)
        _check_positive(f"{name}.{dtype}", rate)


def _check_levels(levels: tuple[Level, ...]) -> None:
    if not levels:
        raise InputError("levels needs main memory at least")
    for near, far in pairwise(levels):
        if near.capacity >= far.capacity:
            raise InputError(f"levels must grow towards main memory: {near.name} is not below {far.name}")


def _check_calibration(calibration: Mapping[str, Mapping[str, float]]) -> None:
    for kind, constants in calibration.items():
        if not isinstance(constants, Mapping):
            raise InputError(f"calibration.{kind} must be a table of numbers, not {constants!r}")
        for name, value in constants.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not isfinite(value):
                raise InputError(f"calibration.{kind}.{name} must be a finite number, not {value!r}")


def _check_provenance(provenance: Mapping[str, Provenance], present: set[str]) -> None:
    for section in provenance:
        _check_choice("a section of provenance", section, SECTIONS)
        if section not in present:
            raise InputError(f"provenance.{section} is given, but the device has no figure there")
    missing = [section for section in SECTIONS if section in present and section not in provenance]
    if missing:
        raise InputError(f"provenance lacks {', '.join(missing)}: say where these figures come from")
