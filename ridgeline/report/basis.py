"""What the report's numbers stand on, and the command that checks each."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ridgeline.report.units import nbytes, rate, seconds

if TYPE_CHECKING:
    from ridgeline.analysis.check import Check
    from ridgeline.analysis.explain import Explanation
    from ridgeline.hardware import Device, Level


def explain_command(explanation: Explanation, device: Device) -> str:
    """The command line that predicts this again."""
    load = explanation.workload
    where = "this" if device.kernels else device.name
    words = [explanation.model, "--on", where, "--prompt", load.prompt]
    if explanation.request is not None:
        words += ["--output", load.output]
    words += ["--batch", load.batch, "--weights", explanation.weight_format]
    if explanation.request is not None:
        words += ["--cache", explanation.cache_format]
    words += ["--attention", explanation.attention, "--pairs", explanation.pairs]
    return shlex.join(["ridgeline", "explain", *map(str, words)])


def check_command(explanation: Explanation) -> str:
    """The command line that runs the explained phases and holds the prediction against them."""
    words = [explanation.model, "--prompt", explanation.workload.prompt]
    for phase in explanation.phases:
        if phase.name == "decode":
            words += ["--context", phase.context]
    return shlex.join(["ridgeline", "check", *map(str, words)])


def device_rows(device: Device, dtype: str) -> Iterator[tuple[str, str, str]]:
    """Rows of: a figure of the device, its value, and what it stands on."""
    figures = [
        ("matrix products", "matrix", f"{rate(device.matrix_rate(dtype), 'FLOP')} for {dtype}"),
        ("vector operations", "vector", f"{rate(device.vector_rate(dtype), 'FLOP')} for {dtype}"),
        ("exponentials", "exp", rate(device.exp_rate, "")),
        *((level.name, "levels", _level(level)) for level in device.levels[:-1]),
        (device.levels[-1].name, "memory", _level(device.levels[-1])),
        ("launch of a kernel", "launch", seconds(device.launch_seconds)),
        ("kernel times", "kernels", "on fixed shapes"),
    ]
    for figure, section, value in figures:
        if section in device.provenance:
            yield figure, value, str(device.provenance[section])


def _level(level: Level) -> str:
    return f"{nbytes(level.capacity)} at {rate(level.bandwidth, 'B')}"


def report_rows(explanation: Explanation, check: Check | None) -> Iterator[tuple[str, str, str]]:
    """Rows of: a kind of number in the report, what it stands on, and the command that checks it."""
    yield "FLOPs, bytes, memory", "counted from the model's definition", "ridgeline validate"
    kinds = " and ".join(dict.fromkeys(map(str, explanation.basis.values())))
    yield "predicted times", f"the count, and {kinds} figures of the machine", check_command(explanation)
    if check is not None:
        yield "measured times", f"runs on {check.device}", check_command(explanation)
