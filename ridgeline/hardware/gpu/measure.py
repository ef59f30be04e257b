"""``ridgeline measure --device cuda``: a GPU's hardware file, from fixed shapes that know nothing of a
model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from itertools import zip_longest

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device, Provenance
from ridgeline.hardware.gpu.attention import attention_work
from ridgeline.hardware.gpu.names import device_of, known_device
from ridgeline.hardware.gpu.plan import GpuPlan, spread
from ridgeline.hardware.gpu.points import Point, by_kind, points_of_tables
from ridgeline.hardware.gpu.products import PLAIN, product_work
from ridgeline.hardware.gpu.rows import rotations, row_work
from ridgeline.hardware.gpu.steps import fixed_work, read_engine, read_issue, read_replay
from ridgeline.hardware.gpu.work import GpuFacts, Stopwatch, Work
from ridgeline.hardware.gpu_kernels import BANDWIDTHS, COLUMNS, GpuKernels, GpuTable
from ridgeline.hardware.measure import Measurement
from ridgeline.hardware.timing import Progress, Timing
from ridgeline.ops.lowering import GPU

#: Points that the time models are fitted to.
CALIBRATED = 64

Found = dict[tuple[str, tuple[float, ...]], Timing]


@dataclass(frozen=True)
class GpuMeasurement(Measurement):
    """A GPU as measured. ``points`` are those that time models can be calibrated with, ``measured`` how many
    kernels were timed; ``left_out`` is how many there was no time for, and ``failed`` says of those that did
    not run what they said."""

    facts: GpuFacts
    points: tuple[Point, ...]
    measured: int
    left_out: int
    failed: Mapping[str, str]


def measure_gpu(
    progress: Progress | None = None,
    *,
    plan: GpuPlan | None = None,
    stopwatch: Stopwatch | None = None,
    index: int | None = None,
) -> GpuMeasurement:
    """Find a GPU's bandwidths, launch times and the times of the gpu reading's kernels, and fit its time
    models.

    ``progress`` is called with what is being timed and the share that is done. ``index`` is the GPU's number,
    the current one unless given. Nothing is stored: ``save_device(found.device, gpu_file(found.facts.name))``
    does that.

    Raises InputError where there is no such GPU, Triton or PyTorch is missing, or a figure that is needed
    cannot be found.
    """
    stopwatch = stopwatch or _stopwatch(index)
    import torch

    from ridgeline.ops.gpu import Gpu

    plan = plan or GpuPlan.usual()
    ops = Gpu(torch.bfloat16, stopwatch.device)
    begin = stopwatch.clock()
    needed = fixed_work(plan, ops, stopwatch.facts.l2)
    groups = [*product_work(plan, ops), *attention_work(plan, ops), *row_work(plan, ops)]
    rest = list(_interleaved(groups))
    found: Found = {}
    failed: dict[str, str] = {}
    late = 0
    total = len(needed) + len(rest)
    for number, work in enumerate([*needed, *rest]):
        if number >= len(needed) and stopwatch.clock() - begin > plan.seconds:
            late = total - number
            break
        if progress is not None:
            progress(work.figure, number / total)
        _time(stopwatch, work, found, failed, is_needed=number < len(needed))
    if progress is not None:
        progress("done", 1.0)
    tables = _tables(found)
    if f"linear.{PLAIN}" not in tables:
        raise InputError(f"no product could be measured in {plan.seconds:g} s: nothing can be predicted")
    points = points_of_tables(tables)
    device = _calibrated(_device(stopwatch.facts, _kernels(found, tables, stopwatch.facts)), points)
    return GpuMeasurement(
        device=device,
        spreads=_spreads(found),
        seconds=stopwatch.clock() - begin,
        facts=stopwatch.facts,
        points=tuple(points),
        measured=len(found),
        left_out=late,
        failed=failed,
    )


def _stopwatch(index: int | None) -> Stopwatch:
    from ridgeline.loading import require_run_extra

    require_run_extra()
    import torch

    count = torch.cuda.device_count()
    if index is not None and not 0 <= index < max(count, 1):
        raise InputError(f"there is no GPU {index}: PyTorch sees {count}")
    from ridgeline.hardware.gpu.stopwatch import EventStopwatch

    return EventStopwatch(None if index is None else f"cuda:{index}")


def _time(stopwatch: Stopwatch, work: Work, found: Found, failed: dict[str, str], *, is_needed: bool) -> None:
    """A kernel that does not run on this GPU leaves a gap in its table, and says why."""
    try:
        found[work.key] = stopwatch.time(work)
    except Exception as error:  # what a driver, a compiler or an allocator says has no one type
        said = str(error).strip().splitlines() or [type(error).__name__]
        if is_needed:
            raise InputError(f"{work.figure} could not be measured: {said[0]}") from error
        failed.setdefault(work.figure, f"{work.point}: {said[0]}")


def _interleaved(groups: list[list[Work]]) -> Iterator[Work]:
    """One of each table in turn, the coarsest steps of all of them first."""
    missing = object()
    for row in zip_longest(*map(spread, groups), fillvalue=missing):
        yield from (work for work in row if work is not missing)


def _tables(found: Found) -> dict[str, GpuTable]:
    points: dict[str, dict[tuple[float, ...], float]] = {}
    for (figure, point), timing in found.items():
        if figure.partition(".")[0] in COLUMNS:
            points.setdefault(figure, {})[point] = timing.seconds
    for point, timing in rotations(found, found["gap", ()].seconds):
        points.setdefault("rotate_append", {})[point] = timing.seconds
    return {
        name: GpuTable(tuple(sorted(mine)), tuple(mine[point] for point in sorted(mine)))
        for name, mine in points.items()
    }


def _kernels(found: Found, tables: Mapping[str, GpuTable], facts: GpuFacts) -> GpuKernels:
    seconds = {key: timing.seconds for key, timing in found.items()}
    gap = seconds["gap", ()]
    issue, step = read_issue(seconds)
    moved = {"copy": 2, "read": 1, "l2": 2}
    rates = {
        name: moved[name] * point[0] / s
        for name in BANDWIDTHS
        for (figure, point), s in seconds.items()
        if figure == f"bandwidth.{name}"
    }
    return GpuKernels(
        reading=GPU.name,
        gpu=facts.name,
        driver=facts.driver,
        cuda=facts.cuda,
        torch=facts.torch,
        triton=facts.triton,
        replay=read_replay(seconds, gap),
        step=step,
        launch=seconds["launch", ()],
        gap=gap,
        issue=issue,
        bandwidth=rates,
        tables=tables,
        engine=read_engine(seconds),
    )


def _device(facts: GpuFacts, kernels: GpuKernels) -> Device:
    table = kernels.tables[f"linear.{PLAIN}"]
    rates = (2 * m * n * k / s for (m, n, k), s in zip(table.points, table.seconds, strict=True))
    device = device_of(facts, max(rates), kernels.bandwidth["read"])
    software = f"PyTorch {facts.torch}, Triton {facts.triton}, CUDA {facts.cuda}, driver {facts.driver}"
    known = known_device(facts)
    start = "the driver" if known is None else f"the catalogue's {known.name} ({known.source})"
    return replace(
        device,
        source=f"ridgeline measure on {facts.name}, {software}; rates: {start}",
        date=date.today().isoformat(),
        kernels=kernels.to_dict(),
        provenance={**device.provenance, "kernels": Provenance.MEASURED},
    )


def _calibrated(device: Device, points: list[Point]) -> Device:
    """The device with its time models fitted to some of the points, those of every kind that it has any
    of."""
    from ridgeline.predict.calibrate.calibrate import calibrate

    return calibrate(device, by_kind(points), most=CALIBRATED).device


def _spreads(found: Found) -> dict[str, float]:
    from statistics import median

    grouped: dict[str, list[float]] = {}
    for (figure, _), timing in found.items():
        grouped.setdefault(figure, []).append(timing.spread)
    return {figure: median(spreads) for figure, spreads in grouped.items()}
