"""What a report shows beside one workload: each study is a tab of its own, or a part of one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ridgeline.errors import InputError

if TYPE_CHECKING:
    from ridgeline.analysis.capacity import Capacity
    from ridgeline.analysis.dataflows import Comparison
    from ridgeline.analysis.denoising import DenoisingExplanation
    from ridgeline.analysis.explanation import Explanation
    from ridgeline.analysis.parallel import BestLayout
    from ridgeline.analysis.sweep import Sweep
    from ridgeline.analysis.training import Training
    from ridgeline.hardware import Device
    from ridgeline.models import ModelConfig
    from ridgeline.models.diffusion import DiffusionConfig


#: Numbers of devices that layouts are sought for.
DEVICES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Studies:
    """Those that are there are shown."""

    sweep: Sweep | None = None
    capacity: Capacity | None = None
    dataflows: Comparison | None = None
    training: Training | None = None
    layouts: tuple[BestLayout, ...] = ()


def study(explanation: Explanation, config: ModelConfig, device: Device) -> Studies:
    """Everything that can be studied of ``config`` on ``device`` around the workload of ``explanation``."""
    from ridgeline.analysis.capacity import capacity
    from ridgeline.analysis.sweep import sweep

    own = explanation.weight_format
    formats = tuple(dict.fromkeys((own, config.format, "int8", "int4-g128")))
    swept = sweep(config, device, formats)
    runnable = [f.weights for f in swept.formats]
    held = capacity(config, device, weights=runnable, batch=explanation.workload.batch)
    layouts = tuple(_layouts(explanation, config, device))
    return Studies(swept, held, *_where_there_are(explanation, config, device), layouts)


def study_denoising(explanation: DenoisingExplanation, config: DiffusionConfig, device: Device) -> Studies:
    """What can be studied of a diffusion Transformer: its attention's dataflows, and a training step."""
    from ridgeline.analysis.training import training

    compared = trained = None
    with suppress(InputError):
        compared = denoising_dataflows(explanation, config, device)
    with suppress(InputError):
        trained = training(config, device, batch=explanation.workload.batch)
    return Studies(dataflows=compared, training=trained)


def denoising_dataflows(
    explanation: DenoisingExplanation, config: DiffusionConfig, device: Device
) -> Comparison:
    """Those of its attention over all of an image's tokens, and its text's where they attend together."""
    from ridgeline.analysis.dataflows import compare_dataflows, shape_of

    load = explanation.workload
    shape = shape_of(config, prompt=explanation.phases[0].context, batch=load.sequences)
    return compare_dataflows(shape, device, model=config)


def _layouts(explanation: Explanation, config: ModelConfig, device: Device) -> list[BestLayout]:
    """The layout of most tokens a second for each number of devices that are made to be linked."""
    if device.node_devices is None and device.link_bandwidth is None:
        return []
    from ridgeline.analysis.parallel import best_layouts
    from ridgeline.hardware.cluster import Cluster

    load = explanation.workload
    with suppress(InputError):
        return best_layouts(
            config,
            Cluster(device, max(DEVICES)),
            DEVICES,
            goal="throughput",
            prompt=load.prompt,
            output=max(load.output, 1),
            weights=explanation.weight_format,
            cache=explanation.cache_format,
        )
    return []


def _where_there_are(
    explanation: Explanation, config: ModelConfig, device: Device
) -> tuple[Comparison | None, Training | None]:
    """The dataflows of attention, of a device that names its on-chip memory, and a training step, of a
    model whose backward pass is counted."""
    from ridgeline.analysis.dataflows import compare_dataflows, shape_of
    from ridgeline.analysis.training import training

    load = explanation.workload
    compared = trained = None
    with suppress(InputError):
        shape = shape_of(config, prompt=load.prompt, batch=load.batch)
        compared = compare_dataflows(shape, device, model=config)
    with suppress(InputError):
        trained = training(config, device, batch=load.batch, length=load.prompt)
    return compared, trained
