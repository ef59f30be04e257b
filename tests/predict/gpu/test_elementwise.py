"""The time of element-wise kernels on a GPU: a naive twin, and what cache, rows and other units must do."""

from math import ceil, hypot

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.hardware import load_device
from ridgeline.predict.gpu.elementwise import (
    GENERATIONS,
    OPS,
    VECTORISED,
    ElementwiseConstants,
    elementwise_time,
    fit,
    seconds,
)
from ridgeline.predict.gpu.kinds import Points

A100 = load_device("a100-80gb")
USUAL = ElementwiseConstants()
NEWER = ElementwiseConstants(start_us=1.5, issue=9.0, cache=4.0, generation=2.0)


def naive_seconds(device, c, rows, width, name):
    """In plain numbers, one bound after another."""
    p = GENERATIONS[int(c.generation)][name]
    touched, moved = (2 * passes * rows * width for passes in (p.distinct, p.passes))
    if p.kept is None:
        cached = min(max((1.25 - touched / device.on_chip.cache) / 0.5, 0), 1)
        memory = moved * (1 - cached + cached / c.cache) / (device.bandwidth * c.memory)
        issued = moved / width * ceil(width / p.block) * p.block
    else:
        missed = max(touched - p.kept * device.on_chip.cache, 0)
        memory = (missed + (moved - missed) / c.cache) / (device.bandwidth * c.memory)
        issued = moved / rows * ceil(rows / device.units) * device.units
    issue = issued * p.work / (c.issue * device.units * device.clock_hz)
    row = c.row * p.row * width / device.clock_hz
    return c.start_us * 1e-6 * p.start + hypot(memory, issue, row)


@given(
    rows=st.integers(1, 100_000),
    width=st.integers(1, 30_000),
    name=st.sampled_from(sorted(OPS)),
    device=st.sampled_from(["a100-80gb", "a40", "rtx-4090"]),
    constants=st.sampled_from([USUAL, NEWER]),
)
def test_it_is_the_start_and_the_norm_of_the_bounds(rows, width, name, device, constants):
    device = load_device(device)
    expected = naive_seconds(device, constants, rows, width, name)
    assert seconds(device, constants, rows, width, name) == pytest.approx(expected, rel=1e-9)


def test_arrays_give_what_their_elements_give():
    rows, width = np.array([1, 10, 4096]), np.array([128, 4096, 11008])
    alone = [seconds(A100, USUAL, r, w, "silu_mul") for r, w in zip(rows, width, strict=True)]
    assert seconds(A100, USUAL, rows, width, "silu_mul") == pytest.approx(alone)


def test_what_fits_the_cache_is_served_faster():
    a40 = load_device("a40")
    small, large = (seconds(a40, USUAL, rows, 4096, "add") - USUAL.start_us * 1e-6 for rows in (150, 1500))
    assert large > 15 * small


def test_idle_threads_of_a_last_block_cost_time():
    narrow, full = (seconds(A100, USUAL, 4096, width, "silu_mul") for width in (1025, 2048))
    assert narrow > 0.6 * full  # half the bytes, as many blocks


def test_slower_units_and_given_bytes_are_heeded():
    pattern = GENERATIONS[1]["add"]
    plain = elementwise_time(A100, USUAL, 4096, 4096, pattern)
    slow = elementwise_time(A100, USUAL, 4096, 4096, pattern, at_least=1e-3)
    twice = elementwise_time(A100, USUAL, 4096, 4096, pattern, nbytes=2 * 3 * 2 * 4096 * 4096)
    assert slow.seconds > 1e-3 > plain.seconds
    assert twice.memory == pytest.approx(2 * plain.memory)


def grid_of(constants, device):
    """Points of the four kernels that both generations know, as these constants make them."""
    rows = np.array([1, 64, 256, 512, 1024, 2048, 4096, 8192] * 4, float)
    op = np.repeat(["add", "rms_norm", "rope", "silu_mul"], 8)
    width = np.repeat([4096.0, 4096.0, 8192.0, 11008.0], 8)
    made = [float(seconds(device, constants, r, w, o)) for r, w, o in zip(rows, width, op, strict=True)]
    return Points("elementwise", {"rows": rows, "width": width, "op": op}, np.array(made))


@pytest.mark.parametrize(
    "true",
    [
        ElementwiseConstants(start_us=2.5, memory=0.8, issue=6.0, cache=2.5, row=1.5),
        ElementwiseConstants(start_us=1.0, memory=0.9, issue=12.0, cache=5.0, generation=2.0),
    ],
)
def test_a_fit_finds_the_constants_and_the_generation_that_made_the_points(true):
    found = fit(A100, grid_of(true, A100))
    assert found.generation == true.generation
    assert seconds(A100, found, 3000, 5504, "silu_mul") == pytest.approx(
        seconds(A100, true, 3000, 5504, "silu_mul"), rel=0.05
    )
    assert found.start_us == pytest.approx(true.start_us, rel=0.15)


def test_a_row_more_than_the_multiprocessors_do_at_once_costs_a_whole_row():
    """As measured from 128 to 144 rows on an RTX 4090's 128: a row is one block of threads."""
    card = load_device("rtx-4090")
    full, over = (seconds(card, NEWER, rows, 14336, "silu_mul") for rows in (128, 129))
    assert over > 1.2 * full


@given(rows=st.integers(1, 50_000), width=st.sampled_from([128, 1024, 4096, 14336, 29568]))
def test_more_rows_of_a_vectorised_kernel_take_no_less_time(rows, width):
    card = load_device("rtx-4090")
    for name in VECTORISED:
        assert seconds(card, NEWER, 2 * rows, width, name) >= seconds(card, NEWER, rows, width, name)


def test_constants_that_are_means_take_the_nearer_generation():
    for found, patterns in ((0.2, 1), (1.4, 1), (1.6, 2), (7.0, 2)):
        assert ElementwiseConstants(generation=found).patterns is GENERATIONS[patterns]
