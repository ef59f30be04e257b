"""``ridgeline measure``: this machine's hardware file, from fixed shapes that know nothing of a model."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device, OnChip, Provenance
from ridgeline.hardware.files import cache_folder
from ridgeline.hardware.host import Host, this_host, usable_cpus
from ridgeline.hardware.kernels import AttendCurve, Kernels
from ridgeline.hardware.probes.passes import WIDE
from ridgeline.hardware.timing import Probe, Progress, Schedule, Timings, time_probes
from ridgeline.ops.formats import product_format
from ridgeline.ops.lowering import CPU

if TYPE_CHECKING:
    from ridgeline.hardware.gpu.measure import GpuMeasurement
    from ridgeline.hardware.gpu.plan import GpuPlan
    from ridgeline.hardware.probes.memory_rate import MemoryRate
    from ridgeline.hardware.probes.ring import Ring

#: Formats that vector operations are measured in, and what a cache can be.
DTYPES, CACHES = ("fp32", "bf16"), ("fp32", "bf16", "int8")
#: One weight format for each kind of number that is multiplied, whose rates are measured.
PRODUCTS = ("fp32", "bf16", "int8")
#: Bytes of the last-level cache where the system does not tell: as much as most desktops have.
ASSUMED_LAST_LEVEL = 32 << 20
#: Memory for what is read fresh: at least so many bytes, and at most this share of all there is.
LEAST_RING, SHARE_OF_MEMORY = 64 << 20, 0.125
#: The share of the last-level cache that weights come round in which it serves: neighbours want some of it.
SHARE_OF_LAST = 0.25
#: A table needs two points to tell how time grows.
LEAST_POINTS = 2


@dataclass(frozen=True)
class Plan:
    """The shapes that are measured.

    ``rows`` and ``widths`` of linear layers with square weights in ``formats``, ``few_widths`` of those in
    ``rare_formats``; ``shaped_widths`` of weights that are not square, at ``shaped_rows``; ``squares`` the
    widths of square products; ``attend_rows`` of prompts and ``attend_keys`` of a long cache. Whatever would
    take longer than ``longest_call`` seconds on this machine is left out. ``cache_multiple`` is the memory
    that fresh weights come from, in last-level caches; ``storage_bytes`` the largest file.
    """

    schedule: Schedule = field(default_factory=Schedule)
    formats: tuple[str, ...] = ("fp32", "bf16", "int8", "int4-g128")
    rare_formats: tuple[str, ...] = ("int4-g32", "int4-g64", "int4-g32-zp", "int4-g64-zp", "int4-g128-zp")
    rows: tuple[int, ...] = (1, 4, 8, 16, 64, 256, 1024)
    widths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    few_widths: tuple[int, ...] = (512, 2048, 4096)
    shaped_widths: tuple[int, ...] = (1024, 4096)
    shaped_rows: int = 256
    squares: tuple[int, ...] = (1024, 2048)
    attend_rows: tuple[int, ...] = (16, 128, 512, 2048)
    attend_keys: int = 2048
    longest_call: float = 0.1
    cache_multiple: float = 8.0
    storage_bytes: int = 256 << 20

    def within(self, rate: float) -> Plan:
        """This plan without what takes too long at ``rate`` FLOP/s, but for the smallest of each."""

        def keep(sizes: Sequence[int], flops: Callable[[int], float]) -> tuple[int, ...]:
            fit = sum(flops(size) <= rate * self.longest_call for size in sizes)
            return tuple(sizes[: max(fit, LEAST_POINTS)])

        widest = max(self.widths)
        return replace(
            self,
            rows=keep(self.rows, lambda n: 2 * n * widest**2),
            squares=keep(self.squares, lambda width: 2 * width**3),
            attend_rows=keep(self.attend_rows, lambda n: 2 * n**2 * WIDE.query * WIDE.dim),
        )


@dataclass(frozen=True)
class Measurement:
    """This machine as measured.

    ``spreads`` says of every figure how much longer its worst round took than the best, relative,
    and of a table of kernels the median of that over its cells. ``seconds`` is what measuring took.
    """

    device: Device
    spreads: Mapping[str, float]
    seconds: float


def measure(
    threads: int | None = None,
    progress: Progress | None = None,
    *,
    plan: Plan | GpuPlan | None = None,
    device: str = "cpu",
) -> Measurement | GpuMeasurement:
    """Find this machine's rates, bandwidths, call times and the times of the cpu reading's kernels; or, with
    ``device`` ``cuda``, or ``cuda:1`` for another than the current one, those of a GPU's: see
    :func:`~ridgeline.hardware.gpu.measure.measure_gpu`.

    ``threads`` is how many compute, at most one for each processor that this process may run on, by default
    as many as the native kernels would use anyway.
    ``progress`` is called with what is being timed and the share that is done. Nothing is stored:
    ``save_device(found.device, this_machine_file())`` does that.

    Raises InputError if ``threads`` is below 1 or above that, or given for a GPU, if PyTorch is not
    installed, and if there is no such device.
    """
    if device != "cpu":
        index = gpu_index(device)
        if threads is not None:
            raise InputError("threads are the CPU's: leave them out with device cuda")
        from ridgeline.hardware.gpu.measure import measure_gpu

        return measure_gpu(progress, plan=plan, index=index)
    _check_threads(threads)
    try:
        import torch
    except ImportError:
        raise InputError("measuring needs PyTorch: pip install 'ridgeline[run]'") from None
    from ridgeline import kernels
    from ridgeline.hardware.probes.memory_rate import MemoryRate
    from ridgeline.hardware.probes.ring import Ring
    from ridgeline.hardware.probes.storage import storage_probes

    begin = perf_counter()
    plan = plan or Plan()
    threads = threads or kernels.threads()
    host = this_host()
    with _settings(threads), storage_probes(cache_folder(), plan.storage_bytes) as storage:
        plans = _plans(plan)
        ring = Ring(_ring_bytes(plans["fp32"], host, threads))
        rate = MemoryRate(host, ring)
        probes = _probes(plans, host, threads, ring, rate) + storage
        timings = time_probes(probes, plan.schedule, progress, memory=rate.read)
    source = (
        f"ridgeline measure on this machine, {kernels.isa()} kernels, PyTorch {torch.__version__}, "
        f"{_count(threads, 'thread')}"
    )
    device = _device(timings, plans, host, threads, source)
    return Measurement(device, timings.spreads(), perf_counter() - begin)


def gpu_index(device: str) -> int | None:
    """The number in ``cuda:1``, None for ``cuda``. Raises InputError for anything else."""
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise InputError(f"device is {device!r}; choose one of: cpu, cuda, or cuda:N for the GPU of number N")
    return int(number) if colon else None


def _check_threads(threads: int | None) -> None:
    if threads is None:
        return
    if threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}")
    if threads > (usable := len(usable_cpus())):
        raise InputError(f"threads must be at most {usable}, the processors usable here, not {threads}")


@contextmanager
def _settings(threads: int) -> Iterator[None]:
    """As a model runs: so many threads, no autograd; and no garbage collection in a timed call."""
    import torch

    from ridgeline.hardware.threads import threads as computing_threads

    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.inference_mode(), computing_threads(threads):
            yield
    finally:
        if collecting:
            gc.enable()


def _plans(plan: Plan) -> dict[str, Plan]:
    """What is measured of each weight format on this machine."""
    from ridgeline.hardware.probes.rates import trial_rate

    within = {product: plan.within(trial_rate(product)) for product in PRODUCTS}
    plans = {format: within[product_format(format)] for format in plan.formats}
    for format in plan.rare_formats:
        plans[format] = replace(within[product_format(format)], widths=plan.few_widths)
    return plans


def _probes(plans: Mapping[str, Plan], host: Host, threads: int, ring: Ring, rate: MemoryRate) -> list[Probe]:
    from ridgeline.hardware.probes.attend import attend_probes
    from ridgeline.hardware.probes.bandwidth import bandwidth_probes
    from ridgeline.hardware.probes.engine import engine_probes
    from ridgeline.hardware.probes.epilogues import epilogue_probes
    from ridgeline.hardware.probes.linear import linear_probes, shaped_probes
    from ridgeline.hardware.probes.parts import part_probes, step_probes
    from ridgeline.hardware.probes.passes import Step
    from ridgeline.hardware.probes.rates import exp_probes, launch_probe, matrix_probes, vector_probes
    from ridgeline.hardware.probes.ring import Ring
    from ridgeline.hardware.probes.streamed_parts import streamed_probes

    own = [cache.capacity(threads) for cache in host.caches[:-1]]
    last = Ring(int(SHARE_OF_LAST * host.caches[-1].capacity(threads))) if own else None
    probes = [launch_probe(), *exp_probes(DTYPES), *bandwidth_probes(host.caches, ring, threads)]
    for dtype in DTYPES:
        probes += vector_probes(dtype)
    for product in PRODUCTS:
        probes += matrix_probes(product, plans[product].squares)
    step = Step()

    def after_weights() -> Sequence[Any]:
        step.between()
        rate.stream()
        return ()

    probes += [*step_probes(step), *part_probes(step.between), *engine_probes(ring)]
    probes += epilogue_probes(step.between)
    probes += streamed_probes(ring, step.between, after_weights)
    for format in CACHES:
        plan = plans[product_format(format)]
        memory = ring.memory.numel() // 2
        probes += attend_probes(
            format, plan.attend_rows, plan.attend_keys, memory, step.between, after_weights
        )
    for format, plan in plans.items():
        probes += linear_probes(
            format, plan.rows, plan.widths, ring, step.between, last, max(own, default=0.0)
        )
        rows = max(n for n in plan.rows if n <= plan.shaped_rows)
        probes += shaped_probes(format, rows, _shaped(format, plan), ring, step.between)
    return probes


def _shaped(format: str, plan: Plan) -> tuple[int, ...]:
    """The widths of weights that are not square: of rare formats the largest, where they matter most."""
    return plan.shaped_widths[-1:] if format in plan.rare_formats else plan.shaped_widths


def _ring_bytes(plan: Plan, host: Host, threads: int) -> int:
    """Several times the last-level cache, as far as memory allows, and two of the largest weights."""
    last = host.caches[-1].capacity(threads) if host.caches else ASSUMED_LAST_LEVEL
    wanted = min(int(plan.cache_multiple * last), int(SHARE_OF_MEMORY * host.memory_bytes))
    return max(wanted, 2 * 4 * max(plan.widths) ** 2, LEAST_RING)


def _device(timings: Timings, plans: Mapping[str, Plan], host: Host, threads: int, source: str) -> Device:
    from ridgeline.hardware.probes.bandwidth import read_levels
    from ridgeline.hardware.probes.storage import FIGURE as STORAGE

    levels = read_levels(timings, host.caches, threads, host.memory_bytes)
    found = ["matrix", "vector", "exp", "memory", "launch", "kernels"]
    found += ["levels"] * bool(host.caches) + ["storage"] * (STORAGE in timings)
    return Device(
        name="this-machine",
        title=f"{host.name}, {_count(host.cores, 'core')}, {_count(threads, 'thread')}",
        kind=host.kind,
        source=source,
        date=date.today().isoformat(),
        provenance=dict.fromkeys(found, Provenance.MEASURED),
        units=host.cores,
        matrix={product: timings.rate(f"matrix.{product}") for product in PRODUCTS},
        vector={dtype: timings.rate(f"vector.{dtype}") for dtype in DTYPES},
        exp_rate=timings.rate("exp_rate"),
        levels=levels,
        on_chip=_on_chip(host, threads),
        launch_seconds=timings.seconds("launch_seconds"),
        storage_bandwidth=timings.rate(STORAGE) if STORAGE in timings else None,
        kernels=_kernels(timings, plans, threads, fastest=levels[0].bandwidth).to_dict(),
    )


def _on_chip(host: Host, threads: int) -> OnChip:
    """The largest cache that every core has to itself, and the last one of all cores."""
    own = [cache.size for cache in host.caches if cache.instances >= host.cores]
    last = host.caches[-1].capacity(threads) if host.caches else None
    return OnChip(scratch_per_unit=max(own, default=None), cache=last)


def _kernels(timings: Timings, plans: Mapping[str, Plan], threads: int, fastest: float) -> Kernels:
    from ridgeline.hardware.probes.attend import read_attend
    from ridgeline.hardware.probes.engine import read_engine
    from ridgeline.hardware.probes.epilogues import read_epilogues
    from ridgeline.hardware.probes.linear import read_linear
    from ridgeline.hardware.probes.parts import read_parts, read_step
    from ridgeline.hardware.probes.streamed_parts import with_streamed
    from ridgeline.kernels import isa

    parts = with_streamed(read_parts(timings, fastest), timings, fastest)

    def attend(format: str) -> AttendCurve:
        plan = plans[product_format(format)]
        return read_attend(timings, format, plan.attend_rows, plan.attend_keys, fastest)

    return Kernels(
        reading=CPU.name,
        isa=isa(),
        threads=threads,
        step=read_step(timings),
        linear={
            f: read_linear(timings, f, plan.rows, plan.widths, _shaped(f, plan)) for f, plan in plans.items()
        },
        attend={format: attend(format) for format in CACHES},
        simple={CPU.activations: parts | read_epilogues(timings)},
        engine=read_engine(timings),
        memory=timings.memory,
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
