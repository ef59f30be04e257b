"""The time of a matrix product on a GPU: a naive twin, and what tiles, waves, splits and formats must do."""

from dataclasses import replace
from math import ceil, exp, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.predict.gpu.gemm import (
    DOUBT,
    K_BLOCK,
    SHARING,
    SPLITS,
    TILES,
    USUAL_CLOCK_HZ,
    GemmConstants,
    fit,
    gemm_time,
    product_time,
    seconds,
)
from ridgeline.predict.gpu.kinds import Points

H100 = load_device("h100-sxm")
USUAL = GemmConstants()


def naive_seconds(device, c, m, n, k):
    """One tile and one split after another, in plain numbers; of each tile the best, and their mean, in which
    those near the best of all count."""
    clock = device.clock_hz or USUAL_CLOCK_HZ
    rate = device.matrix_rate("fp16") / device.units
    found = []
    for columns, rows in TILES:
        best = inf
        computing = 2 * rows * columns / rate
        feeding = 2 * (rows + columns) / (c.feed * clock)
        for split in SPLITS:
            steps = ceil(k / split / K_BLOCK) * K_BLOCK
            tile = steps * (computing + feeding) / c.matrix + c.tile_us * 1e-6
            tiles = ceil(m / rows) * ceil(n / columns) * split / device.units
            together = 2 if rows * columns <= SHARING else 1
            waves = c.wave * together * ceil(tiles / together) + (1 - c.wave) * max(tiles, 1)
            nbytes = 2 * (m * n + n * k + m * k) + (8 * split * m * n if split > 1 else 0)
            memory = nbytes / (device.bandwidth * c.memory)
            best = min(best, ((waves * tile) ** c.overlap + memory**c.overlap) ** (1 / c.overlap))
        found.append(best)
    weights = [exp(-(time / min(found) - 1) / DOUBT) for time in found]
    return c.launch_us * 1e-6 + sum(w * time for w, time in zip(weights, found, strict=True)) / sum(weights)


SIZES = st.integers(1, 20_000)


@given(m=SIZES, n=SIZES, k=SIZES, device=st.sampled_from(["h100-sxm", "a40", "rtx-4090", "b200"]))
def test_it_is_the_mean_of_the_tiles_near_the_best(m, n, k, device):
    device = load_device(device)
    found = seconds(device, USUAL, m, n, k)
    assert found == pytest.approx(naive_seconds(device, USUAL, m, n, k), rel=1e-9)


@given(sizes=st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=1, max_size=6))
def test_arrays_give_what_their_elements_give(sizes):
    m, n, k = np.array(sizes).T
    alone = [seconds(H100, USUAL, *one) for one in sizes]
    assert seconds(H100, USUAL, m, n, k) == pytest.approx(alone)


@given(m=SIZES, n=SIZES, k=SIZES)
def test_no_product_beats_the_rates_it_is_given(m, n, k):
    found = gemm_time(H100, USUAL, m, n, k)
    work = found.seconds - found.launch
    assert work >= 2 * m * n * k / (H100.matrix_rate("fp16") * USUAL.matrix) * (1 - 1e-9)
    assert work >= 2 * (m * n + n * k + m * k) / (H100.bandwidth * USUAL.memory) * (1 - 1e-9)


@given(m=SIZES, n=SIZES, k=SIZES, more=st.sampled_from(["m", "n", "k"]))
def test_a_larger_product_takes_no_less_time(m, n, k, more):
    """But for what the mean over tiles gains where more of them are as good as the best."""
    larger = {"m": m, "n": n, "k": k}
    larger[more] *= 2
    assert seconds(H100, USUAL, **larger) >= 0.98 * seconds(H100, USUAL, m, n, k)


def test_a_tile_more_than_a_wave_costs_more_than_its_share():
    constants = replace(USUAL, wave=1.0)
    full = 132 // 12 * 256, 12 * 128  # 11 x 12 tiles of 256 x 128 fill 132 SMs once
    over = seconds(H100, constants, full[1] + 1, full[0], 16384)
    assert over > 1.15 * seconds(H100, constants, full[1], full[0], 16384)


def test_a_product_of_few_tiles_is_split_along_k():
    deep = gemm_time(H100, USUAL, 64, 256, 65536)
    unsplit = 65536 * 2 * 64 * 64 / (H100.matrix_rate("fp16") / H100.units * USUAL.matrix)
    assert deep.matrix < unsplit


def test_fewer_bits_save_memory_and_a_narrow_format_computes_faster():
    nbytes = 0.5 * 8192 * 8192 + 2 * 2 * 8192
    packed = gemm_time(H100, USUAL, 1, 8192, 8192, nbytes=nbytes)
    assert packed.seconds < 0.45 * seconds(H100, USUAL, 1, 8192, 8192)
    assert packed.memory > packed.matrix
    fp8 = gemm_time(H100, USUAL, 8192, 8192, 8192, dtype="fp8", element_bytes=1)
    assert 0.45 < fp8.seconds / seconds(H100, USUAL, 8192, 8192, 8192) < 0.6


def test_a_batch_of_products_fills_the_device_that_one_leaves_idle():
    one, many = (gemm_time(H100, USUAL, 128, 128, 4096, batch=n) for n in (1, 64))
    assert many.seconds < 16 * one.seconds


def test_what_is_only_known_by_its_work_runs_in_full_tiles():
    n = 16384
    known = seconds(H100, USUAL, n, n, n)
    guessed = product_time(H100, USUAL, 2 * n**3, nbytes=6 * n * n, dtype="fp16", element_bytes=2).seconds
    assert guessed == pytest.approx(known, rel=0.05)


def test_a_dtype_that_the_device_has_no_rate_for_is_refused():
    with pytest.raises(InputError, match="no rate for dtype 'fp7'"):
        seconds(H100, USUAL, 1, 1, 1, "fp7")


def test_a_fit_finds_the_constants_that_made_the_points():
    true = GemmConstants(
        launch_us=5.0, matrix=0.8, memory=0.75, feed=140.0, tile_us=1.2, wave=0.4, overlap=2.0
    )
    m = np.array([1, 2, 8, 16, 64, 96, 128, 200, 256, 384, 512, 700, 1024, 1500, 2048, 4096] * 4, float)
    n, k = (np.repeat(v, 16).astype(float) for v in ([1536, 4096, 12288, 22016], [4096, 2048, 4096, 8192]))
    found = fit(H100, Points("gemm", {"m": m, "n": n, "k": k}, seconds(H100, true, m, n, k)))
    others = np.array([3.0, 48.0, 333.0, 3000.0])
    assert seconds(H100, found, others, 5000, 5000) == pytest.approx(
        seconds(H100, true, others, 5000, 5000), rel=0.03
    )
    assert found.memory == pytest.approx(true.memory, rel=0.05)
    assert found.matrix == pytest.approx(true.matrix, rel=0.1)
