import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.hardware.kernels import Affine, AttendCurve, EngineTimes, Kernels, LinearTable, interpolate

SECONDS = st.floats(1e-7, 10.0)
POSITIVE = st.floats(1e-3, 1e9)


@st.composite
def curves(draw, growing=False):
    """Points (xs, ys) of a positive curve; xs grow, and ys too if asked."""
    count = draw(st.integers(2, 6))
    xs = sorted(draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count, unique=True)))
    ys = draw(st.lists(SECONDS, min_size=count, max_size=count))
    return xs, sorted(ys) if growing else ys


@given(curves())
def test_interpolation_is_exact_at_the_points(curve):
    xs, ys = curve
    assert [interpolate(xs, ys, x) for x in xs] == pytest.approx(ys)


@given(curves(), st.floats(0, 1), st.integers(0, 4))
def test_between_two_points_it_stays_between_their_values(curve, share, segment):
    xs, ys = curve
    assume(segment < len(xs) - 1)
    (x0, x1), (y0, y1) = xs[segment : segment + 2], ys[segment : segment + 2]
    y = interpolate(xs, ys, x0 + share * (x1 - x0))
    assert min(y0, y1) * (1 - 1e-9) <= y <= max(y0, y1) * (1 + 1e-9)


@given(curves(growing=True), st.lists(st.floats(0.5, 1e7), min_size=2, max_size=10))
def test_a_growing_curve_grows_everywhere(curve, at):
    found = [interpolate(*curve, x) for x in sorted(at)]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(found))


@given(curves(), st.floats(0, 1))
def test_before_the_first_point_nothing_changes(curve, share):
    xs, ys = curve
    assert interpolate(xs, ys, share * xs[0]) == ys[0]


def test_beyond_the_last_point_growth_goes_on():
    assert interpolate([1, 2, 4], [5.0, 1.0, 2.0], 16) == pytest.approx(8.0)  # as proportional as before


TABLE = LinearTable(
    rows=(1, 16),
    weight_bytes=(1e3, 1e6),
    warm=((1e-6, 1e-4), (2e-6, 4e-4)),
    fresh=((3e-6, 3e-4), (4e-6, 8e-4)),
)


def test_a_table_is_exact_at_its_points():
    for i, rows in enumerate(TABLE.rows):
        for j, nbytes in enumerate(TABLE.weight_bytes):
            assert TABLE.seconds(rows, nbytes, cached=True) == pytest.approx(TABLE.warm[i][j])
            assert TABLE.seconds(rows, nbytes, cached=False) == pytest.approx(TABLE.fresh[i][j])


@given(st.floats(0.5, 1e4), st.floats(0.5, 1e4), st.floats(1e2, 1e9), st.floats(1e2, 1e9), st.booleans())
def test_more_rows_or_bytes_never_take_less_time(rows, more_rows, nbytes, more_bytes, cached):
    rows, more_rows = sorted((rows, more_rows))
    nbytes, more_bytes = sorted((nbytes, more_bytes))
    few = TABLE.seconds(rows, nbytes, cached=cached)
    assert few <= TABLE.seconds(more_rows, nbytes, cached=cached) * (1 + 1e-9)
    assert few <= TABLE.seconds(rows, more_bytes, cached=cached) * (1 + 1e-9)


@given(st.lists(st.floats(1, 1e4), min_size=1, max_size=5), st.floats(1e2, 1e9))
def test_an_array_of_rows_is_looked_up_one_by_one(rows, nbytes):
    swept = TABLE.seconds(np.array(rows), nbytes, cached=True)
    assert list(swept) == [TABLE.seconds(n, nbytes, cached=True) for n in rows]


CURVE = AttendCurve(
    overhead=1e-5,
    fresh_overhead=3e-5,
    warm=4e10,
    fresh=1e10,
    row_rate=1e12,
    rows=(16, 64),
    flops_per_second=(1e10, 4e10),
)


def test_one_row_of_attention_reads_and_then_computes_and_several_compute():
    assert CURVE.seconds(1, 0, 4e6, cached=True) == pytest.approx(1e-5 + 1e-4)
    assert CURVE.seconds(1, 0, 4e6, cached=False) == pytest.approx(3e-5 + 4e-4)
    assert CURVE.seconds(1, 1e8, 4e6, cached=False) == pytest.approx(3e-5 + 5e-4)
    assert CURVE.seconds(64, 4e8, 1e15, cached=False) == pytest.approx(1e-5 + 1e-2)


