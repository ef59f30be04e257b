"""The dataflows' formulas, held to loop nests that are run tile by tile, and to the trace."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.lowering import FUSED, NAIVE_ATTENTION
from ridgeline.ops.records import Mask, Score
from ridgeline.predict.dataflows import DATAFLOWS, AttentionShape, Tiles, paper_tiles
from ridgeline.predict.dataflows.shape import floor_sum, visible_tiles
from tests.predict.dataflows import loop_nests

BY_NAME = {flow.name: flow for flow in DATAFLOWS}
AMPLE = 1e12  # bytes on the chip


@st.composite
def shapes(draw):
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    queries, causal = draw(st.integers(1, 13)), draw(st.booleans())
    keys = draw(st.integers(queries if causal else 1, 29))
    return AttentionShape(kv_heads * group, kv_heads, draw(st.integers(1, 5)), queries, keys, 1, causal)


tilings = st.builds(Tiles, st.integers(1, 40), st.integers(1, 32), st.integers(1, 5))


def one_problem(shape):
    """Q, K and V of one problem, the query heads of its group as rows, and what each row sees."""
    noise = np.random.default_rng(shape.rows * 31 + shape.keys)
    q, k, v = (noise.normal(size=(length, shape.dim)) for length in (shape.rows, shape.keys, shape.keys))
    position = np.arange(shape.rows)[:, None] // shape.group
    sees = np.arange(shape.keys)[None] <= position + shape.past
    return q, k, v, sees if shape.causal else np.ones_like(sees)


def nest(name, chip, tensors, tiles, on_chip):
    if name == "naive":
        return loop_nests.naive(chip, *tensors, tiles.rows, tiles.keys, on_chip)
    if name == "FLAT row":
        return loop_nests.flat(chip, *tensors, tiles.rows)
    if name == "FLAT head":
        return loop_nests.flat(chip, *tensors, len(tensors[0]))
    if name == "split-KV":
        return loop_nests.split_kv(chip, *tensors, tiles.rows, tiles.keys, tiles.splits)
    run = {"flash v1": loop_nests.flash_v1, "flash v2": loop_nests.flash_v2}[name]
    return run(chip, *tensors, tiles.rows, tiles.keys)


NESTS = ("naive", "FLAT head", "FLAT row", "flash v1", "flash v2", "split-KV")


@pytest.mark.parametrize("name", NESTS)
@settings(max_examples=40)
@given(shape=shapes(), tiles=tilings, buffers=st.integers(1, 2), on_chip=st.sampled_from([20, AMPLE]))
def test_a_nest_run_tile_by_tile_computes_attention_and_moves_what_the_formulas_say(
    name, shape, tiles, buffers, on_chip
):
    flow, chip, tensors = (
        replace(BY_NAME[name], buffers=buffers),
        loop_nests.Chip(2, buffers),
        one_problem(shape),
    )
    out = nest(name, chip, tensors, tiles, on_chip)
    np.testing.assert_allclose(out, loop_nests.definition(*tensors), rtol=1e-9, atol=1e-12)
    launches = flow.launches(shape, tiles, on_chip)
    moved = sum(launch.reads for launch in launches), sum(launch.writes for launch in launches)
    assert moved == (chip.reads * shape.problems, chip.writes * shape.problems)
    # A tile that is larger than the tensor is held in part.
    cut = Tiles(min(tiles.rows, shape.rows), min(tiles.keys, shape.keys), tiles.splits)
    assert chip.peak <= flow.live(shape, cut)
    if name != "split-KV":
        assert chip.peak == flow.live(shape, cut)


@given(shapes(), st.integers(1, 40), st.integers(1, 32))
def test_visible_tiles_are_those_that_hold_a_visible_pair(shape, rows, keys):
    *_, sees = one_problem(shape)
    met = [
        (i.stop - i.start, j.stop - j.start)
        for i in loop_nests.slices(shape.rows, rows)
        for j in loop_nests.slices(shape.keys, keys)
        if sees[i, j].any()
    ]
    found = visible_tiles(shape, rows, keys)
    assert (found.pairs, found.rows, found.keys) == (len(met), sum(r for r, _ in met), sum(k for _, k in met))


@given(st.integers(0, 30), st.integers(1, 20), st.integers(0, 50), st.integers(0, 50))
def test_a_sum_of_floors_is_the_sum(n, m, a, b):
    assert floor_sum(n, m, a, b) == sum((a * i + b) // m for i in range(n))


def test_batch_and_matrix_granularity_hold_that_many_heads_at_once():
    shape = AttentionShape(8, 4, 16, 32, 32, batch=3)
    head, batch, matrix = (BY_NAME[f"FLAT {g}"].live(shape, Tiles(1, 1)) for g in ("head", "batch", "matrix"))
    assert (batch, matrix) == (4 * head, 12 * head)


# -- beside the trace -----------------------------------------------------------------------------


def attention_bytes(shape, lowering):
    ops = Count(lowering=lowering)
    q = ops.input("q", (shape.batch * shape.queries, shape.heads, shape.dim), "bf16")
    k, v = (ops.input(n, (shape.batch * shape.keys, shape.kv_heads, shape.dim), "bf16") for n in "kv")
    spans = ops.batch([Span(shape.queries, shape.past, shape.batch)]).spans
    y = ops.attend(q, k, v, spans=spans, mask=Mask(causal=shape.causal), score=Score(1.0))
    return ops.trace(y).bytes


@given(shapes(), st.integers(1, 3))
def test_with_everything_on_the_chip_a_dataflow_moves_what_the_trace_counts(shape, batch):
    shape = replace(shape, batch=batch)
    whole = Tiles(shape.rows, shape.keys)
    fused, stored = (attention_bytes(shape, lowering) for lowering in (FUSED, NAIVE_ATTENTION))

    def moved(name):
        return sum(launch.bytes for launch in BY_NAME[name].launches(shape, whole, AMPLE))

    assert [moved(n) for n in ("naive", "FLAT head", "FLAT row", "flash v2")] == [stored, fused, fused, fused]
    assert shape.operand_bytes == fused


@given(shapes())
def test_no_dataflow_moves_less_than_its_operands_and_larger_row_tiles_never_move_more(shape):
    for flow in DATAFLOWS:
        sizes = [
            sum(launch.bytes for launch in flow.launches(shape, Tiles(rows, 4), AMPLE))
            for rows in (1, 2, 4, 8)
        ]
        assert sizes == sorted(sizes, reverse=True) or flow.name == "flash v1"
        assert min(sizes) >= shape.operand_bytes


# -- published complexities -----------------------------------------------------------------------


def v1_elements(length, dim, on_chip):
    """Elements that FlashAttention moves of one head with the tiles of its paper."""
    shape = AttentionShape(1, 1, dim, length, length, causal=False)
    launches = BY_NAME["flash v1"].launches(shape, paper_tiles(on_chip, dim), AMPLE)
    return sum(launch.bytes for launch in launches) / 2


def test_flash_attention_moves_n_squared_d_squared_over_m():
    base = v1_elements(2**16, 64, 2**15)
    assert v1_elements(2**17, 64, 2**15) / base == pytest.approx(4, rel=0.01)
    assert v1_elements(2**16, 64, 2**16) / base == pytest.approx(1 / 2, rel=0.01)
    assert v1_elements(2**16, 128, 2**15) / base == pytest.approx(4, rel=0.05)


def test_the_live_memory_of_flat_is_linear_by_the_row_and_quadratic_by_the_head():
    shape = AttentionShape(1, 1, 64, 2**20, 2**20)
    row, head = BY_NAME["FLAT row"], BY_NAME["FLAT head"]
    for flow, growth in ((row, 2), (head, 4)):
        grown = flow.live(shape.at_length(2**21), Tiles(1, 1)) / flow.live(shape, Tiles(1, 1))
        assert grown == pytest.approx(growth, rel=0.001)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 64, 5, 5), "heads must be at least 1"),
        ((6, 4, 64, 5, 5), "4 key/value heads do not divide 6"),
        ((4, 4, 64, 5, 4), "4 keys are fewer than 5"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        AttentionShape(*sizes)


def test_a_tile_has_at_least_one_row():
    with pytest.raises(InputError, match="rows must be at least 1, not 0"):
        Tiles(0, 16)


#: Sizes without a common pattern: sequences, heads, head size, length, rows.
B, H, DK, N, R = 3, 5, 64, 1000, 32
D = H * DK


@pytest.mark.parametrize(
    ("granularity", "elements"),
    [
        ("matrix", 8 * B * D * N + B * H * N**2),
        ("batch", 8 * D * N + H * N**2),
        ("head", 8 * N * DK + N**2),
        ("row", 4 * R * DK + 4 * N * DK + R * N),
    ],
)
def test_the_live_memory_of_flat_has_its_operands_twice_and_its_scores_once(granularity, elements):
    """Q, K, V and O in two buffers each, and the scores of a unit of work, as FLAT names its granularities
    (Kao et al. 2023, arXiv:2107.06419)."""
    (flow,) = (flow for flow in DATAFLOWS if flow.name == f"FLAT {granularity}")
    shape = AttentionShape(H, H, DK, N, N, B, causal=False)
    assert flow.live(shape, Tiles(R, N)) == elements * shape.element_bytes
