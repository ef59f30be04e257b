"""The choice of points spreads over all sizes, and is the same every time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.predict.calibrate.choose import choose
from ridgeline.predict.gpu.kinds import Points
from ridgeline.validation.profiles import profiled_points

MEASURED = profiled_points("a100-80gb")


def gemm_points(sizes):
    m, n, k = np.array(sizes, float).T
    return Points("gemm", {"m": m, "n": n, "k": k}, 1e-6 * (m + n + k))


@given(
    sizes=st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=40),
    most=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_the_order_of_the_points_does_not_matter(sizes, most, seed):
    points = gemm_points(sizes)
    chosen = choose(points, most)
    assert len(set(chosen.tolist())) == len(chosen) == min(most, len(sizes))
    mixed = np.random.default_rng(seed).permutation(len(sizes))
    again = points.take(mixed).take(choose(points.take(mixed), most))
    for name in points.columns:
        assert again[name].tolist() == points.take(chosen)[name].tolist()


def test_measured_points_are_covered_from_end_to_end():
    points = MEASURED["gemm"]
    chosen = points.take(choose(points, 40))
    assert chosen["m"].min() <= 2
    assert chosen["m"].max() >= 4000
    assert len(set(zip(chosen["n"], chosen["k"], strict=True))) >= 12  # of 16 shapes
    assert (chosen["m"] <= 64).sum() >= 4


def test_every_kernel_is_among_the_chosen():
    points = MEASURED["elementwise"]
    assert set(points.take(choose(points, 12))["op"]) == set(points["op"])


def test_more_points_extend_the_choice():
    points = MEASURED["gemm"]
    assert choose(points, 40)[:20].tolist() == choose(points, 20).tolist()


@pytest.mark.parametrize("most", [1, 5])
def test_equal_points_are_chosen_apart(most):
    assert len(set(choose(gemm_points([(4, 4, 4)] * 5), most))) == most
