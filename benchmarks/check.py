"""How good the predictions are on this machine: measure and check in pairs, the median error.

Run as ``python -m benchmarks.check``. Each pair measures the machine first, then predicts and runs
the demo model and TinyLlama-1.1B's shape with random bf16 weights.
"""

from __future__ import annotations

import statistics
from collections import defaultdict

from benchmarks.record import write_result
from ridgeline.analysis.check import Check, check
from ridgeline.hardware.measure import measure
from ridgeline.loading import Loaded, load

PAIRS = 3
#: Model, weights, prompt, and contexts of the decode steps.
CASES = (
    ("demo", "auto", 512, (512, 1023)),
    ("tinyllama-1.1b", "random", 512, (512, 2047)),
)


def run() -> dict[str, object]:
    """Every pair's phases and the median of their signed errors' sizes."""
    loaded = [(load(name, weights=weights), prompt, contexts) for name, weights, prompt, contexts in CASES]
    pairs = [_pair(loaded, i) for i in range(PAIRS)]
    errors = defaultdict(list)
    for pair in pairs:
        for found in pair:
            for phase in found.phases:
                errors[found.model, phase.name, phase.context].append(phase)
    rows = []
    for (model, name, context), phases in errors.items():
        rows.append(
            {
                "model": model,
                "phase": name,
                "context": context,
                "predicted_ms": [round(p.predicted * 1e3, 3) for p in phases],
                "measured_ms": [round(p.measured * 1e3, 3) for p in phases],
                "error": [round(p.error, 4) for p in phases],
                "median_absolute_error": round(statistics.median(abs(p.error) for p in phases), 4),
                "operator_mape": [round(p.operator_mape, 4) for p in phases],
            }
        )
    return {"pairs": PAIRS, "phases": rows}


def _pair(loaded: list[tuple[Loaded, int, tuple[int, ...]]], number: int) -> list[Check]:
    device = measure().device
    found = []
    for model, prompt, contexts in loaded:
        found.append(check(model, on=device, prompt=prompt, contexts=contexts))
        for phase in found[-1].phases:
            print(
                f"pair {number + 1}: {found[-1].model:16} {phase.name:8} context {phase.context:5} "
                f"predicted {phase.predicted * 1e3:9.3f} ms measured {phase.measured * 1e3:9.3f} ms "
                f"error {phase.error:+7.1%}",
                flush=True,
            )
    return found


if __name__ == "__main__":
    result = run()
    print(f"wrote {write_result('check_cpu', result)}")