def test_attention_of_an_array_is_looked_up_one_by_one():
    rows, nbytes = np.array([1, 16, 64]), np.array([1e6, 2e6, 3e6])
    swept = CURVE.seconds(rows, 1e9, nbytes, cached=True)
    assert list(swept) == [CURVE.seconds(n, 1e9, b, cached=True) for n, b in zip(rows, nbytes, strict=True)]


@given(SECONDS, POSITIVE, POSITIVE)
def test_a_simple_kernel_takes_its_overhead_and_its_bytes(overhead, throughput, nbytes):
    assert Affine(overhead, throughput).seconds(nbytes) == pytest.approx(overhead + nbytes / throughput)


def test_rows_and_distance_add_to_a_simple_kernel():
    line = Affine(1e-6, 1e10, 5e-6, (1e6, 1e8), (1e10, 1e8), row=1e-7)
    assert line.seconds(1e6, rows=10) == pytest.approx(1e-6 + 1e-6 + 1e-4)
    assert line.seconds(1e6, rows=10, cached=False, distance=1e9) == pytest.approx(5e-6 + 1e-6 + 1e-2)
    assert line.rate(1e7) == pytest.approx(1e9)  # half way, both logarithmic
    assert line.rate(np.array([0.0, 1e7, 1e9])) == pytest.approx([1e10, 1e9, 1e8])


def test_keys_from_memory_take_longer_in_more_heads():
    curve = replace(CURVE, head=1e-6)
    one = {"rows": 1, "flops": 0, "nbytes": 1e6}
    few, many = (curve.seconds(**one, heads=n, cached=False) for n in (4, 14))
    assert many - few == pytest.approx(1e-5)
    assert curve.seconds(**one, heads=14, cached=True) == curve.seconds(**one, heads=4, cached=True)


KERNELS = Kernels(
    reading="cpu",
    isa="avx2",
    threads=2,
    step=6e-5,
    linear={"bf16": TABLE},
    attend={"bf16": CURVE},
    simple={"bf16": {"norm": Affine(1e-5, 3e10)}},
    engine=EngineTimes(1e-4, 1e-5, 1e-9),
)


def test_kernels_are_the_same_after_a_trip_through_a_dictionary():
    assert Kernels.from_dict(KERNELS.to_dict()) == KERNELS
    assert Kernels.from_dict(json.loads(json.dumps(KERNELS.to_dict()))) == KERNELS


@pytest.mark.parametrize("missing", ["reading", "isa", "step", "linear", "attend", "simple", "engine"])
def test_kernels_of_another_version_are_refused(missing):
    raw = KERNELS.to_dict()
    del raw[missing]
    with pytest.raises(InputError, match="ridgeline measure"):
        Kernels.from_dict(raw)


def test_kernels_of_an_unknown_reading_are_refused():
    with pytest.raises(InputError, match=r"reading is 'gpu'.*ridgeline measure"):
        Kernels.from_dict({**KERNELS.to_dict(), "reading": "gpu"})


def test_a_field_that_is_not_known_is_refused():
    raw = KERNELS.to_dict()
    raw["simple"]["bf16"]["norm"]["colour"] = "blue"
    with pytest.raises(InputError, match="colour"):
        Kernels.from_dict(raw)


def test_beyond_the_last_point_time_grows_no_faster_than_the_work():
    """A noisy last point must not carry a prediction away."""
    assert interpolate([1, 10, 11], [1.0, 1.0, 50.0], 110) == pytest.approx(500.0)


def test_a_weight_beyond_the_table_takes_time_in_proportion():
    """Whatever the slope between the last points is: there it is a call's overhead that counts."""
    largest = TABLE.weight_bytes[-1]
    for rows in TABLE.rows:
        last = TABLE.seconds(rows, largest, cached=False)
        assert TABLE.seconds(rows, 5 * largest, cached=False) == pytest.approx(5 * last)


def test_an_engines_step_has_costs_of_its_own_of_its_sequences_and_of_their_logits():
    times = EngineTimes(step=1e-4, sequence=1e-5, logit=1e-9)
    assert times.seconds(0, 32_000) == pytest.approx(1e-4)
    assert times.seconds(8, 32_000) == pytest.approx(1e-4 + 8e-5 + 8 * 32_000e-9)


def test_a_negative_time_is_refused():
    with pytest.raises(InputError, match="engine holds a negative time"):
        Kernels.from_dict({**KERNELS.to_dict(), "engine": {"step": 1e-4, "sequence": -1e-9, "logit": 0.0}})
