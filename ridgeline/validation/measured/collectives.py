"""Measured collectives, reduced, that predictions are held against.

``collective_a100-dgx*.csv``: Microsoft Vidur's profiles (MIT licence) of NCCL's all-reduce and of sends
on nodes of eight A100. Of each collective, number of ranks and ranks a node four points, evenly spread
over the rows by size, are for calibration; of the others every third is judged.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

from ridgeline.predict.gpu.kinds import Points


def collective_points(which: Literal["calibration", "judged"]) -> Points:
    """Measured collectives on A100 nodes: the 36 points for calibration, or 988 others."""
    import numpy

    name = "collective_a100-dgx" + ("_calibration" if which == "calibration" else "")
    header, *lines = (files("ridgeline.validation") / "measured" / f"{name}.csv").read_text().split()
    names = header.split(",")
    columns = dict(zip(names, zip(*(line.split(",") for line in lines), strict=True), strict=True))
    numbers = {name: numpy.array(columns[name], float) for name in names if name != "collective"}
    seconds = numbers.pop("time_us") * 1e-6
    return Points("collective", {"collective": numpy.array(columns["collective"]), **numbers}, seconds)
