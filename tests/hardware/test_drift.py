"""A machine whose memory has moved."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.hardware import Level, load_device
from ridgeline.hardware.device import Provenance
from ridgeline.hardware.drift import at_memory_rate, device_at, kernels_at
from ridgeline.hardware.kernels import Affine, Kernels
from tests.hardware.test_kernels import KERNELS

SECONDS, RATIO = st.floats(1e-6, 1.0), st.floats(0.2, 5.0)
MEASURED = replace(KERNELS, memory=5e10)


def test_what_memory_alone_takes_goes_with_its_rate():
    assert at_memory_rate(6.0, 0.0, 2.0) == pytest.approx(3.0)
    assert at_memory_rate(6.0, 0.0, 0.5) == pytest.approx(12.0)


def test_what_caches_serve_as_slowly_stays():
    assert at_memory_rate(6.0, 6.0, 0.5) == 6.0
    assert at_memory_rate(5.0, 6.0, 0.5) == 5.0


def test_no_more_is_moved_than_memory_itself_needs():
    """A kernel that is slower behind memory than its bytes explain waits for something else, too."""
    moved = at_memory_rate(10.0, 1.0, 0.5, most=4.0)
    assert moved == pytest.approx((10.0**4 - 4.0**4 + 8.0**4) ** 0.25)


@given(SECONDS, SECONDS, RATIO, st.floats(1e-6, 1.0))
def test_faster_memory_never_costs_time_and_slower_never_more_than_its_ratio(seconds, cached, ratio, most):
    moved = at_memory_rate(seconds, cached, ratio, most)
    low, high = sorted((seconds, seconds / ratio))
    assert low * (1 - 1e-6) <= moved <= high * (1 + 1e-6)


@given(SECONDS, SECONDS, RATIO)
def test_there_and_back_again_is_where_it_was(seconds, cached, ratio):
    there = at_memory_rate(seconds, cached, ratio)
    if there > 1.05 * cached:
        assert at_memory_rate(there, cached, 1 / ratio) == pytest.approx(seconds, rel=1e-3)


def test_kernels_at_the_rate_that_they_were_measured_at_are_the_same():
    same = kernels_at(MEASURED, MEASURED.memory)
    for rows in (1, 16):
        for nbytes in (1e3, 1e6):
            for cached in (True, False):
                table, moved = MEASURED.linear["bf16"], same.linear["bf16"]
                assert moved.seconds(rows, nbytes, cached=cached) == pytest.approx(
                    table.seconds(rows, nbytes, cached=cached)
                )


def test_only_what_comes_from_memory_moves():
    kernels = replace(MEASURED, memory=1e3)  # so that memory could need all the time
    slow = kernels_at(kernels, kernels.memory / 2)
    table, moved = kernels.linear["bf16"], slow.linear["bf16"]
    assert moved.warm == table.warm
    assert all(
        a > b for x, y in zip(moved.fresh, table.fresh, strict=True) for a, b in zip(x, y, strict=True)
    )
    curve, turned = kernels.attend["bf16"], slow.attend["bf16"]
    assert turned.fresh < curve.fresh
    assert replace(turned, fresh=curve.fresh) == curve
    assert slow.memory == kernels.memory / 2


def test_of_a_part_only_the_farthest_inputs_are_memorys_and_a_tables_rows_wait_for_latency():
    line = Affine(1e-6, 1e11, 2e-6, (1e6, 1e7, 5e7), (1e11, 5e10, 1e10))
    kernels = replace(MEASURED, simple={"fp32": {"norm": line, "embed": line, "embed.packed": line}})
    slow = kernels_at(kernels, kernels.memory / 2).simple["fp32"]
    assert slow["embed"] == slow["embed.packed"] == line
    assert slow["norm"].far[:2] == line.far[:2]
    assert slow["norm"].far[2] == pytest.approx(5e9, rel=1e-3)


def machine(kernels):
    cpu = load_device("generic-cpu")
    basis = {**cpu.provenance, "kernels": Provenance.MEASURED}
    levels = (Level("L3", 1e7, 8e10), Level("memory", 1e10, 5e10))
    return replace(cpu, levels=levels, kernels=kernels.to_dict(), provenance=basis)


def test_a_devices_memory_moves_and_caches_stay_at_least_as_fast():
    moved = device_at(machine(MEASURED), 2 * MEASURED.memory)
    assert [level.bandwidth for level in moved.levels] == [1e11, 1e11]
    assert Kernels.from_dict(moved.kernels).memory == 2 * MEASURED.memory


def test_a_device_that_does_not_say_its_rate_stays_as_it_is():
    device = machine(KERNELS)
    assert device_at(device, 1e9) is device
