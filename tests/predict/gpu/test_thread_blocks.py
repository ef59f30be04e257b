"""Blocks on multiprocessors against handing them out one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.ops.kernel import SequenceWork
from ridgeline.predict.gpu.thread_blocks import Group, Rates, blocks_of, ends_at, split, splits_for
from tests.predict.gpu import greedy


def alike(sequences, tiles, heads, row_tiles=1):
    """Blocks that all have as many tiles."""
    n, rows, blocks, t = (np.asarray(float(x)) for x in (sequences, row_tiles, sequences * heads, tiles))
    return Group(n, rows, blocks * rows, t, t, t)


def ends(groups, heads, units):
    """In tiles."""
    rates = Rates({}, np.asarray(1.0), 0.0, units)
    work = sum(g.blocks * g.tiles for g in groups)
    return float(ends_at(groups, np.asarray(float(heads)), work, rates))


@given(st.integers(1, 400), st.integers(1, 200), st.integers(1, 64), st.sampled_from([16, 108, 128, 132]))
def test_alike_blocks_run_in_whole_waves(sequences, tiles, heads, units):
    found = ends([alike(sequences, tiles, heads)], heads, units)
    assert found == pytest.approx(greedy.makespan([tiles] * (sequences * heads), units))


def test_unlike_blocks_end_about_when_they_do_one_by_one():
    """The closed form is within a few per cent on average, and never far off where a tail matters."""
    draw = np.random.default_rng(0)
    errors = []
    for _ in range(120):
        units, heads = int(draw.choice([108, 128, 132])), int(draw.choice([8, 32]))
        few, many = int(draw.integers(1, 8)), int(draw.integers(1, 48))
        long, short = int(draw.integers(1, 140)), int(draw.integers(1, 140))
        real = greedy.makespan(greedy.grid(heads, [[long]] * few + [[short]] * many), units)
        found = ends([alike(few, long, heads), alike(many, short, heads)], heads, units)
        errors.append(abs(found / real - 1))
    assert np.mean(errors) < 0.07
    assert max(errors) < 0.5


def test_a_lone_long_sequence_holds_up_a_step_of_short_ones():
    long, short = alike(1, 130, 32), alike(64, 1, 32)
    real = greedy.makespan(greedy.grid(32, [[130]] + [[1]] * 64), 128)
    assert ends([long, short], 32, 128) == pytest.approx(real, rel=0.03)
    assert ends([long, short], 32, 128) > 2 * ends([short], 32, 128)


@pytest.mark.parametrize("rows", [256, 512, 1024, 2048])
@pytest.mark.parametrize("past", [0, 1024, 16384])
def test_a_prompt_s_tiles_grow_with_the_keys_they_see(rows, past):
    pairs = rows * past + rows * (rows + 1) // 2
    heads = 32
    work = SequenceWork(rows, 1, 4 * heads * 128 * pairs, 0, past + rows, heads, 8, 128)
    found = blocks_of(work, np.asarray(32.0), np.asarray(64.0), np.asarray(128.0))
    tiles = [-(-(past + 64 * (i + 1)) // 128) for i in range(rows // 64)]
    assert (found.row_tiles, found.last) == (len(tiles), tiles[-1])
    assert float(found.tiles) == pytest.approx(np.mean(tiles), rel=0.02)
    real = greedy.makespan(greedy.grid(heads, [tiles]), 128)
    assert ends([found], heads, 128) == pytest.approx(real, rel=0.16)


@given(st.integers(1, 600), st.integers(1, 300), st.sampled_from([64, 216, 256, 264]))
def test_the_keys_are_split_as_the_kernel_does(blocks, tiles, slots):
    assert int(splits_for(np.asarray(float(blocks)), np.asarray(float(tiles)), slots)) == greedy.splits(
        blocks, tiles, slots
    )


def test_splits_share_a_sequence_s_tiles():
    found = split(alike(2, 129, 8), np.asarray(16.0))
    assert (found.blocks, found.last, found.tiles) == (2 * 8 * 16, 9, 9)
