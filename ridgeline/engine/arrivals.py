"""Requests to simulate: when each comes, and how many tokens it has. From a file, or drawn at random."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ridgeline.engine.checks import at_least_one, is_whole
from ridgeline.errors import InputError

FIELDS = ("arrival", "prompt", "output")
#: The names that other tools' records have for these and for when the first and the last token came, of which
#: the first that a line has counts. Times of LLMServingSim's records that end in _ts are of one clock.
NAMES: Mapping[str, tuple[str, ...]] = {
    "arrival": ("arrival", "queued_ts", "arrival_time"),
    "prompt": ("prompt", "input_toks"),
    "output": ("output", "output_toks"),
    "first_token": ("first_token", "first_token_ts"),
    "last_token": ("last_token", "last_token_ts"),
}

#: Requests a second: with fewer, times are so large that single steps vanish in their rounding.
LEAST_RATE, MOST_RATE = 1e-6, 1e6
#: The most that are drawn, so that a slip of the hand does not fill the memory.
MOST_REQUESTS = 10**6


@dataclass(frozen=True)
class Arrival:
    """A request of ``prompt`` tokens that comes after so many ``seconds`` and is answered by ``output``.
    ``first_token`` and ``last_token`` are when these came in a real run, None if nobody recorded that."""

    seconds: float
    prompt: int
    output: int
    first_token: float | None = None
    last_token: float | None = None


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens, all of them from ``least`` to ``most`` equally likely."""

    least: int
    most: int

    @classmethod
    def parse(cls, option: str, text: str) -> Lengths:
        """From ``32-512`` or ``128``; raises InputError that names the ``option``."""
        parts = text.split("-")
        if not (1 <= len(parts) <= 2 and all(part.strip().isdecimal() for part in parts)):
            raise InputError(f"{option} is {text!r}, expected a number like 128, or a range like 32-512")
        least, most = int(parts[0]), int(parts[-1])
        if not 1 <= least <= most:
            raise InputError(f"{option} is {text!r}, expected a range from 1 token or more upwards")
        return cls(least, most)


def arrivals_of(
    requests: str,
    *,
    count: int | None = None,
    prompt: str | None = None,
    output: str | None = None,
    seed: int | None = None,
) -> list[Arrival]:
    """The requests that ``requests`` names: ``poisson:RATE`` draws ``count`` (1000) of them with ``prompt``
    (32-512) and ``output`` (16-256) tokens, anything else is a file, which says all that itself.

    Raises InputError for options out of range, and for those that a file leaves no use for.
    """
    kind, _, rate = requests.partition(":")
    if kind == "poisson":
        return poisson(
            _rate(rate),
            1000 if count is None else _count(count),
            Lengths.parse("prompt", "32-512" if prompt is None else prompt),
            Lengths.parse("output", "16-256" if output is None else output),
            _seed(seed),
        )
    for name, value in (("count", count), ("prompt", prompt), ("output", output), ("seed", seed)):
        if value is not None:
            raise InputError(
                f"{name} is for requests that are drawn (poisson:RATE): leave it out with a file"
            )
    return read_arrivals(Path(requests))


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise InputError(
            f"poisson:{text} has no rate from {LEAST_RATE:g} to {MOST_RATE:g}: give requests a second, such"
            " as poisson:4"
        )
    return rate


def _count(count: int) -> int:
    if at_least_one("count", count) > MOST_REQUESTS:
        raise InputError(f"count must be 1 to {MOST_REQUESTS:,}, not {count}")
    return count


def _seed(seed: int | None) -> int:
    """Python draws the same with -1 as with 1."""
    if seed is None:
        return 0
    if not is_whole(seed) or seed < 0:
        raise InputError(f"seed is {seed!r}, expected a whole number of at least 0")
    return seed


