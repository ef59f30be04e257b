"""What a diffusion Transformer is asked for, in words and as commands."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ridgeline.loading import FORMATS
from ridgeline.models import builtin_names, load_config
from ridgeline.predict.tiers import tier_of

if TYPE_CHECKING:
    from ridgeline.analysis.denoising import DenoisingExplanation, ImageWorkload
    from ridgeline.hardware import Device


def images(load: ImageWorkload) -> str:
    """What is denoised, in words."""
    size = f"{load.width} x {load.height} pixels"
    what = f"{load.batch} x {load.frames} frames of {size}" if load.frames > 1 else f"{load.batch} x {size}"
    guided = ", guided (each twice)" if load.guidance else ""
    return f"{what}{f', {load.text} text tokens' if load.text else ''}{guided}"


def explain_denoising_command(found: DenoisingExplanation, device: Device) -> str:
    """The command line that predicts this again."""
    load = found.workload
    where = "this" if device.kernels else device.name
    words = [found.model, "--on", where, "--image", f"{load.width}x{load.height}"]
    if load.frames > 1:
        words += ["--frames", load.frames]
    if load.text:
        words += ["--text", load.text]
    words += ["--steps", load.steps, "--guidance" if load.guidance else "--no-guidance"]
    words += ["--batch", load.batch, "--weights", found.weight_format, "--attention", found.attention]
    if found.tier != tier_of(device):
        words += ["--tier", found.tier]
    return shlex.join(["ridgeline", "explain", *map(str, words)])


def check_denoising_command(found: DenoisingExplanation) -> str | None:
    """The command line that runs the step and holds the prediction against it; None where `check` cannot."""
    if "kernels" not in found.basis or found.attention != "fused" or found.weight_format not in FORMATS:
        return None
    load, weights = found.workload, found.weight_format
    if found.model in builtin_names():
        weights = "random" if weights == load_config(found.model).format else f"random:{weights}"
    words = [found.model, "--weights", weights, "--image", f"{load.width}x{load.height}"]
    if load.frames > 1:
        words += ["--frames", load.frames]
    if load.text:
        words += ["--text", load.text]
    return shlex.join(["ridgeline", "check", *map(str, words), "--batch", str(load.sequences)])
