"""How the harness and a worker talk: a line of JSON each way.

The worker is given a :class:`Task` and answers with what it has ready. Then every empty line is answered with
``{"seconds": ...}`` of one run. Instead of either it may answer ``{"error": ...}`` and end. It ends with its
input. Nothing here needs more than Python: each worker runs in its peer's own interpreter.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import Case


class Unable(Exception):
    """The peer cannot do this case; the message says why, and what to do about it."""


@dataclass(frozen=True)
class Task:
    """A case, how many threads compute it, and the folder where model files are kept."""

    case: Case
    threads: int
    folder: Path

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "folder": str(self.folder)})

    @classmethod
    def from_json(cls, line: str) -> Task:
        raw = json.loads(line)
        return cls(Case(**raw["case"]), raw["threads"], Path(raw["folder"]))


@dataclass(frozen=True)
class Ready:
    """A loaded model. ``run`` does the case once and returns its seconds; ``weights`` is the format of the
    weights in the peer's own words; ``step_bytes`` are the bytes of weights that a generated token reads,
    where the peer tells; ``versions`` are those of the software."""

    run: Callable[[], float]
    weights: str
    versions: dict[str, str] = field(default_factory=dict)
    step_bytes: int | None = None

    def described(self) -> dict[str, Any]:
        return {"weights": self.weights, "versions": self.versions, "step_bytes": self.step_bytes}


def serve(prepare: Callable[[Task], Ready]) -> None:
    """A worker's main loop: prepare the task, then run it as often as it is asked to.

    Whatever libraries print goes to stderr, so that stdout holds answers only.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        ready = prepare(Task.from_json(sys.stdin.readline()))
        answer(ready.described())
        for _ in sys.stdin:
            answer({"seconds": ready.run()})
    except Exception as error:
        answer({"error": str(error) if isinstance(error, Unable) else f"{type(error).__name__}: {error}"})
        raise
