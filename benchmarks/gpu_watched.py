"""``benchmarks.gpu`` where a GPU is there for minutes: a kernel that hangs or crashes costs its part only.

    python -m benchmarks.gpu_watched --folder OUT --seconds 560

Compiles first (``benchmarks.gpu_warm``), then runs the parts in a process that is watched. After an error
that ruins a CUDA context (an illegal address, say), or a part that ends neither by itself nor by its alarm,
the parts behind it run in a new process. Every process writes its figures as it finds them, to
OUT/gpu-N.json; OUT/gpu.json has all of them together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import BUDGETS, PARTS
from benchmarks.gpu_results import Results, show
from benchmarks.gpu_warm import warm

#: Seconds that a part may take beyond its budget; those of a process until its first part.
GRACE, START = 15.0, 60.0
#: What PyTorch and Triton say when a context can't be used any more.
RUINED = ("cuda error", "illegal memory", "misaligned", "device-side assert", "unspecified launch failure")


@dataclass(frozen=True)
class Ran:
    """How a process ended: the parts that are ``done``, and the one to pass over, if any."""

    done: tuple[str, ...]
    broken: str | None


def watch(
    process: subprocess.Popen,
    path: Path,
    parts: Sequence[str],
    limit: float,
    clock: Callable[[], float] = time.monotonic,
    pause: float = 0.5,
) -> Ran:
    """Waits until the process ends, or a part takes too long, or ``limit`` on the clock; then it is ended."""
    allowed, since, done = START, clock(), 0
    while process.poll() is None:
        time.sleep(pause)
        finished = len(_seconds(path))
        if finished > done:
            done, since, allowed = finished, clock(), 0.0
        budget = BUDGETS[parts[done]] if done < len(parts) else 0
        if clock() - since > allowed + budget + GRACE or clock() > limit:
            process.kill()
            process.wait()
    names = tuple(_seconds(path))
    ruined = next((name for name in names if _is_ruined(path, name)), None)
    if ruined is not None:
        return Ran(names[: names.index(ruined)], ruined)
    return Ran(names, next((part for part in parts if part not in names), None))


def run(
    parts: Sequence[str], folder: Path, seconds: float, module: str = "benchmarks.gpu"
) -> list[tuple[Path, Ran]]:
    """The files that the processes wrote, and how each ended."""
    limit, rest, found = time.monotonic() + seconds, list(parts), []
    while rest and time.monotonic() < limit:
        path = folder / f"gpu-{len(found)}.json"
        path.unlink(missing_ok=True)
        command = [sys.executable, "-m", module, "--only", ",".join(rest), "--output", str(path)]
        ran = watch(subprocess.Popen(command), path, rest, limit)
        found.append((path, ran))
        if ran.broken is None:
            break
        print(f"benchmarks.gpu_watched: {ran.broken} ended its process", file=sys.stderr, flush=True)
        rest = rest[rest.index(ran.broken) + 1 :]
    return found


def together(found: Sequence[tuple[Path, Ran]]) -> Results | None:
    """What all files have. What a ruined process says of the parts behind is left out."""
    every: Results | None = None
    for path, ran in found:
        if not path.exists():
            continue
        one = Results.read(path)
        kept = {*ran.done, *([] if ran.broken is None else [ran.broken])}
        one.seconds = {part: s for part, s in one.seconds.items() if part in kept}
        one.stopped = {name: why for name, why in one.stopped.items() if name.split()[0] in kept}
        if ran.broken is not None:
            one.stopped.setdefault(ran.broken, "ended its process")
        if every is None:
            every = one
            continue
        every.rows += one.rows
        every.bandwidth = every.bandwidth or one.bandwidth
        for name in ("stopped", "seconds", "checked", "measured"):
            getattr(every, name).update(getattr(one, name))
    return every


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="For the files.")
    parser.add_argument("--seconds", type=float, default=560, help="All of it, compiling included.")
    parser.add_argument("--only", default=",".join(PARTS), help="Parts of benchmarks.gpu.")
    parser.add_argument("--warm", type=float, default=75, help="Seconds for compiling at most; 0 for none.")
    options = parser.parse_args(argv)
    begin, parts = time.monotonic(), options.only.split(",")
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.warm:
        warm(parts, max(1, (os.cpu_count() or 2) - 2), options.warm)
    every = together(run(parts, options.folder, options.seconds - (time.monotonic() - begin)))
    if every is None:
        print("benchmarks.gpu_watched: no part came to its first figure", file=sys.stderr)
        return 1
    every.path = options.folder / "gpu.json"
    every.save()
    show(every)
    return 0 if all(row.is_right for row in every.rows) and not every.stopped else 1


def _seconds(path: Path) -> dict[str, float]:
    """The parts that ended, in their order."""
    return json.loads(path.read_text())["seconds"] if path.exists() else {}


def _is_ruined(path: Path, part: str) -> bool:
    stopped = json.loads(path.read_text())["stopped"]
    said = [why for name, why in stopped.items() if name.split()[0] == part]
    return any(sign in why.lower() for why in said for sign in RUINED)


if __name__ == "__main__":
    sys.exit(main())
