"""Dataflows on a chip: which tiles fit, how long they take, where they end and cross."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.hardware import OnChip, load_device
from ridgeline.predict.dataflows import (
    DATAFLOWS,
    AttentionShape,
    Chip,
    Tiles,
    best,
    choices,
    cost,
    crossover,
    outcome,
    overflows,
)
from ridgeline.predict.dataflows.evaluate import least_traffic, smallest

BY_NAME = {flow.name: flow for flow in DATAFLOWS}
H100 = load_device("h100")
PREFILL = AttentionShape(32, 8, 128, 4096, 4096)
DECODE = AttentionShape(32, 8, 128, 1, 32768)
AMPLE = Chip.of(H100, units=1, on_chip=1e12)

sizes = st.sampled_from([1, 3, 17, 64, 300])
small = st.builds(AttentionShape, st.just(4), st.just(2), st.just(8), sizes, st.just(300))


def of(name, shape=PREFILL, chip=None):
    return outcome(BY_NAME[name], shape, chip or Chip.of(H100))


def test_a_units_share_of_scratch_memory_grows_as_there_are_fewer():
    own, one = Chip.of(H100), Chip.of(H100, units=1)
    assert (own.units, own.on_chip) == (132, 233_472)
    assert one.on_chip == 132 * own.on_chip


@settings(max_examples=25)
@given(small, st.integers(6, 22))
def test_what_is_chosen_fits_and_nothing_that_fits_is_better(shape, log):
    for flow in DATAFLOWS:
        chip = Chip.of(H100, on_chip=2**log)
        found = outcome(flow, shape, chip).cost
        fitting = [t for t in flow.candidates(shape) if flow.live(shape, t) <= 2**log]
        assert (found is None) == (not fitting)
        if found is not None:
            assert found.seconds == min(cost(flow, shape, t, chip).seconds for t in fitting)


@given(small)
def test_more_memory_on_the_chip_never_means_more_traffic(shape):
    for flow in DATAFLOWS:
        found = choices(flow, shape, AMPLE)
        moved = [best(found, 2**log, least_traffic) for log in range(8, 26)]
        moved = [float("inf") if c is None else c.bytes for c in moved]
        assert moved == sorted(moved, reverse=True)


def test_a_dataflow_that_does_not_fit_says_what_it_needs():
    found = of("FLAT row")
    assert found.cost is None
    (note,) = found.notes
    assert note == "stops fitting: a block needs 4,203,520 bytes on the chip, which has 233,472"


@pytest.mark.parametrize("name", ["FLAT head", "FLAT row", "naive", "flash v2"])
def test_the_longest_prompt_is_the_last_that_fits(name):
    chip = Chip.of(H100)
    found = of(name)
    flow = BY_NAME[name]

    def fits(queries):
        shape = PREFILL.at_length(queries)
        tiles = smallest(flow, shape)
        stored = shape.operand_bytes + flow.stored_bytes(shape, tiles)
        return flow.live(shape, tiles) <= chip.on_chip and stored <= H100.memory_bytes

    assert fits(found.longest)
    assert not fits(found.longest + 1)
    assert found.ended_by == ("on-chip memory" if "FLAT" in name else "main memory")


def test_flat_ends_at_a_length_that_flash_does_not_know():
    assert of("FLAT row").longest < 1000 < 100_000 < of("flash v2").longest


def test_splitting_the_keys_fills_the_units_that_a_decode_step_leaves_idle():
    whole, split = (of(name, DECODE).cost for name in ("flash v2", "split-KV"))
    assert whole.busy == 8 / 132
    assert split.busy > 0.9
    assert split.bytes > whole.bytes
    assert split.seconds < whole.seconds / 5


def test_with_one_unit_there_is_nothing_to_fill():
    chip = Chip.of(H100, units=1)
    assert of("flash v2", DECODE, chip).cost.seconds <= of("split-KV", DECODE, chip).cost.seconds


def test_naive_attention_is_bound_by_memory_and_fused_attention_by_arithmetic():
    chip = Chip.of(H100, units=1)
    assert of("naive", chip=chip).cost.bound == "memory"
    assert of("flash v2", chip=chip).cost.bound == "matrix"


def test_exponentials_bind_where_heads_are_small():
    chip = Chip.of(H100, units=1)
    assert of("flash v2", replace(PREFILL, dim=32), chip).cost.bound == "exp"


def test_given_tiles_are_used_or_refused_with_what_they_need():
    chip, tiles = Chip.of(H100), Tiles(64, 64)
    assert outcome(BY_NAME["flash v2"], PREFILL, chip, tiles).cost.tiles == tiles
    large = outcome(BY_NAME["flash v2"], PREFILL, chip, Tiles(4096, 4096))
    assert large.cost is None
    assert "stops fitting" in large.notes[0]


# -- crossovers -----------------------------------------------------------------------------------


def test_flat_by_the_row_overtakes_flash_as_soon_as_it_fits():
    for other in ("flash v1", "flash v2"):
        found = crossover(BY_NAME["FLAT row"], BY_NAME[other], PREFILL, AMPLE)
        assert found.on_chip == of("FLAT row").least_live
        assert found.winner_bytes == PREFILL.operand_bytes
        assert found.other_bytes >= found.winner_bytes


def test_a_crossover_is_where_the_order_of_traffic_turns():
    flash, flat = BY_NAME["flash v2"], BY_NAME["FLAT row"]
    found = crossover(flash, flat, PREFILL.at_length(64), AMPLE)
    ours, theirs = (choices(flow, PREFILL.at_length(64), AMPLE) for flow in (flash, flat))
    below = best(theirs, found.on_chip - 1, least_traffic)
    mine = best(ours, found.on_chip - 1, least_traffic)
    assert mine is None or (below is not None and mine.bytes > below.bytes)


def test_naive_attention_never_moves_as_little_as_flat():
    assert crossover(BY_NAME["naive"], BY_NAME["FLAT row"], PREFILL, Chip.of(H100)) is not None  # FLAT unfit
    assert best(choices(BY_NAME["naive"], PREFILL, AMPLE), 1e12, least_traffic).bytes > PREFILL.operand_bytes


# -- limits ---------------------------------------------------------------------------------------


def noted(name, shape, tiles):
    return list(overflows(BY_NAME[name], shape, tiles, 1e6))


def test_scores_of_65536_tokens_overflow_32_bits_where_they_are_stored():
    shape = AttentionShape(1, 1, 64, 65536, 65536)
    notes = noted("naive", shape, Tiles(128, 128))
    assert [n.split(":")[0] for n in notes] == ["scores", "weights"]
    assert "4,294,967,296 elements" in notes[0]
    assert noted("flash v2", shape, Tiles(128, 128)) == []


@pytest.mark.parametrize(("queries", "count"), [(46340, 0), (46341, 2)])
def test_a_square_overflows_at_the_root_of_two_to_the_31(queries, count):
    assert len(noted("naive", AttentionShape(1, 1, 64, queries, queries), Tiles(64, 64))) == count


@pytest.mark.parametrize("name", ["naive", "flash v2", "split-KV", "FLAT row"])
def test_the_least_length_that_overflows_is_the_first(name):
    found, flow, chip = of(name), BY_NAME[name], Chip.of(H100)

    def overflown(queries):
        return any(overflows(flow, PREFILL.at_length(queries), Tiles(128, 128, 8), chip.on_chip))

    assert overflown(found.overflows_from)
    assert not overflown(found.overflows_from - 1)


def test_scores_of_32_heads_overflow_at_8192_tokens():
    assert of("naive").overflows_from == 8192  # 32 x 8192^2 = 2^31
    assert of("flash v2").overflows_from == 2**31 // (32 * 128)


def test_operands_beyond_two_to_the_31_elements_are_flagged():
    notes = noted("flash v2", AttentionShape(8, 8, 128, 2**21, 2**21), Tiles(128, 128))
    assert notes[:2] == [
        f"{name}: 2,147,483,648 elements do not fit a 32-bit index; index in 64 bits"
        for name in ("Q and O", "K and V")
    ]


@pytest.mark.parametrize(
    ("name", "shape", "line"),
    [
        ("flash v2", AttentionShape(1, 1, 8, 1, 8, batch=65536), "65,536 blocks in grid y"),
        ("split-KV", AttentionShape(32, 32, 8, 1, 64, batch=2048), "65,536 blocks in grid z"),
        ("naive", AttentionShape(1, 1, 8, 65536 * 16, 65536 * 16), "65,536 blocks in grid y"),
        ("flash v1", AttentionShape(65536, 65536, 1, 1, 1), "65,536 blocks in grid y"),
    ],
)
def test_blocks_beyond_a_grids_limit_are_flagged(name, shape, line):
    assert any(line in note for note in noted(name, shape, Tiles(16, 16, 2)))
    fewer = replace(shape, batch=max(shape.batch // 2, 1), heads=max(shape.heads // 2, 1), kv_heads=1)
    fewer = fewer.at_length(shape.queries // 2 or 1) if name == "naive" else fewer
    assert not any("blocks in grid" in note for note in noted(name, fewer, Tiles(16, 16, 2)))


def test_long_lengths_are_counted_exactly():
    shape = AttentionShape(32, 8, 128, 2**40, 2**40, causal=False)
    (launch,) = BY_NAME["flash v2"].launches(shape, Tiles(128, 128), 1e6)
    row_bytes = 8 * 128 * 2
    assert launch.writes == 4 * 2**40 * row_bytes
    assert launch.reads == launch.writes + 2 * (4 * 2**40 // 128) * 2**40 * row_bytes
    assert launch.flops.matrix == 4 * 32 * 128 * 2**80


# -- refusals -------------------------------------------------------------------------------------


def test_a_device_without_scratch_memory_asks_for_it():
    with pytest.raises(InputError, match="--on-chip BYTES"):
        Chip.of(replace(H100, on_chip=OnChip(cache=1e6)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"units": 0}, "at least 1, not 0"), ({"on_chip": 0}, "finite number of bytes, not 0")],
)
def test_impossible_chips_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Chip.of(H100, **options)
