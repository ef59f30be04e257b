"""What the report's numbers stand on, and the command that checks each."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ridgeline.report.units import nbytes, rate, seconds

if TYPE_CHECKING:
    from ridgeline.analysis.check import Check
    from ridgeline.analysis.explain import Explanation
    from ridgeline.hardware import Device


def explain_command(explanation: Explanation, device: Device) -> str:
    """The command line that predicts this again."""
    load = explanation.workload
    options = f"--prompt {load.prompt} --output {load.output} --batch {load.batch}"
    where = "this" if device.kernels else shlex.quote(device.name)
    return f"ridgeline explain {shlex.quote(explanation.model)} --on {where} {options}"


def check_command(explanation: Explanation) -> str:
    """The command line that runs the explained phases and holds the prediction against them."""
    contexts = "".join(f" --context {p.context}" for p in explanation.phases if p.name == "decode")
    prompt = explanation.workload.prompt
    return f"ridgeline check {shlex.quote(explanation.model)} --prompt {prompt}{contexts}"


def basis_rows(
    explanation: Explanation, device: Device, dtype: str, check: Check | None
) -> Iterator[tuple[str, str, str, str]]:
    """Rows of: figure, its value, what it stands on, and the command that checks it."""
    values = _values(device, dtype)
    for figure, (section, value) in values.items():
        if section in device.provenance:
            yield figure, value, str(device.provenance[section]), "ridgeline measure"
    yield "FLOPs, bytes, memory", "by operator", "counted", "ridgeline validate"
    stands = ", ".join(dict.fromkeys(explanation.basis.values()))
    yield "predicted times", "by operator", stands, check_command(explanation)
    if check is not None:
        measured = f"{len(check.phases)} steps, run on {check.device}"
        yield "measured times", measured, "measured", check_command(explanation)


def _values(device: Device, dtype: str) -> dict[str, tuple[str, str]]:
    """By name, the section of the device's file that a figure is from, and its value."""
    values = {
        "matrix products": ("matrix", f"{rate(device.matrix_rate(dtype), 'FLOP')} for {dtype}"),
        "vector operations": ("vector", f"{rate(device.vector_rate(dtype), 'FLOP')} for {dtype}"),
        "exponentials": ("exp", rate(device.exp_rate, "")),
        "launch of a kernel": ("launch", seconds(device.launch_seconds)),
        "times of its kernels": ("kernels", "on fixed shapes"),
    }
    for level in device.levels:
        section = "memory" if level is device.levels[-1] else "levels"
        values[level.name] = (section, f"{nbytes(level.capacity)} at {rate(level.bandwidth, 'B')}")
    return values
