import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.hardware.kernels import Affine
from ridgeline.hardware.probes.attend import SHORT, Blocks, attend_probes, counted, read_attend
from ridgeline.hardware.probes.linear import linear_probes, read_linear
from ridgeline.hardware.probes.parts import (
    PARTS,
    STEP,
    STEP_KERNELS,
    bytes_by_part,
    fit,
    part_probes,
    read_step,
    run_parts,
    step_probes,
)
from ridgeline.hardware.probes.passes import WIDE, Step, plain
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.probes.streamed_parts import STREAMED, streamed_probes, with_streamed
from ridgeline.hardware.timing import Timing, Timings
from ridgeline.kernels import KVCache
from ridgeline.kernels.linear import FORMATS
from ridgeline.ops.batch import Span
from ridgeline.ops.profile import Profile
from ridgeline.ops.reference import Reference

SECONDS, BYTES = st.floats(1e-7, 1e-2), st.floats(1.0, 1e7)
CACHES = ("fp32", "bf16", "int8")


@pytest.fixture(scope="module")
def ring():
    return Ring(16 << 20)


@pytest.fixture(scope="module")
def step():
    return Step()


def run(probes):
    """The seconds of one call of each probe by its figure."""
    with torch.inference_mode():
        return {probe.figure: probe.seconds(lambda: 0.0) for probe in probes}


def nothing():
    return ()


# -- a step and its parts --------------------------------------------------------------------------


def test_the_parts_are_those_of_their_pass_in_its_order():
    profile = Profile(Reference())
    run_parts(profile, Reference().batch([0, 1], [Span(2)], logits=[0, 1]), plain)
    roles = [record.name for record in profile.take()]
    assert roles == ["embedding", "norm", "norm", "add", "take_rows"]
    assert PARTS == ("embed", "norm", "norm.layer", "add", "gather")


def test_bytes_of_parts_are_those_of_the_count():
    rows, width, activation, stored = 8, WIDE.query * WIDE.dim, 4, 2
    found = bytes_by_part(rows)
    assert found["add"] == 3 * rows * width * activation
    assert found["norm"] == 2 * rows * width * activation + width * stored
    assert found["norm.layer"] == found["norm"] + width * stored


def test_every_part_and_step_is_timed(step):
    assert step.between() == ()
    probes = part_probes(step.between) + step_probes(step)
    assert len({probe.figure for probe in probes}) == len(probes) == 2 * len(PARTS) + 2
    found = run(probes)
    assert found.pop(STEP) == 0.0  # by the clock above, which stands still
    assert all(0 < seconds < 1 for seconds in found.values())


def test_a_step_costs_what_its_kernels_do_not_take():
    def timings(python, kernels):
        return Timings([(STEP, Timing(python, 0.0)), (STEP_KERNELS, Timing(kernels, 0.0))])

    assert read_step(timings(9e-5, 2e-5)) == pytest.approx(7e-5)
    assert read_step(timings(1e-5, 2e-5)) == 0.0


def test_parts_behind_streamed_weights_are_timed_and_never_faster(ring, step):
    found = run(streamed_probes(ring, step.between, hidden=32))
    assert len(found) == 2 * len(STREAMED)
    assert all(0 < seconds < 1 for seconds in found.values())

    def with_times(seconds):
        timings = Timings((figure, Timing(seconds, 0.0)) for figure in found)  # at any number of rows
        parts = with_streamed(dict.fromkeys(PARTS, Affine(2e-6, 1e10)), timings, 1e12)
        assert parts["gather"].fresh_overhead is None
        return parts["norm"]

    slow = with_times(9e-6)
    assert slow.fresh_overhead == pytest.approx(9e-6, rel=1e-2)
    assert slow.fresh_throughput == 1e10
    assert with_times(1e-6).fresh_overhead == 2e-6  # a measurement below that of warm caches is noise


def test_the_timed_parts_are_those_after_two_products_each():
    from ridgeline.hardware.probes.streamed_parts import forward_of

    profile = Profile(Reference())
    width = WIDE.query * WIDE.dim
    weights = [plain(f"weight{i}", *((8, width), (width, 8))[i % 2]) for i in range(6)]
    forward_of(weights)(profile, Reference().batch([0, 1], [Span(2)], logits=[0, 1]))
    roles = [record.name for record in profile.take()]
    assert [roles[3 * (i + 1)] for i in range(len(STREAMED))] == ["norm", "norm", "add"]


@given(SECONDS, SECONDS, BYTES, BYTES, st.floats(1e6, 1e13))
def test_a_fitted_line_is_never_negative_nor_faster_than_the_nearest_cache(few, many, less, more, fastest):
    line = fit(less, few, less + more, many, fastest)
    assert line.overhead >= 0
    assert 0 < line.throughput <= fastest


