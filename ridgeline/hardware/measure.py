"""``ridgeline measure``: this machine's hardware file, from fixed shapes that know nothing of a model."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from time import perf_counter

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device, OnChip, Provenance
from ridgeline.hardware.files import cache_folder
from ridgeline.hardware.host import Host, this_host
from ridgeline.hardware.kernels import AttendCurve, Kernels
from ridgeline.hardware.probes.layer import WIDE
from ridgeline.hardware.timing import Probe, Progress, Schedule, Timings, time_probes

#: The dtypes that the cpu reading computes in; their kernels are measured one by one.
DTYPES = ("fp32", "bf16")
#: Measured where it is no disaster: at this share of float32's rate or more. A machine without
#: float16 arithmetic computes such a model better in another dtype.
OPTIONAL_DTYPE, DECENT_SHARE = "fp16", 0.5
#: Bytes of the last-level cache where the system does not tell: as much as most desktops have.
ASSUMED_LAST_LEVEL = 32 << 20
#: Memory for what is read fresh: at least so many bytes, and at most this share of all there is.
LEAST_RING, SHARE_OF_MEMORY = 64 << 20, 0.125
#: A table needs two points to tell how time grows.
LEAST_POINTS = 2


@dataclass(frozen=True)
class Plan:
    """The shapes that are measured.

    ``rows`` and ``widths`` of the products with square weights, ``squares`` the widths of square
    products; ``attend_rows`` of prompts and ``attend_keys`` of a long cache. Whatever would take
    longer than ``longest_call`` seconds on this machine is left out. ``cache_multiple`` is the
    memory that fresh weights come from, in last-level caches; ``storage_bytes`` the largest file.
    """

    schedule: Schedule = field(default_factory=Schedule)
    rows: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    widths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    squares: tuple[int, ...] = (1024, 2048)
    attend_rows: tuple[int, ...] = (16, 128, 512, 2048)
    attend_keys: int = 2048
    longest_call: float = 0.1
    cache_multiple: float = 4.0
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
    threads: int | None = None, progress: Progress | None = None, *, plan: Plan | None = None
) -> Measurement:
    """Find this machine's rates, bandwidths, call times and the times of its kernels.

    ``threads`` is how many PyTorch computes with, by default as many as it would use anyway.
    ``progress`` is called with what is being timed and the share that is done. Nothing is stored:
    ``save_device(found.device, this_machine_file())`` does that.

    Raises InputError if ``threads`` is below 1 or PyTorch is not installed.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}")
    try:
        import torch
    except ImportError:
        raise InputError("measuring needs PyTorch: pip install 'ridgeline[run]'") from None
    from ridgeline.hardware.probes.storage import storage_probes

    begin = perf_counter()
    plan = plan or Plan()
    threads = threads or torch.get_num_threads()
    host = this_host()
    with _settings(threads), storage_probes(cache_folder(), plan.storage_bytes) as storage:
        plans = _plans(plan)
        timings = time_probes(_probes(plans, host, threads) + storage, plan.schedule, progress)
    source = f"ridgeline measure on this machine, PyTorch {torch.__version__}, {_count(threads, 'thread')}"
    device = _device(timings, plans, host, threads, source)
    return Measurement(device, timings.spreads(), perf_counter() - begin)


@contextmanager
def _settings(threads: int) -> Iterator[None]:
    """As a model runs: so many threads, no autograd; and no garbage collection in a timed call."""
    import torch

    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


def _plans(plan: Plan) -> dict[str, Plan]:
    """What is measured of each dtype on this machine."""
    from ridgeline.hardware.probes.rates import trial_rate

    rates = {dtype: trial_rate(dtype) for dtype in DTYPES}
    optional = trial_rate(OPTIONAL_DTYPE)
    if optional >= DECENT_SHARE * rates["fp32"]:
        rates[OPTIONAL_DTYPE] = optional
    return {dtype: plan.within(rate) for dtype, rate in rates.items()}


def _probes(plans: Mapping[str, Plan], host: Host, threads: int) -> list[Probe]:
    from ridgeline.hardware.probes.attend import attend_probes
    from ridgeline.hardware.probes.bandwidth import bandwidth_probes
    from ridgeline.hardware.probes.layer import interlude
    from ridgeline.hardware.probes.linear import linear_probes
    from ridgeline.hardware.probes.parts import part_probes, step_probe
    from ridgeline.hardware.probes.rates import exp_probes, launch_probe, matrix_probes, vector_probes
    from ridgeline.hardware.probes.ring import Ring

    ring = Ring(_ring_bytes(plans["fp32"], host, threads))
    probes = [launch_probe(), *exp_probes(DTYPES), *bandwidth_probes(host.caches, ring, threads)]
    for dtype, plan in plans.items():
        probes += matrix_probes(dtype, plan.squares) + vector_probes(dtype)
    for dtype in DTYPES:
        plan, between = plans[dtype], interlude(dtype)
        probes += part_probes(dtype, ring, between)
        probes += linear_probes(dtype, plan.rows, plan.widths, ring, between)
        probes += attend_probes(dtype, plan.attend_rows, plan.attend_keys, ring, between)
    return [*probes, step_probe("fp32", interlude("fp32"))]


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
        matrix={dtype: timings.rate(f"matrix.{dtype}") for dtype in plans},
        vector={dtype: timings.rate(f"vector.{dtype}") for dtype in plans},
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
    from ridgeline.hardware.probes.linear import read_linear
    from ridgeline.hardware.probes.parts import STEP, read_parts

    def attend(dtype: str) -> AttendCurve:
        plan = plans[dtype]
        return read_attend(timings, dtype, plan.attend_rows, plan.attend_keys, fastest)

    return Kernels(
        reading="cpu",
        threads=threads,
        step=timings.seconds(STEP),
        linear={d: read_linear(timings, d, plans[d].rows, plans[d].widths) for d in DTYPES},
        attend={d: attend(d) for d in DTYPES},
        simple={d: read_parts(timings, d, fastest) for d in DTYPES},
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
