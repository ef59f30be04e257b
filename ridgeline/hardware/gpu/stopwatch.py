"""Timing on a GPU: CUDA graphs between events, and the host's clock."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from ridgeline.errors import InputError
from ridgeline.hardware.gpu.work import GpuFacts, Work
from ridgeline.hardware.timing import Timing

#: Inputs take turns until they are this many times the L2 cache together; calls have so many at most.
RING, MOST_INPUTS = 3, 96
#: Bytes of inputs at most, whatever the ring would take.
MOST_BYTES = 12 << 30
#: A graph holds so many calls at least and at most, and is meant to take so long.
LEAST_CALLS, MOST_CALLS, GRAPH_SECONDS = 8, 256, 2e-3
#: Replays of a graph that are timed, unless they take longer together than that.
REPLAYS, REPLAY_SECONDS = 7, 0.03
#: Calls that the host issues in a row, and how often; calls that are waited for.
ISSUED, ROUNDS, WAITED = 60, 5, 21
#: Clocks for which the device is kept busy, so that what is timed has been issued when it begins.
BUSY_CLOCKS = 1_000_000
#: Memory that PyTorch keeps from what was timed before, and gives back beyond.
MOST_KEPT = 16 << 30


class EventStopwatch:
    """Times work on the GPU ``device``, by default the current one.

    Raises InputError where there is none, or Triton is missing.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        from ridgeline.kernels.triton.runtime import is_interpreted, with_index

        self.device = with_index(device)
        if is_interpreted() or self.device.type != "cuda":
            raise InputError("Triton's interpreter is no GPU: measure where PyTorch sees one")
        self.facts = gpu_facts(self.device)
        self._graph_base: float | None = None

    def clock(self) -> float:
        return time.perf_counter()

    def time(self, work: Work) -> Timing:
        with torch.inference_mode(), torch.cuda.device(self.device):
            try:
                return {"kernel": self._kernel, "issue": self._issue, "wall": self._wall}[work.how](work)
            finally:
                torch.cuda.synchronize(self.device)
                if torch.cuda.memory_reserved(self.device) > MOST_KEPT:
                    torch.cuda.empty_cache()

    def base(self) -> float:
        """What replaying a graph takes beside its kernels, as events see it."""
        if self._graph_base is None:
            x = torch.zeros(1, device=self.device)
            calls = [lambda: x.add_(1)]
            few, many = (statistics.median(self._replayed(calls, count)) for count in (20, 200))
            self._graph_base = max(few - 20 * (many - few) / 180, 0.0)
        return self._graph_base

    def _kernel(self, work: Work) -> Timing:
        base = self.base()
        ring = self._ring(work)
        once = self._once(ring[0])
        count = max(min(math.ceil(GRAPH_SECONDS / once), MOST_CALLS), LEAST_CALLS, len(ring))
        times = self._replayed(ring, count)
        best = max(statistics.median(times) - base, 1e-9)
        return Timing(best / count, max(times) / min(times) - 1)

    def _ring(self, work: Work) -> list[Callable[[], Any]]:
        wanted = 1
        if not work.stays and work.nbytes:
            wanted = math.ceil(RING * self.facts.l2 / work.nbytes)
            free, _ = torch.cuda.mem_get_info(self.device)
            wanted = min(wanted, MOST_INPUTS, int(min(MOST_BYTES, 0.5 * free) / work.nbytes))
        return [work.make() for _ in range(max(wanted, 1))]

    def _once(self, call: Callable[[], Any]) -> float:
        """Seconds of a call, roughly, after two that compile and warm up."""
        call(), call()
        start, end = _events()
        torch.cuda._sleep(BUSY_CLOCKS)
        start.record()
        call()
        end.record()
        end.synchronize()
        return max(start.elapsed_time(end) / 1e3, 1e-7)

    def _replayed(self, ring: list[Callable[[], Any]], count: int) -> list[float]:
        """Seconds of each replay of a graph of ``count`` calls, which take the ring's in turn."""
        beside = torch.cuda.Stream(self.device)
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for call in ring:  # what a call makes of its numbers, once, is copied outside of a graph
                call()
        torch.cuda.synchronize(self.device)
        graph = _recorded(beside, [ring[i % len(ring)] for i in range(count)])
        graph.replay()
        torch.cuda.synchronize(self.device)
        times: list[float] = []
        while len(times) < REPLAYS and (len(times) < 3 or sum(times) < REPLAY_SECONDS):
            start, end = _events()
            torch.cuda._sleep(BUSY_CLOCKS)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return times

    def _issue(self, work: Work) -> Timing:
        call = work.make()
        call(), call()
        rounds = []
        for _ in range(ROUNDS):
            torch.cuda.synchronize(self.device)
            begin = time.perf_counter()
            for _ in range(ISSUED):
                call()
            rounds.append((time.perf_counter() - begin) / ISSUED)
        return Timing.of(rounds)

    def _wall(self, work: Work) -> Timing:
        call = work.make()
        times = []
        for _ in range(3 + WAITED):
            torch.cuda.synchronize(self.device)
            begin = time.perf_counter()
            call()
            torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - begin)
        times = sorted(times[3:])
        middle = statistics.median(times)
        return Timing(middle, times[len(times) * 3 // 4] / middle - 1)


def _recorded(stream: torch.cuda.Stream, calls: list[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    """The calls as a graph; without the garbage collection that torch.cuda.graph begins with, which would be
    most of the time that measuring takes."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for call in calls:
                call()
        except BaseException:
            with suppress(RuntimeError):  # the capture that failed ends in an error of its own
                graph.capture_end()
            raise
        graph.capture_end()
    return graph


def gpu_facts(device: torch.device) -> GpuFacts:
    """What PyTorch and the driver say of a GPU."""
    import triton

    found = torch.cuda.get_device_properties(device)
    return GpuFacts(
        name=found.name,
        units=found.multi_processor_count,
        capability=(found.major, found.minor),
        memory=float(found.total_memory),
        l2=float(getattr(found, "L2_cache_size", 0) or 0),
        clock_hz=1e3 * float(getattr(found, "clock_rate", 0) or 0),
        driver=driver_version(),
        cuda=torch.version.cuda or "",
        torch=torch.__version__,
        triton=triton.__version__,
    )


def driver_version() -> str:
    """The NVIDIA driver's version, "unknown" where nothing tells it."""
    import subprocess
    from pathlib import Path

    module = Path("/sys/module/nvidia/version")
    try:
        if module.is_file():
            return module.read_text(encoding="utf-8").strip() or "unknown"
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
        return said.stdout.splitlines()[0].strip() or "unknown"
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
