"""What a report shows beside one workload: each study is a tab of its own, or a part of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ridgeline.analysis.capacity import Capacity
    from ridgeline.analysis.explain import Explanation
    from ridgeline.analysis.sweep import Sweep
    from ridgeline.hardware import Device
    from ridgeline.models import ModelConfig


@dataclass(frozen=True)
class Studies:
    """Those that are there are shown."""

    sweep: Sweep | None = None
    capacity: Capacity | None = None


def study(explanation: Explanation, config: ModelConfig, device: Device) -> Studies:
    """Everything that can be studied of ``config`` on ``device`` around the workload of ``explanation``."""
    from ridgeline.analysis.capacity import capacity
    from ridgeline.analysis.sweep import sweep

    own = explanation.weight_format
    formats = tuple(dict.fromkeys((own, config.format, "int8", "int4-g128")))
    swept = sweep(config, device, formats)
    held = None
    if config.is_decoder:
        runnable = [f.weights for f in swept.formats]
        held = capacity(config, device, weights=runnable, batch=explanation.workload.batch)
    return Studies(swept, held)
