"""Measured points of a GPU's kernels: as ``ridgeline calibrate`` reads them, kept with what they were
measured on."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridgeline.errors import InputError
from ridgeline.hardware.gpu.work import GpuFacts
from ridgeline.hardware.gpu_kernels import GpuTable

if TYPE_CHECKING:
    from ridgeline.predict.gpu.kinds import Points

#: The element-wise kernel of the time models that a table is of.
ELEMENTWISE = {"norm.rms": "rms_norm", "add": "add", "activation.gated": "silu_mul"}
#: What the time models of attention were made for; others differ in their bytes.
CACHE = "bf16"


@dataclass(frozen=True)
class Point:
    """A measured kernel, as a points file has it: its ``kind``, its columns, and seconds."""

    kind: str
    columns: Mapping[str, float | str]
    seconds: float


def points_of_tables(tables: Mapping[str, GpuTable]) -> list[Point]:
    """Every point of the tables that time models can be calibrated with: those in 16 bits."""
    return [
        Point(kind, columns, seconds)
        for name, table in tables.items()
        for sizes, seconds in zip(table.points, table.seconds, strict=True)
        for kind, columns in _of(name, sizes)
    ]


def _of(table: str, sizes: tuple[float, ...]) -> Iterator[tuple[str, dict[str, float | str]]]:
    if table == "linear.bf16":
        yield "gemm", dict(zip("mnk", sizes, strict=True))
    elif table in ELEMENTWISE:
        rows, width = sizes
        yield "elementwise", {"rows": rows, "width": width, "op": ELEMENTWISE[table]}
    elif table == f"prompt.{CACHE}" and sizes[2] == 1:
        rows, past, _, *heads = sizes
        yield "attention", _attention(rows, past, 0, 0, *heads)
    elif table == f"decode.{CACHE}":
        count, keys, *heads = sizes
        yield "attention", _attention(0, 0, count, keys - 1, *heads)


def _attention(
    chunk: float, past: float, count: float, cached: float, heads: float, kv_heads: float, dim: float
) -> dict[str, float]:
    sizes = {"prefill_chunk": chunk, "kv_prefill": past, "n_decode": count, "kv_decode": cached}
    return sizes | {"heads": heads, "kv_heads": kv_heads, "head_dim": dim}


def by_kind(points: list[Point]) -> dict[str, Points]:
    """The points as calibration takes them."""
    import numpy as np

    from ridgeline.predict.gpu.kinds import Points, kind

    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.kind, []).append(point)

    def column(name: str, mine: list[Point]) -> Any:
        return np.array([p.columns.get(name, kind(p.kind).defaults.get(name)) for p in mine])

    return {
        name: Points(
            name,
            {c: column(c, mine) for c in kind(name).columns},
            np.array([p.seconds for p in mine]),
        )
        for name, mine in found.items()
    }


def write_points(path: Path, points: list[Point], facts: GpuFacts) -> None:
    """A points file: a line a kernel, with the GPU, its software and the day.

    Raises InputError where the file cannot be written.
    """
    where = {
        "device": facts.name,
        "driver": facts.driver,
        "cuda": facts.cuda,
        "torch": facts.torch,
        "triton": facts.triton,
        "date": date.today().isoformat(),
    }
    sizes = dict.fromkeys(name for point in points for name in point.columns)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, ("kind", *sizes, "time_us", *where), restval="")
            writer.writeheader()
            for point in points:
                columns = {n: x if isinstance(x, str) else int(x) for n, x in point.columns.items()}
                time = f"{point.seconds * 1e6:.5g}"
                writer.writerow({"kind": point.kind, **columns, "time_us": time, **where})
    except OSError as error:
        raise InputError(f"cannot write the points file {path}: {error.strerror}") from None
