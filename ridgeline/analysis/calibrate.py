"""``ridgeline calibrate``: constants of a device's time models from measured points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ridgeline.analysis.arguments import device_of
from ridgeline.analysis.layer_points import LAYER, points_of_layers
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.predict.calibrate.calibrate import MOST, Errors, KindCalibration
from ridgeline.predict.calibrate.calibrate import calibrate as fit
from ridgeline.predict.calibrate.calibrate import judge as judge_points
from ridgeline.predict.calibrate.points import join, points_of, read_rows
from ridgeline.predict.gpu.kinds import Points


@dataclass(frozen=True)
class CalibrationReport:
    """What :func:`calibrate` found: the ``device`` with its constants, those of each kind with their errors,
    and the errors on the points of other files, by kind. ``passed`` counts the rows of layers without a time
    model of their own, which were passed over."""

    device: Device
    sources: tuple[str, ...]
    kinds: tuple[KindCalibration, ...]
    judged: Mapping[str, Errors]
    passed: Mapping[str, int] = field(default_factory=dict)


def calibrate(
    on: str | Device,
    sources: Iterable[str | Path],
    *,
    judge: Iterable[str | Path] = (),
    most: int = MOST,
    model: str | None = None,
    tensor: int = 1,
) -> CalibrationReport:
    """Fit the constants of ``on`` to at most ``most`` of the points in the CSV files ``sources``, and judge
    them by the rest, and by the points in the files ``judge``. ``model`` says whose layers those are that a
    file names, on one of ``tensor`` tensor-parallel ranks.

    Raises InputError for an unknown device or one that is no GPU, files that hold no points or wrong ones,
    fewer points than kinds, and a model or ranks where no file names layers.
    """
    device = device_of(on)
    if device.kind != "gpu":
        raise InputError(f"{device.name} is no GPU: run `ridgeline measure` on the machine itself instead")
    if most < 1:
        raise InputError(f"points must be 1 or more, not {most}")
    sources, judge = (tuple(str(path) for path in paths) for paths in (sources, judge))
    if tensor < 1:
        raise InputError(f"tensor must be 1 or more ranks, not {tensor}")
    if (model is not None or tensor > 1) and not any(LAYER in read_rows(Path(p))[0] for p in sources + judge):
        raise InputError("model and tensor are of layers, and no file has a column layer: leave them out")
    passed: Counter[str] = Counter()
    found = fit(device, load_points(sources, model, tensor, passed), most=most)
    others = load_points(judge, model, tensor, passed)
    names = ", ".join(Path(path).name for path in sources)
    calibrated = replace(found.device, source=f"{device.source}; calibrated with points of {names}")
    return CalibrationReport(calibrated, sources, found.kinds, judge_points(calibrated, others), dict(passed))


def load_points(
    paths: Iterable[str | Path],
    model: str | None = None,
    tensor: int = 1,
    passed: Counter[str] | None = None,
) -> dict[str, Points]:
    """The points of all files by their kind; a file that names layers needs the ``model`` they are of, and
    on how many ``tensor`` ranks it ran. ``passed`` counts the rows that are passed over.
    Raises InputError as :func:`ridgeline.predict.calibrate.points.read_points`."""
    found: dict[str, list[Points]] = {}
    for path in map(Path, paths):
        header, rows = read_rows(path)
        read = points_of_layers if LAYER in header else points_of
        options = {"model": model, "tensor": tensor, "passed": passed} if LAYER in header else {}
        for name, points in read(path, header, rows, **options).items():
            found.setdefault(name, []).append(points)
    return {name: join(parts) for name, parts in found.items()}
