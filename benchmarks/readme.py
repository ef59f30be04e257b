"""Writes the README's figures from the committed results: ``python -m benchmarks.readme``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

README = Path(__file__).parent.parent / "README.md"


def check_table(result: dict[str, Any]) -> str:
    """Prediction against measurement, a line a phase; the times are those of the median pair."""
    machine = result["machine"]
    lines = [
        "| model | step | context | predicted | measured | median error |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for p in result["phases"]:
        middle = _median_pair(p)
        predicted, measured = p["predicted_ms"][middle], p["measured_ms"][middle]
        error = f"{p['median_absolute_error']:.1%}"
        step = f"| {p['model']} | {p['phase']} | {p['context']:,} "
        lines.append(f"{step}| {predicted:,.2f} ms | {measured:,.2f} ms | {error} |")
    lines += [
        "",
        f"Measured {machine['date']} on {machine['cpu']}, {machine['threads']} threads, PyTorch "
        f"{machine['torch']}; {result['pairs']} pairs of measure and check.",
    ]
    return "\n".join(lines)


def filled(readme: str) -> str:
    """The README with every marked block written anew."""
    result = json.loads((RESULTS / "check_cpu.json").read_text())
    block = f"<!-- figures: check_cpu -->\n{check_table(result)}\n<!-- end -->"
    return re.sub(r"<!-- figures: check_cpu -->.*?<!-- end -->", lambda _: block, readme, flags=re.DOTALL)


def _median_pair(phase: dict[str, Any]) -> int:
    errors = [abs(e) for e in phase["error"]]
    return errors.index(sorted(errors)[len(errors) // 2])


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