def test_a_fitted_line_goes_through_both_measurements():
    line = fit(1e3, 5e-6, 4e6, 105e-6, fastest=1e12)
    assert line.seconds(1e3) == pytest.approx(5e-6)
    assert line.seconds(4e6) == pytest.approx(105e-6)


# -- linear layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_linear_layers_are_timed_and_read_by_rows_then_weight(format, ring):
    rows, widths = (1, 4), (32, 128, 160)
    found = run(linear_probes(format, rows, widths, ring, nothing))
    assert len(found) == 2 * len(rows) * len(widths)
    assert all(0 < seconds < 1 for seconds in found.values())
    table = read_linear(Timings((f, Timing(s, 0.0)) for f, s in found.items()), format, rows, widths)
    assert table.warm[1][2] == found[f"kernels.linear.{format}.warm[4, 160]"]
    assert table.fresh[0][1] == found[f"kernels.linear.{format}.fresh[1, 128]"]
    assert (table.rows, len(table.weight_bytes)) == (rows, len(widths))


def test_weights_are_counted_with_their_padding():
    timings = Timings((f"kernels.linear.int4-g128.{p}[1, 40]", Timing(1.0, 0.0)) for p in ("warm", "fresh"))
    assert read_linear(timings, "int4-g128", (1,), (40,)).weight_bytes == (64 * (128 / 2 + 2),)


def test_a_fresh_weight_is_another_one_at_every_call_and_a_warm_one_the_same():
    ring, taken = Ring(1 << 20), []
    take = ring.take
    ring.take = lambda *shape: taken.append(take(*shape)) or taken[-1]
    probes = {probe.figure: probe for probe in linear_probes("bf16", (1,), (32,), ring, nothing)}
    for place in ("warm", "fresh"):
        for _ in range(3):
            run([probes[f"kernels.linear.bf16.{place}[1, 32]"]])
        assert len({piece.data_ptr() for piece in taken}) == (0 if place == "warm" else 3)


# -- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", CACHES)
def test_attention_is_timed_over_every_cache(format):
    found = run(attend_probes(format, (4, 16), 64, 1 << 20, nothing))
    assert len(found) == 7
    assert all(0 < seconds < 1 for seconds in found.values())


def test_fresh_keys_come_round_when_the_memory_is_used_up():
    blocks = KVCache.empty(5, WIDE.kv, WIDE.dim, "bf16")
    cache = Blocks("bf16", keys=64, memory=blocks.data.nbytes)
    assert [cache.next(64) for _ in range(4)] == [0, 2, 0, 2]
    assert [cache.same(64) for _ in range(2)] == [0, 0]


def test_attention_counts_visible_pairs_and_the_cache_that_is_read():
    rows, width = 16, WIDE.query * WIDE.dim
    assert counted("fp32", rows, 0).flops == 4 * width * rows * (rows + 1) // 2
    assert counted("fp32", 1, 63).cache_bytes == 2 * 64 * WIDE.kv * WIDE.dim * 4


def attend_timings(**seconds):
    named = {"rows4": "rows[4]", "rows16": "rows[16]"}
    return Timings(
        (f"kernels.attend.fp32.{named.get(name, name)}", Timing(s, 0.0)) for name, s in seconds.items()
    )


def test_the_attention_curve_goes_through_what_was_measured():
    measured = {"short": 1.5, "warm": 3.0, "many": 3.5, "short_fresh": 2.0, "fresh": 5.0}
    found = attend_timings(**measured, rows4=2.0, rows16=11.0)
    curve = read_attend(found, "fp32", (4, 16), keys=256, fastest=1e12)
    short, long = (counted("fp32", 1, keys - 1) for keys in (SHORT, 256))

    def seconds(work, more_heads=1, cached=True):
        return curve.seconds(1, more_heads * work.flops, work.cache_bytes, cached=cached)

    assert seconds(short) == pytest.approx(1.5)
    assert seconds(long) == pytest.approx(3.0)
    assert seconds(long, more_heads=2) == pytest.approx(3.5)
    assert seconds(short, cached=False) == pytest.approx(2.0)
    assert seconds(long, cached=False) == pytest.approx(5.0)
    prompt = curve.seconds(16, counted("fp32", 16, 0).flops, 0.0, cached=True)
    assert prompt == pytest.approx(11.0)


@given(*[SECONDS] * 7)
def test_whatever_the_noise_attention_has_positive_rates(
    short, warm, many, short_fresh, fresh, rows4, rows16
):
    measured = {"short": short, "warm": warm, "many": many, "short_fresh": short_fresh, "fresh": fresh}
    found = attend_timings(**measured, rows4=rows4, rows16=rows16)
    curve = read_attend(found, "fp32", (4, 16), keys=256, fastest=1e12)
    assert min(curve.overhead, curve.fresh_overhead) >= 0
    assert min(curve.warm, curve.fresh, curve.row_rate, *curve.flops_per_second) > 0
    assert max(curve.warm, curve.fresh) <= 1e12
