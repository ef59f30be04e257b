"""Measured times of real accelerators: facts by others, reduced, that predictions are held against.

``attention_rtx-4090*.csv``: KAIST CASYS LLMServingSim's profiles (MIT licence) of vLLM's attention on an RTX
4090 with the heads of Llama-3.1-8B in bf16: a step of a chunk of a prompt over cached tokens beside sequences
that decode. 20 points spread evenly over the profile's rows of each kind of step are for calibration; of the
others every 20th (of steps that only decode or only read a prompt, every second) is judged.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ridgeline.predict.gpu.kinds import Points


def attention_points(which: Literal["calibration", "judged"]) -> Points:
    """Measured attention on the RTX 4090: the points for calibration, or others."""
    import numpy as np

    from ridgeline.predict.gpu.kinds import Points

    name = "attention_rtx-4090" + ("_calibration" if which == "calibration" else "")
    header, *lines = (files(__name__) / f"{name}.csv").read_text().split()
    numbers = np.array([[float(n) for n in line.split(",")] for line in lines]).T
    columns = dict(zip(header.split(","), numbers, strict=True))
    seconds = columns.pop("time_us") * 1e-6
    for name, value in (("heads", 32), ("kv_heads", 8), ("head_dim", 128)):
        columns[name] = np.full(len(seconds), float(value))
    return Points("attention", columns, seconds)
