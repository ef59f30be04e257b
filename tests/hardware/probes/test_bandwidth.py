from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.hardware.caches import Cache
from ridgeline.hardware.device import Level
from ridgeline.hardware.probes.bandwidth import bandwidth_probes, growing, read_levels
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import Timing, Timings

KB, MB = 1024, 1024**2
CACHES = (Cache(1, 32 * KB, 2), Cache(2, MB, 2), Cache(3, 16 * MB, 1))


def timings(**rates):
    return Timings((f"levels.{name}", Timing(1 / rate, 0.0)) for name, rate in rates.items())


@given(st.lists(st.floats(1e6, 1e13), min_size=1, max_size=5))
def test_no_level_is_slower_than_a_farther_one(bandwidths):
    measured = [Level(f"L{i}", i + 1, bandwidth) for i, bandwidth in enumerate(bandwidths)]
    raised = growing(measured)
    assert all(near.bandwidth >= far.bandwidth for near, far in pairwise(raised))
    assert all(after.bandwidth >= before.bandwidth for before, after in zip(measured, raised, strict=True))
    assert {level.bandwidth for level in raised} <= set(bandwidths)


def test_levels_have_the_capacity_that_the_threads_reach():
    found = read_levels(timings(L1=9e11, L2=8e11, L3=3e11, memory=5e10), CACHES, 2, 8 * 1024 * MB)
    assert [(level.name, level.capacity) for level in found] == [
        ("L1", 64 * KB),
        ("L2", 2 * MB),
        ("L3", 16 * MB),
        ("memory", 8 * 1024 * MB),
    ]


def test_a_last_cache_that_holds_less_than_the_cores_own_is_left_out():
    caches = (Cache(2, 2 * MB, 8), Cache(3, 12 * MB, 1))
    found = read_levels(timings(L2=8e11, L3=3e11, memory=5e10), caches, 8, 8 * 1024 * MB)
    assert [level.name for level in found] == ["L2", "memory"]


def test_a_machine_without_known_caches_has_memory_alone():
    assert read_levels(timings(memory=5e10), (), 2, 1024 * MB) == (Level("memory", 1024 * MB, 5e10),)


def test_every_level_is_read_and_the_work_is_what_is_read():
    ring = Ring(4 * MB)
    with torch.inference_mode():
        probes = bandwidth_probes(CACHES, ring, threads=2)
        for probe in probes:
            probe.call()
    assert {probe.figure for probe in probes} == {"levels.L1", "levels.L2", "levels.L3", "levels.memory"}
    for probe in probes:
        if probe.figure == "levels.memory":
            assert probe.work == ring.memory.numel()
        else:
            assert probe.work >= 8 * MB
