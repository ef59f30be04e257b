"""``ridgeline demo``: measure, generate, explain, check, report, on the model that ships."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ridgeline.analysis.check import Check, check
from ridgeline.analysis.explain import explain
from ridgeline.analysis.explanation import Explanation
from ridgeline.hardware import gpu_file, save_device, this_machine_file
from ridgeline.hardware.gpu.plan import GpuPlan
from ridgeline.hardware.measure import Measurement, Plan, measure
from ridgeline.loading import load
from ridgeline.outputs import refuse_unwritable
from ridgeline.report import write_report
from ridgeline.report.gpu import show_gpu_measurement
from ridgeline.report.studies import study
from ridgeline.report.tables import progress, show_check, show_explanation, show_measurement, show_stream

#: It ends with a word: a line break and the indentation after it are one token, which a prompt would cut.
PROMPT = '''\
class Stack:
    """A last-in, first-out container."""

    def __init__(self, items=()):
        self._items = list(items)

    def push(self, item):
        self._items.append(item)

    def'''
#: Greedy text of so small a model runs into loops. The folder's own top-p applies beside these.
TEMPERATURE, SEED = 0.7, 0
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


def tour(console: Console, report: Path, *, plan: Plan | GpuPlan | None = None, device: str = "cpu") -> Tour:
    """Shows each step on ``console`` and writes the page to ``report``; ``plan`` is what is measured of
    ``device``, cpu or cuda, which all of it runs on.

    Raises InputError, before anything is measured, if ``report`` or this machine's hardware file
    cannot be written.
    """
    begin = time.perf_counter()
    for path in (report, this_machine_file()):
        refuse_unwritable(path)
    _heading(
        console,
        1,
        "What this machine can do",
        "Measured on fixed shapes that know nothing of any model; all predictions below rest on these alone.",
    )
    with progress(console) as doing:
        measurement = measure(progress=doing, plan=plan, device=device)
    machine = measurement.device
    _keep(console, measurement)

    _heading(
        console,
        2,
        f"The demo model writes Python, at temperature {TEMPERATURE} and seed {SEED}",
        "It is small enough to ship and to train on a laptop: expect the shape of Python, not its sense.",
    )
    loaded = load("demo", device=device)
    sampling = loaded.sampling(temperature=TEMPERATURE, seed=SEED)
    text = show_stream(console, loaded.generator(), PROMPT, max_tokens=NEW_TOKENS, sampling=sampling).text

    _heading(
        console,
        3,
        "Where its time should go, predicted from step 1 alone",
        f"A prompt of {PROMPT_TOKENS} tokens is read (prefill), then tokens come one by one (decode).",
    )
    explanation = explain("demo", machine, prompt=PROMPT_TOKENS, output=NEW_TOKENS)
    show_explanation(console, explanation)

    _heading(
        console,
        4,
        "Prediction held against measurement",
        "The same two steps, run and timed. Below zero the prediction was too fast, above zero too slow.",
    )
    with progress(console) as doing:
        contexts = (PROMPT_TOKENS + 1,)  # the first step after the prompt, which step 3 predicts
        found = check(loaded, on=machine, prompt=PROMPT_TOKENS, contexts=contexts, progress=doing)
    show_check(console, found)

    _heading(
        console,
        5,
        "The same as a page",
        "Charts of every operator, to keep or to send; one file, no network.",
    )
    studies = study(explanation, loaded.config, machine)
    write_report(report, explanation, machine, found, PROMPT + text, studies)
    console.print(f"Wrote {report.resolve()}; open it in a browser.")
    console.print("Next: ridgeline explain llama-3-8b --on h100, or ridgeline --help")
    return Tour(measurement, text, explanation, found, report, time.perf_counter() - begin)


def _keep(console: Console, measurement: Measurement) -> None:
    """Stores the hardware file where it is looked for, and shows it."""
    facts = getattr(measurement, "facts", None)
    path = this_machine_file() if facts is None else gpu_file(facts.name)
    save_device(measurement.device, path)
    if facts is None:
        show_measurement(console, measurement, path)
    else:
        show_gpu_measurement(console, measurement, path, None)


def _heading(console: Console, number: int, title: str, meaning: str) -> None:
    """The step's title, and in one sentence what its figures mean."""
    console.print()
    console.rule(f"[bold]{number}/5  {title}[/bold]", align="left")
    console.print(f"[dim]{meaning}[/dim]", highlight=False)
