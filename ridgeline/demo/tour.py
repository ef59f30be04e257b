"""``ridgeline demo``: measure, generate, explain, check, report, on the model that ships."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ridgeline.analysis.check import Check, check
from ridgeline.analysis.explain import Explanation, explain
from ridgeline.hardware import save_device, this_machine_file
from ridgeline.hardware.measure import Measurement, measure
from ridgeline.loading import load
from ridgeline.report import write_report
from ridgeline.report.tables import progress, show_check, show_explanation, show_measurement, show_stream

PROMPT = 'def read_lines(path):\n    """Return the lines of a text file."""\n'
#: The workload that is explained and checked: it fits the demo model's window of 1,024 tokens.
PROMPT_TOKENS, NEW_TOKENS = 512, 128


@dataclass(frozen=True)
class Tour:
    """What the tour found, in its order."""

    measurement: Measurement
    text: str
    explanation: Explanation
    check: Check
    report: Path
    seconds: float


def tour(console: Console, report: Path) -> Tour:
    """Shows each step on ``console`` and writes the page to ``report``."""
    begin = time.perf_counter()
    _heading(console, 1, "What this machine can do")
    with progress(console) as doing:
        measurement = measure(progress=doing)
    device = measurement.device
    save_device(device, this_machine_file())
    show_measurement(console, measurement, this_machine_file())

    _heading(console, 2, "The demo model writes Python, greedily")
    loaded = load("demo")
    text = show_stream(
        console, loaded, PROMPT, max_tokens=NEW_TOKENS, sampling=loaded.sampling(temperature=0)
    ).text

    _heading(console, 3, "Where its time should go, predicted from step 1 alone")
    explanation = explain("demo", device, prompt=PROMPT_TOKENS, output=NEW_TOKENS)
    show_explanation(console, explanation)

    _heading(console, 4, "Prediction held against measurement")
    with progress(console) as doing:
        contexts = (PROMPT_TOKENS + 1,)  # the first step after the prompt, which step 3 predicts
        found = check(loaded, on=device, prompt=PROMPT_TOKENS, contexts=contexts, progress=doing)
    show_check(console, found)

    _heading(console, 5, "The same as a page")
    write_report(report, explanation, device, found, PROMPT + text)
    console.print(f"Wrote {report.resolve()}; open it in a browser.")
    console.print("Next: ridgeline explain llama-3-8b --on h100, or ridgeline --help")
    return Tour(measurement, text, explanation, found, report, time.perf_counter() - begin)


def _heading(console: Console, number: int, title: str) -> None:
    console.print()
    console.rule(f"[bold]{number}/5  {title}[/bold]", align="left")
