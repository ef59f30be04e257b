"""What becomes of the seconds: medians, ratios round by round, and the committed file."""

from __future__ import annotations

import json
import statistics
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.peers.cases import Row
from benchmarks.peers.turns import Turns
from benchmarks.record import write_result
from ridgeline.hardware.fingerprint import Fingerprint

NAME = "peers"
#: Fields of the fingerprint in which two machines differ.
MACHINE = ("cpu", "cores", "threads", "system")


def summary(row: Row, turns: list[Turns]) -> dict[str, Any]:
    """A row's result.

    Tokens a second are real ones, of all sequences, at the median round. ``speedup`` is how many times as
    long as our run a contestant's took, the median of the rounds' ratios. ``gbytes_per_second`` is how fast
    a generating contestant read its weights, where it tells their size.
    """
    own = next((t for t in turns if t.contestant == row.contestants[0]), None)
    return {
        "name": row.name,
        "title": row.title,
        "date": date.today().isoformat(),
        "rounds": len(turns[0].seconds),
        "contestants": [_contestant(t, own) for t in turns],
    }


def _contestant(turns: Turns, own: Turns | None) -> dict[str, Any]:
    case = turns.contestant.case
    seconds = statistics.median(turns.seconds)
    found = {
        "name": turns.contestant.name,
        "worker": turns.contestant.worker,
        **turns.ready,
        "tokens_per_second": round(case.real_tokens / seconds, 2),
        "seconds": [round(s, 5) for s in turns.seconds],
    }
    if own is not None and turns is not own:
        ratios = [theirs / ours for theirs, ours in zip(turns.seconds, own.seconds)]
        found["speedup"] = round(statistics.median(ratios), 3)
    if case.kind == "generate" and turns.ready["step_bytes"]:
        found["gbytes_per_second"] = round(turns.ready["step_bytes"] * case.tokens / seconds / 1e9, 2)
    return found


def store(rows: list[dict[str, Any]], machine: Fingerprint) -> Path:
    """Write rows beside those of earlier runs on this machine.

    A row takes the place of an older one of its name; rows of another machine are dropped.
    """
    merged = {row["name"]: row for row in (*_stored(machine), *rows)}
    return write_result(NAME, {"rows": list(merged.values())}, machine)


def _stored(machine: Fingerprint) -> list[dict[str, Any]]:
    path = record.RESULTS / f"{NAME}.json"
    if not path.is_file():
        return []
    stored = json.loads(path.read_text())
    same = all(stored["machine"][field] == getattr(machine, field) for field in MACHINE)
    return stored["rows"] if same else []
