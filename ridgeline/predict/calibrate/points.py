"""Measured points in CSV files: one kernel a line, its sizes and its time.

The header names the columns. ``time_us`` is the time in microseconds; a ``kind`` column may say the kind of
kernel, else the columns tell. Columns that the kind does not know are passed over.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path

import numpy as np

from ridgeline.errors import InputError
from ridgeline.predict.gpu.kinds import MODULES, Kind, Points, kind

TIME = "time_us"
Row = Mapping[str, str]


def read_points(paths: Iterable[str | Path]) -> dict[str, Points]:
    """The points of all files by their kind.

    Raises InputError, naming file and line, for a file that cannot be read, a header that fits no kind, and
    a value that is missing, no number, or out of range.
    """
    found: dict[str, list[Points]] = {}
    for path in paths:
        for name, points in read_file(Path(path)).items():
            found.setdefault(name, []).append(points)
    return {name: join(parts) for name, parts in found.items()}


def read_file(path: Path) -> dict[str, Points]:
    """The points of one file (``.csv``, or ``.csv.gz``) by their kind. Raises as :func:`read_points`."""
    header, rows = read_rows(path)
    return points_of(path, header, rows)


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """The header of a CSV file, and its rows with the lines that they end on. Raises InputError for a file
    that cannot be read, has no rows, or a row without all columns."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            header = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise InputError(f"no points file at {path}") from None
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read the points file {path}: {getattr(error, 'strerror', error)}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8, so not a points file") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file: {error}") from None
    if not rows:
        raise InputError(f"{path}: no points in it; a header and a line for each point are needed")
    for line, row in rows:
        if None in row or None in row.values():
            raise InputError(f"{path}, line {line}: {len(header)} values are needed, as the header has them")
    return header, rows


def points_of(path: Path, header: Sequence[str], rows: Sequence[tuple[int, Row]]) -> dict[str, Points]:
    """The points of a file's rows by their kind. Raises as :func:`read_points`."""
    if TIME not in header:
        raise InputError(f"{path}, line 1: a column {TIME} is needed, the time in microseconds")
    if "kind" not in header:
        return {of.name: _points(path, of, rows) for of in (_kind_of(path, header),)}
    named: dict[str, list[tuple[int, Row]]] = {}
    for line, row in rows:
        if row["kind"] not in MODULES:
            known = ", ".join(MODULES)
            raise InputError(f"{path}, line {line}: unknown kind {row['kind']!r}; choose one of: {known}")
        named.setdefault(row["kind"], []).append((line, row))
    return {name: _points(path, kind(name), mine) for name, mine in named.items()}


def join(parts: Sequence[Points]) -> Points:
    """Points of one kind, one after another."""
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0].columns}
    return Points(parts[0].kind, columns, np.concatenate([p.seconds for p in parts]))


def _kind_of(path: Path, header: Sequence[str]) -> Kind:
    """The kind whose columns the header has; of several, the one that asks for most."""
    kinds = sorted((kind(name) for name in MODULES), key=lambda k: -len(k.columns))
    for candidate in kinds:
        if set(candidate.columns) - candidate.defaults.keys() <= set(header):
            return candidate
    wanted = "; ".join(f"{', '.join((*k.columns, TIME))} ({k.name})" for k in kinds)
    raise InputError(f"{path}, line 1: its columns are those of no kind of kernel: {wanted}")


def _points(path: Path, of: Kind, rows: Sequence[tuple[int, Row]]) -> Points:
    columns: dict[str, list[float | str]] = {name: [] for name in of.columns}
    times = []
    for line, row in rows:
        where = f"{path}, line {line}"
        for name in of.numbers:
            columns[name].append(_number(where, name, _value(where, of, row, name), name in of.zero))
        for name, words in of.texts.items():
            columns[name].append(_word(where, name, _value(where, of, row, name), words))
        times.append(_time(where, row[TIME]))
    return Points(of.name, {n: np.array(v) for n, v in columns.items()}, np.array(times) * 1e-6)


def _value(where: str, of: Kind, row: Row, name: str) -> str:
    if row.get(name):
        return row[name]
    if name in of.defaults:
        return str(of.defaults[name])
    raise InputError(f"{where}: {name} is missing, which a point of kind {of.name} has")


def _number(where: str, name: str, text: str, zero: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{where}: {name} must be a whole number, not {text!r}") from None
    if not isfinite(value) or value != int(value) or value < (0 if zero else 1):
        least = "0 or more" if zero else "1 or more"
        raise InputError(f"{where}: {name} must be a whole number, {least}, not {text!r}")
    return value


def _word(where: str, name: str, text: str, words: Sequence[str]) -> str:
    if text not in words:
        raise InputError(f"{where}: {name} is {text!r}; choose one of: {', '.join(words)}")
    return text


def _time(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (isfinite(value) and value > 0):
        raise InputError(f"{where}: {TIME} must be microseconds above 0, not {text!r}")
    return value
