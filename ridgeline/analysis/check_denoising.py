"""``ridgeline check`` of a diffusion Transformer: a denoising step, predicted first and then run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ridgeline.analysis.check import Check, PhaseCheck, note_on, time_step
from ridgeline.analysis.denoising import STEP, pixels, predict_denoising, require_diffusion, text_tokens
from ridgeline.analysis.here import measured_device
from ridgeline.analysis.memory_now import MemoryNow
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models.denoising import grid_of
from ridgeline.predict import Prediction

if TYPE_CHECKING:
    from ridgeline.loading import Loaded


def check_denoising(
    loaded: Loaded,
    *,
    on: str | Device = "this",
    image: str | int | None = None,
    frames: int | None = None,
    text: int | None = None,
    batch: int = 1,
    as_measured: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Check:
    """Predict a denoising step over ``batch`` images of noise, then run it.

    ``loaded`` is what :func:`ridgeline.load` returned; the other options are those of
    :func:`~ridgeline.analysis.denoising.explain_denoising`, without guidance: an image that is guided is two.
    ``as_measured`` is that of :func:`~ridgeline.analysis.check.check`.

    Raises InputError as that does, if ``on`` is a datasheet, and if this machine has not been measured, or
    not with weights in the format that they are loaded in.
    """
    model, ops, config = loaded.model, loaded.ops, loaded.model.config
    require_diffusion(config)
    device = measured_device(on, loaded)
    if batch < 1:
        raise InputError(f"batch must be at least 1, not {batch}")
    grid, text = grid_of(config, *pixels(image), frames), text_tokens(config, text)

    def predict(device: Device) -> Prediction:
        return predict_denoising(model, device, grid, batch, text)

    rows = grid.tokens * batch
    if progress is not None:
        progress(f"running {STEP} of {rows} patches", 0.0)

    from ridgeline.ops.torch_denoising import random_denoising

    given = random_denoising(config, grid, batch, text, ops.dtype)
    if loaded.on_gpu:  # once: a pipeline's latents lie there
        from ridgeline.ops.gpu_batch import denoising_on

        given = denoising_on(given, ops.device)
    profile = partial(ops.profile_denoising, model, given)
    context = model.context(grid, text)

    def run() -> None:
        ops.denoise(model, given)
        ops.synchronise()

    def time(prediction: Prediction) -> PhaseCheck:
        return time_step(STEP, rows, context, prediction, run, profile)

    phase = MemoryNow(device, as_measured=as_measured).timed(predict, time)
    return Check(config.name, device.name, device.date, (phase,), note_on(loaded))
