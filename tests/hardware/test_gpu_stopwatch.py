"""Timing by events and graphs, on a device of which only the clock is there."""

from __future__ import annotations

import pytest

from tests import gpu as shared  # isort: skip  (it skips the module where there is no Triton)

import torch

from benchmarks import gpu_timing
from ridgeline.errors import InputError
from ridgeline.hardware.gpu.stopwatch import LEAST_CALLS, MOST_CALLS, MOST_INPUTS, EventStopwatch
from ridgeline.hardware.gpu.work import Work
from ridgeline.ops import gpu_profile
from ridgeline.ops.gpu_profile import GpuProfile
from tests.hardware.fake_cuda import REPLAY, FakeCuda
from tests.hardware.simulated_gpu import FACTS

patched_once_a_launch = shared.patched_once_a_launch


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda().patch(monkeypatch)


@pytest.fixture
def stopwatch(cuda):
    found = object.__new__(EventStopwatch)
    found.device, found.facts, found._graph_base = torch.device("cpu"), FACTS, None
    return found


@pytest.mark.parametrize("seconds", [2e-7, 5e-6, 3e-3])
def test_a_kernels_time_is_what_one_more_adds_to_a_graph(cuda, stopwatch, seconds):
    timing = stopwatch.time(Work("x", (), lambda: cuda.work(seconds), stays=True))
    assert timing.seconds == pytest.approx(seconds, rel=1e-3)
    assert timing.spread == pytest.approx(0.0, abs=1e-6)
    assert stopwatch.base() == pytest.approx(REPLAY)


def test_inputs_take_turns_until_they_exceed_the_cache(cuda, stopwatch):
    made = []

    def make():
        made.append(0)
        return cuda.work(1e-6 * len(made))

    for nbytes, count in ((FACTS.l2, 3), (2 * FACTS.l2, 2), (10, MOST_INPUTS), (40 << 30, 1)):
        made.clear()
        timing = stopwatch.time(Work("x", (), make, nbytes))
        assert len(made) == count
        if count == MOST_INPUTS:  # every input is in the graph
            assert timing.seconds > 1e-6 * count / 4
    made.clear()
    stopwatch.time(Work("x", (), make, 10, stays=True))
    assert len(made) == 1


def test_a_graph_is_neither_long_nor_short(cuda, stopwatch, monkeypatch):
    counts = []
    replayed = stopwatch._replayed
    monkeypatch.setattr(stopwatch, "_replayed", lambda ring, n: counts.append(n) or replayed(ring, n))
    for seconds in (1e-7, 1.0):
        stopwatch.time(Work("x", (), lambda s=seconds: cuda.work(s), stays=True))
    assert counts[-2:] == [MOST_CALLS, LEAST_CALLS]


def test_a_call_that_cannot_be_recorded_ends_the_capture(cuda, stopwatch):
    def make():
        def call():
            if cuda.capturing:
                raise RuntimeError("operation not permitted when stream is capturing")

        return call

    with pytest.raises(RuntimeError, match="not permitted"):
        stopwatch.time(Work("x", (), make, stays=True))
    assert not cuda.capturing


@pytest.mark.parametrize("how", ["issue", "wall"])
def test_the_host_is_timed_by_its_own_clock(cuda, stopwatch, how, monkeypatch):
    from ridgeline.hardware.gpu import stopwatch as module

    clock = iter(range(10_000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    timing = stopwatch.time(Work("x", (), lambda: cuda.work(1e-6), how=how))
    assert timing.seconds == pytest.approx(1.0 if how == "wall" else 1 / module.ISSUED)


def test_the_interpreter_is_no_gpu():
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="is no GPU"):
            EventStopwatch("cpu")


class Operators:
    """An inner reading whose operators take a microsecond and two."""

    def __init__(self, cuda):
        self.add_one, self.add_two = cuda.work(1e-6), cuda.work(2e-6)

    def add(self, a, b):
        self.add_one()

    def softcap(self, x, cap):
        self.add_two()


def test_a_profiles_seconds_are_the_devices_without_its_sleeps(cuda):
    profile = GpuProfile(Operators(cuda))
    for _ in range(gpu_profile.TOGETHER):
        profile.add(None, None)
        profile.softcap(None, 1.0)
    found = profile.take()
    assert [r.name for r in found] == ["add", "softcap"] * gpu_profile.TOGETHER
    assert [r.total for r in found[:2]] == pytest.approx([1e-6, 2e-6])
    assert profile.take() == []


def test_the_benchmark_times_by_events_too(cuda):
    assert gpu_timing.seconds_a_call(lambda s: cuda.work(s)(), [(2e-3,), (2e-3,)]) == pytest.approx(2e-3)
    assert (
        gpu_timing.step_seconds(lambda: cuda.work(1.0)(), steps=3) < 1.0
    )  # the host's clock, not the device's
