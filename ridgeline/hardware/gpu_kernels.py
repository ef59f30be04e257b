"""How fast a measured GPU's kernels are: times of the gpu reading's kernels at points, and what surrounds
them.

A table holds the kernels of one kind and format: at each point its sizes and the seconds that one more such
kernel takes in a CUDA graph. Predictions look the points up, and go from one to the next along the time
models of :mod:`ridgeline.predict.gpu`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from ridgeline.errors import InputError
from ridgeline.hardware.kernels import EngineTimes
from ridgeline.ops.lowering import GPU

#: The sizes that a table's points have, by what comes before the first dot of its name.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "linear": ("rows", "outputs", "inputs"),
    "norm": ("rows", "width"),
    "add": ("rows", "width"),
    "activation": ("rows", "width"),
    "rotate_append": ("rows", "width"),
    "append": ("rows", "width"),
    "gather": ("rows", "width"),
    "sample": ("rows", "width"),
    "decode": ("sequences", "keys", "heads", "kv_heads", "dim"),
    "prompt": ("rows", "past", "sequences", "heads", "kv_heads", "dim"),
    "encode": ("rows", "sequences", "heads", "kv_heads", "dim"),
}
#: What the host takes to issue an operator, by kind; others are taken to be as fast as a plain launch.
ISSUED = ("linear", "quantised", "norm", "add", "activation", "attend", "gather")
#: Bandwidths that are measured.
BANDWIDTHS = ("copy", "read", "l2")


@dataclass(frozen=True)
class GpuTable:
    """``seconds`` of a kernel at each of ``points``, whose numbers are those that ``COLUMNS`` names."""

    points: tuple[tuple[float, ...], ...]
    seconds: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.seconds)


@dataclass(frozen=True)
class GpuKernels:
    """All measured kernels of the gpu reading on the GPU that its driver calls ``gpu``.

    ``replay`` is what a step that replays a CUDA graph costs beside its kernels, ``step`` what an
    operator-by-operator step costs beside its kernels and what issues them; ``launch`` what the host takes to
    launch a small kernel, ``gap`` what an empty kernel adds to a graph; all in seconds. ``issue`` are the
    seconds that the host takes for an operator by kind, ``bandwidth`` bytes a second: ``copy`` reads and
    writes main memory, ``read`` reads it, ``l2`` copies within the L2 cache. ``tables`` is by the kind of
    kernel and, after a dot, what tells it apart: the format of weights or cache, or the function.
    """

    reading: str
    gpu: str
    driver: str
    cuda: str
    torch: str
    triton: str
    replay: float
    step: float
    launch: float
    gap: float
    issue: Mapping[str, float]
    bandwidth: Mapping[str, float]
    tables: Mapping[str, GpuTable]
    engine: EngineTimes

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the device file's ``kernels`` table."""
        plain = asdict(self)
        plain["tables"] = {
            name: {"points": [list(p) for p in table.points], "seconds": list(table.seconds)}
            for name, table in self.tables.items()
        }
        return plain

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> GpuKernels:
        """Raises InputError if the table was written by another version or holds an impossible value."""
        try:
            tables = {
                name: GpuTable(tuple(map(tuple, table["points"])), tuple(table["seconds"]))
                for name, table in raw["tables"].items()
            }
            engine = EngineTimes(**raw["engine"])
            kernels = cls(**{**raw, "tables": tables, "engine": engine})
            _check(kernels)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            way_out = "run `ridgeline measure --device cuda` again"
            raise InputError(f"the GPU's kernel table can't be used ({error}): {way_out}") from None
        return kernels


def columns_of(table: str) -> tuple[str, ...]:
    """The sizes of a table's points, by its name. Raises ValueError for a table that is not known."""
    kind = table.partition(".")[0]
    if kind not in COLUMNS:
        raise ValueError(f"there is no table {table!r}")
    return COLUMNS[kind]


def _check(kernels: GpuKernels) -> None:
    """Raises ValueError that names what cannot be."""
    if kernels.reading != GPU.name:
        raise ValueError(f"reading is {kernels.reading!r}")
    for name in ("replay", "step", "launch", "gap"):
        if not _is_number(getattr(kernels, name)) or getattr(kernels, name) < 0:
            raise ValueError(f"{name} is {getattr(kernels, name)!r}")
    for name, values in (("issue", kernels.issue), ("bandwidth", kernels.bandwidth)):
        if not all(_is_number(v) and v > 0 for v in values.values()):
            raise ValueError(f"{name} holds a value that is not positive")
    if min(asdict(kernels.engine).values()) < 0:
        raise ValueError("engine holds a negative time")
    for name, table in kernels.tables.items():
        width = len(columns_of(name))
        if len(table.points) != len(table.seconds) or not table.seconds:
            raise ValueError(f"{name} has not a time for every point")
        if any(len(point) != width for point in table.points):
            raise ValueError(f"{name} has a point without {', '.join(columns_of(name))}")
        if not all(_is_number(s) and s > 0 for s in table.seconds):
            raise ValueError(f"{name} holds a time that is not positive")
        if not all(_is_number(x) and x >= 0 for point in table.points for x in point):
            raise ValueError(f"{name} holds a size that is negative")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
