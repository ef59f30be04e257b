"""What the report's numbers stand on, and the command that checks each."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ridgeline.analysis.denoising import DenoisingExplanation
from ridgeline.analysis.explain import Attention
from ridgeline.loading import FORMATS
from ridgeline.models import builtin_names, load_config
from ridgeline.ops.formats import get_format
from ridgeline.predict.tiers import tier_of
from ridgeline.report.images import check_denoising_command, explain_denoising_command
from ridgeline.report.units import nbytes, rate, seconds

if TYPE_CHECKING:
    from ridgeline.analysis.check import Check
    from ridgeline.analysis.explanation import Explanation
    from ridgeline.hardware import Device, Level


def explain_command(explanation: Explanation | DenoisingExplanation, device: Device) -> str:
    """The command line that predicts this again."""
    if isinstance(explanation, DenoisingExplanation):
        return explain_denoising_command(explanation, device)
    load = explanation.workload
    where = "this" if device.kernels else device.name
    words = [explanation.model, "--on", where, "--prompt", load.prompt]
    if explanation.request is not None:
        words += ["--output", load.output]
    words += ["--batch", load.batch, "--weights", explanation.weight_format]
    if explanation.request is not None:
        words += ["--cache", explanation.cache_format]
    words += ["--attention", explanation.attention, "--pairs", explanation.pairs]
    if explanation.tier != tier_of(device):
        words += ["--tier", explanation.tier]
    if explanation.mla is not None:
        words += ["--mla", explanation.mla]
    return shlex.join(["ridgeline", "explain", *map(str, words)])


def check_command(explanation: Explanation) -> str | None:
    """The command line that runs the explained phases and holds the prediction against them; None
    where `check` cannot: it takes a measured machine, one request, and formats that execute."""
    as_run = explanation.attention == Attention.FUSED and explanation.workload.batch == 1
    runnable = explanation.weight_format in FORMATS and explanation.cache_format == _own_cache(explanation)
    if "kernels" not in explanation.basis or not (as_run and runnable):
        return None
    weights = _weights(explanation)
    words = [explanation.model, "--weights", weights, "--prompt", explanation.workload.prompt]
    for phase in explanation.phases:
        if phase.name == "decode":
            words += ["--context", phase.context]
    return shlex.join(["ridgeline", "check", *map(str, words)])


def _own_cache(explanation: Explanation) -> str:
    """The format of the cache when the model is run in the explained format."""
    format = explanation.weight_format
    return load_config(explanation.model).format if get_format(format).is_quantised else format


def _weights(explanation: Explanation) -> str:
    """What `--weights` loads the model in the explained format."""
    format = explanation.weight_format
    if explanation.model not in builtin_names():
        return format
    return "random" if format == load_config(explanation.model).format else f"random:{format}"


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
        ("constants of time models", "calibration", ", ".join(device.calibration)),
    ]
    for figure, section, value in figures:
        if section in device.provenance:
            yield figure, value, str(device.provenance[section])


def _level(level: Level) -> str:
    return f"{nbytes(level.capacity)} at {rate(level.bandwidth, 'B')}"


def report_rows(
    explanation: Explanation | DenoisingExplanation, check: Check | None
) -> Iterator[tuple[str, str, str]]:
    """Rows of: a kind of number in the report, what it stands on, and the command that checks it."""
    yield "FLOPs, bytes, memory", "counted from the model's definition", "ridgeline validate"
    if isinstance(explanation, DenoisingExplanation):
        checked = check_denoising_command(explanation) or ""
    else:
        checked = check_command(explanation) or ""
    kinds = " and ".join(dict.fromkeys(map(str, explanation.basis.values())))
    yield "predicted times", f"the count, and {kinds} figures of the machine", checked
    if check is not None:
        yield "measured times", f"runs on {check.device}", checked
