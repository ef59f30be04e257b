"""How good the predictions are on this machine: measure and check in pairs, the median error.

Run as ``python -m benchmarks.check``. Each pair measures the machine first, then predicts and runs
the demo model and other shapes with random weights, each command in a
process of its own, as a user runs them: a process that has freed a model before gets its memory in
smaller pages, and reads weights a third slower.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from typing import Any

from benchmarks.record import write_result

PAIRS = 3
#: The rates of memory that go with a phase: of the measured file, and around the phase.
RATES = ("measured", "before", "after")
#: Model, weights, and what is asked of them.
CASES = (
    ("demo", "auto", "--prompt 512 --context 512 --context 1024"),
    ("tinyllama-1.1b", "random:bf16", "--prompt 512 --context 512 --context 2048"),
    ("tinyllama-1.1b", "random:int4-g32", "--prompt 512 --context 512 --context 2048"),
    ("opt-1.3b", "random:bf16", "--prompt 256 --context 256"),
    ("bert-base", "random:bf16", "--prompt 128"),
    ("dit-s-2", "random:bf16", "--batch 2"),
)


def run() -> dict[str, object]:
    """Every pair's phases and the median of their signed errors' sizes."""
    phases: dict[tuple[str, str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for number in range(PAIRS):
        with tempfile.TemporaryDirectory() as cache:
            _ridgeline(cache, "measure")
            for model, weights, asked in CASES:
                found = _ridgeline(cache, "check", model, "--weights", weights, *asked.split())
                for phase in found["phases"]:
                    phases[model, weights, phase["name"], phase["context"]].append(phase)
                    _show(number, f"{model} {weights}", phase)
    return {"pairs": PAIRS, "phases": [_row(*key, found) for key, found in phases.items()]}


def _ridgeline(cache: str, *arguments: str) -> dict[str, Any]:
    """The JSON of a command, whose hardware file lies in the folder ``cache``."""
    command = [sys.executable, "-m", "ridgeline.cli", *arguments, "--json"]
    environment = {**os.environ, "RIDGELINE_CACHE": cache}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def _row(model: str, weights: str, name: str, context: int, phases: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": model,
        "weights": weights.removeprefix("random:"),
        "phase": name,
        "context": context,
        "predicted_ms": [round(p["predicted"] * 1e3, 3) for p in phases],
        "measured_ms": [round(p["measured"] * 1e3, 3) for p in phases],
        "error": [round(p["error"], 4) for p in phases],
        "median_absolute_error": round(statistics.median(abs(p["error"]) for p in phases), 4),
        "operator_mape": [round(p["operator_mape"], 4) for p in phases],
        "median_operator": [round(p["median_operator"], 4) for p in phases],
        "memory_gbs": [[round(p["memory"][when] / 1e9, 1) for when in RATES] for p in phases],
        "memory_moved": [p["memory"]["moved"] for p in phases],
    }


def _show(number: int, model: str, phase: dict[str, Any]) -> None:
    rates = (f"{phase['memory'][when] / 1e9:.0f}" for when in RATES)
    print(
        f"pair {number + 1}: {model:30} {phase['name']:8} context {phase['context']:5} "
        f"predicted {phase['predicted'] * 1e3:9.3f} ms measured {phase['measured'] * 1e3:9.3f} ms "
        f"error {phase['error']:+7.1%} median operator {phase['median_operator']:6.1%} memory "
        f"{', '.join(rates)} GB/s",
        flush=True,
    )


if __name__ == "__main__":
    result = run()
    print(f"wrote {write_result('check_cpu', result)}")
