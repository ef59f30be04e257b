import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.hardware.kernels import ASPECT, Affine
from ridgeline.hardware.probes import linear
from ridgeline.hardware.probes import streamed_parts as parts_behind
from ridgeline.hardware.probes.attend import (
    SHORT,
    Blocks,
    attend_probes,
    counted,
    read_attend,
    stored_bytes,
)
from ridgeline.hardware.probes.linear import linear_probes, read_linear, shaped_probes
from ridgeline.hardware.probes.parts import (
    PACKED,
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
from ridgeline.hardware.probes.passes import ALIKE, WIDE, Step, plain
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.probes.streamed_parts import PARTS as STREAMED
from ridgeline.hardware.probes.streamed_parts import TABLES, streamed_probes, with_streamed
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
    assert roles == ["embedding", "norm", "norm", "add", "silu", "take_rows"]
    assert PARTS == ("embed", "norm", "norm.layer", "add", "activation", "gather")


def test_bytes_of_parts_are_those_of_the_count():
    rows, width, activation, stored = 8, WIDE.query * WIDE.dim, 4, 2
    found = bytes_by_part(rows)
    assert found["add"] == 3 * rows * width * activation
    assert found["norm"] == 2 * rows * width * activation + width * stored
    assert found["norm.layer"] == found["norm"] + width * stored


def test_every_part_and_step_is_timed(step):
    assert step.between() == ()
    probes = part_probes(step.between) + step_probes(step)
    assert len({probe.figure for probe in probes}) == len(probes) == 2 * (len(PARTS) + 1) + 2 + 2
    found = run(probes)
    assert found.pop(STEP) == 0.0  # by the clock above, which stands still
    assert all(0 < seconds < 1 for seconds in found.values())


def test_a_step_costs_what_its_kernels_do_not_take():
    def timings(python, kernels):
        return Timings([(STEP, Timing(python, 0.0)), (STEP_KERNELS, Timing(kernels, 0.0))])

    assert read_step(timings(9e-5, 2e-5)) == pytest.approx(7e-5)
    assert read_step(timings(1e-5, 2e-5)) == 0.0


FAR, NEAR = (2, 64), (2, 32)


def test_parts_behind_streamed_weights_are_timed_and_never_faster(ring, step):
    found = run(streamed_probes(ring, step.between, nothing, FAR, NEAR, 64))
    assert len(found) == 3 * len(STREAMED) + 2 * len(TABLES)
    assert all(0 < seconds < 1 for seconds in found.values())


def streamed(part="norm", **seconds):
    """A part's line where its three cases took so long, and tables a millisecond."""
    times = {}
    for name in STREAMED:
        for case, shape in (
            ("one", f"1, {parts_behind.ONE}"),
            ("near", f"{near[0]}, {near[1]}"),
            ("far", f"{far[0]}, {far[1]}"),
        ):
            times[f"kernels.streamed.{name}[{shape}]"] = seconds[case]
    for table in TABLES:
        times.update({f"kernels.streamed.{table}[{rows}]": 1e-3 * rows for rows in (1, 256)})
    timings = Timings((figure, Timing(s, 0.0)) for figure, s in times.items())
    known = dict.fromkeys((*PARTS, PACKED), Affine(2e-6, 1e11))
    return with_streamed(known, timings, 1e12)[part]


far, near = parts_behind.FAR, parts_behind.NEAR


def test_a_part_is_slower_the_farther_its_input_is():
    line = streamed(one=5e-6, near=1e-4, far=3e-4)
    moved = {shape: parts_behind.moved("norm", shape[0]) for shape in (near, far)}
    assert line.fresh_overhead == 5e-6
    for shape, seconds in ((near, 1e-4), (far, 3e-4)):
        at = parts_behind.distance("norm", *shape)
        assert line.seconds(moved[shape], cached=False, distance=at) == pytest.approx(seconds)
    assert line.rate(0) == line.rate(1e3) == 1e11
    assert line.rate(1e12) == pytest.approx(line.far[-1])


def test_a_part_behind_weights_that_is_faster_than_without_is_noise():
    line = streamed(one=1e-6, near=1e-9, far=1e-9)
    assert line.fresh_overhead == 2e-6
    assert line.far == (1e11,) * 3


def test_the_timed_part_is_that_behind_the_product():
    width = parts_behind.WIDTH
    roles = {"norm": "norm", "norm.layer": "norm", "norm.modulated": "norm"}
    roles |= {"add": "add", "activation": "silu", "gather": "take_rows"}
    for part, role in roles.items():
        profile = Profile(Reference())
        weights = plain("weight", width, 8), plain("embedding", 2, 8), plain("norm", width)
        batch = Reference().batch([0, 1], [Span(2)], logits=[0, 1])
        parts_behind.behind(part, *weights)(profile, batch)
        number = 2 + (part == "norm.modulated")  # behind its vectors
        assert [record.name for record in profile.take()][number] == role
    assert roles.keys() == STREAMED.keys()


def test_the_distances_of_parts_are_those_that_predictions_ask_for():
    """What lies between a product's input and its last output: all that it touches."""
    rows, hidden, width = *near, parts_behind.WIDTH
    product = 4 * rows * (hidden + width) + 2 * hidden * width
    assert parts_behind.distance("norm", rows, hidden) == product
    assert parts_behind.distance("norm", *far) > 4 * product


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


def test_weights_that_are_not_square_take_so_many_times_as_long(ring):
    found = run(shaped_probes("bf16", 4, (64,), ring, nothing))
    assert found.keys() == {f"kernels.linear.bf16.{n}[64]" for n in ("inputs", "outputs", "square")}
    times = {
        "inputs[64]": 3.0,
        "outputs[64]": 1.0,
        "square[64]": 2.0,
        "warm[1, 64]": 1.0,
        "fresh[1, 64]": 1.0,
    }
    timings = Timings((f"kernels.linear.bf16.{name}", Timing(s, 0.0)) for name, s in times.items())
    table = read_linear(timings, "bf16", (1,), (64,), (64,))
    nbytes = table.weight_bytes[0]
    assert table.shape_factor(512, nbytes, ASPECT) == table.shape_factor(512, 9 * nbytes, 99) == 1.5
    assert table.shape_factor(512, nbytes, 1 / ASPECT) == 0.5
    assert table.shape_factor(512, nbytes, ASPECT**0.5) == pytest.approx(1.5**0.5)
    assert table.shape_factor(512, nbytes, 1) == table.shape_factor(1, nbytes, ASPECT) == 1


def test_weights_of_the_last_level_cache_are_tried_where_the_cores_own_would_hold_them(ring):
    near = Ring(1 << 20)
    own = 2 * 32 * 32
    found = run(linear_probes("bf16", (1, 128), (32, 64), ring, nothing, near, own))
    assert [f for f in found if "last" in f] == ["kernels.linear.bf16.last[1, 32]"]
    seconds = {**dict.fromkeys(found, 1.0), "kernels.linear.bf16.last[1, 32]": 3.0}
    table = read_linear(Timings((f, Timing(s, 0.0)) for f, s in seconds.items()), "bf16", (1, 128), (32, 64))
    assert table.last == ((3.0, 1.0), (1.0, 1.0))
    nbytes = table.weight_bytes[0]
    assert table.seconds(1, nbytes, cached=True) == 3.0
    assert table.seconds(1, nbytes, cached=True, own=True) == table.seconds(1, nbytes, cached=False) == 1.0


def test_all_of_the_ring_is_read_before_a_weight_that_the_last_level_cache_shall_hold(ring, monkeypatch):
    """A round reads a few weights of it, and by the next one other probes have passed through the caches."""
    near, read = Ring(1 << 20), []
    monkeypatch.setattr(linear._Layer, "seconds", lambda layer, rows: read.append(layer.bytes) or 1e-6)
    probes = linear_probes("bf16", (1,), (32,), ring, nothing, near)
    for place in ("warm", "fresh", "last"):
        read.clear()
        run([probe for probe in probes if probe.figure == f"kernels.linear.bf16.{place}[1, 32]"])
        assert read == [near.memory.numel()] * (place == "last") + [2 * 32 * 32]


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
    assert len(found) == 9 + (2 if format == "bf16" else 0)  # which attends without a cache, too
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
    named = {"rows4": "rows[4]", "rows16": "rows[16]", "alike16": "alike[16]"}
    named |= {"whole4": "whole[4]", "whole16": "whole[16]"}
    return Timings(
        (f"kernels.attend.fp32.{named.get(name, name)}", Timing(s, 0.0)) for name, s in seconds.items()
    )


def test_the_attention_curve_goes_through_what_was_measured():
    measured = {"short": 1.5, "warm": 3.0, "many": 3.5, "short_fresh": 2.0, "fresh": 5.0, "heads": 11.0}
    prompts = {"rows4": 2.5, "rows16": 11.0, "alike16": 14.0, "whole4": 3.0, "whole16": 15.0}
    found = attend_timings(**measured, **prompts)
    curve = read_attend(found, "fp32", (4, 16), keys=256, fastest=1e12)
    short, long = (counted("fp32", 1, keys - 1) for keys in (SHORT, 256))

    def seconds(work, more_heads=1, cached=True):
        return curve.seconds(1, more_heads * work.flops, work.cache_bytes, cached=cached)

    assert seconds(short) == pytest.approx(1.5)
    assert seconds(long) == pytest.approx(3.0)
    assert seconds(long, more_heads=2) == pytest.approx(3.5)
    assert seconds(short, cached=False) == pytest.approx(2.0)
    assert seconds(long, cached=False) == pytest.approx(5.0)
    more = curve.seconds(1, long.flops / 4, long.cache_bytes, heads=ALIKE.kv, cached=False)
    assert more == pytest.approx(11.0)
    flops, pairs = counted("fp32", 16, 0).flops, 16 * 16
    stored, more = (stored_bytes("fp32", 16, heads) for heads in (WIDE, ALIKE))
    prompt = curve.seconds(16, flops, 0.0, 17 / 32, stored, cached=True)
    assert prompt == pytest.approx(11.0, rel=0.03)  # half and half a row's pairs are visible
    alike = curve.seconds(16, flops, 0.0, 17 / 32, more, cached=True)
    assert alike - prompt == pytest.approx(3.0)
    whole = curve.seconds(16, 4 * pairs * 1024, 0.0, 1.0, cached=True)
    assert whole == pytest.approx(15.0)


@given(*[SECONDS] * 8)
def test_whatever_the_noise_attention_has_positive_rates(
    short, warm, many, short_fresh, fresh, rows4, rows16, alike16
):
    measured = {"short": short, "warm": warm, "many": many, "short_fresh": short_fresh, "fresh": fresh}
    measured["heads"] = fresh
    found = attend_timings(**measured, rows4=rows4, rows16=rows16, alike16=alike16)
    curve = read_attend(found, "fp32", (4, 16), keys=256, fastest=1e12)
    assert min(curve.overhead, curve.fresh_overhead) >= 0
    assert min(curve.warm, curve.fresh, curve.row_rate, curve.append, *curve.flops_per_second) > 0
    assert max(curve.warm, curve.fresh) <= 1e12