def poisson(rate: float, count: int, prompt: Lengths, output: Lengths, seed: int = 0) -> list[Arrival]:
    """``count`` requests that come independently of each other, ``rate`` a second on average (a Poisson
    process: gaps are exponentially distributed)."""
    draw = random.Random(seed)
    seconds, arrivals = 0.0, []
    for _ in range(count):
        arrivals.append(
            Arrival(seconds, draw.randint(prompt.least, prompt.most), draw.randint(output.least, output.most))
        )
        seconds += draw.expovariate(1.0) / rate
    return arrivals


def read_arrivals(file: Path) -> list[Arrival]:
    """The requests of a file, counted from the earliest arrival: JSON lines, or CSV with a header, with
    ``arrival`` in seconds and ``prompt`` and ``output`` in tokens, or as NAMES has them. A record of a
    real run has ``first_token`` and ``last_token`` too. Other fields are not looked at.

    Raises InputError for a file of another kind, and one that names the line if there is no such file, or
    something else in it.
    """
    if file.is_dir():
        raise InputError(f"{file} is a folder: give a .jsonl or .csv file, or poisson:RATE")
    readers = {".jsonl": _json_lines, ".json": _json_lines, ".csv": _csv_rows}
    if file.suffix.lower() not in readers:
        raise InputError(f"{file} is neither .jsonl nor .csv: give such a file, or poisson:RATE")
    rows = readers[file.suffix.lower()](file)
    arrivals = [_arrival(row, f"{file}, line {line}") for line, row in rows]
    if not arrivals:
        raise InputError(f"{file} holds no request: give at least one")
    first = min(arrival.seconds for arrival in arrivals)
    return [_after(first, arrival) for arrival in arrivals]


def _after(start: float, arrival: Arrival) -> Arrival:
    """The same request with its times counted from ``start``."""
    first, last = (None if t is None else t - start for t in (arrival.first_token, arrival.last_token))
    return Arrival(arrival.seconds - start, arrival.prompt, arrival.output, first, last)


def _json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(_text(file).splitlines(), 1):
        if not text.strip():
            continue
        try:
            yield line, json.loads(text)
        except ValueError:
            raise InputError(f"{file}, line {line} is not JSON: give one object a line") from None


def _csv_rows(file: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(_text(file).splitlines())
    for row in reader:
        yield reader.line_num, row


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"there is no file {file}: give one, or poisson:RATE") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is not text in UTF-8") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): give another file") from None


def _arrival(row: Any, where: str) -> Arrival:
    found = _named(row) if isinstance(row, dict) else {}
    missing = [name for name in FIELDS if name not in found]
    if missing:
        raise InputError(f"{where} has no {' and no '.join(missing)}: expected {', '.join(FIELDS)}")
    try:
        seconds = float(found["arrival"])
        prompt, output = (int(str(found[name])) for name in ("prompt", "output"))
    except (TypeError, ValueError):
        prompt = output = 0
        seconds = math.nan
    if not (math.isfinite(seconds) and prompt >= 1 and output >= 1):
        raise InputError(f"{where}: expected arrival in seconds, prompt and output in tokens, 1 at least")
    return Arrival(seconds, prompt, output, *_recorded(found, seconds, where))


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a line by our names for them."""
    found = {}
    for name, theirs in NAMES.items():
        given = next((row[key] for key in theirs if row.get(key) not in (None, "")), None)
        if given is not None:
            found[name] = given
    return found


def _recorded(
    found: Mapping[str, Any], seconds: float, where: str
) -> tuple[float, float] | tuple[None, None]:
    """When the first and the last token came, if the line says so."""
    if not {"first_token", "last_token"} <= found.keys():
        return None, None
    try:
        first, last = float(found["first_token"]), float(found["last_token"])
    except (TypeError, ValueError):
        first = last = math.nan
    if not (math.isfinite(last) and seconds <= first <= last):
        raise InputError(
            f"{where}: expected first_token and last_token in seconds on the clock of arrival, in that order"
        )
    return first, last
