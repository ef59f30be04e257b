"""The mean time of a generation's steps."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.analysis.generation import SAMPLES, mean_of_steps, mean_step


@given(st.integers(1, 5000), st.sampled_from([1, 5, 9, 101, 4001]), st.floats(0, 2), st.floats(0, 1e-3))
def test_a_time_that_is_straight_in_its_context_has_its_true_mean(prompt, steps, at_zero, slope):
    every = [at_zero + slope * (prompt + i) for i in range(steps)]
    found = mean_step(lambda past: at_zero + slope * past, prompt, steps)
    assert found == pytest.approx(sum(every) / steps)


def test_a_long_generations_mean_is_close_for_a_curve():
    every = numpy.arange(100, 4100) ** 2
    assert mean_step(lambda past: past**2, 100, 4000) == pytest.approx(every.mean(), rel=2e-3)


@given(st.integers(1, 5000), st.integers(1, 4000))
def test_one_generation_is_sampled_as_many_are(first, steps):
    def seconds(past):
        return past**1.5 + 3.0

    alone = mean_of_steps(seconds, first, steps)
    assert mean_step(seconds, first, steps) == pytest.approx(alone)
    if steps <= SAMPLES:
        assert alone == pytest.approx(sum(map(seconds, range(first, first + steps))) / steps)


def test_many_generations_at_once_are_each_as_alone():
    prompts, steps = numpy.array([1, 70, 900]), numpy.array([0, 1, 33])
    together = mean_step(lambda past: 1.0 + past, prompts, steps)
    alone = [mean_step(lambda past: 1.0 + past, *one) for one in zip(prompts, steps)]
    assert together == pytest.approx(alone)


def test_a_constant_time_is_its_own_mean():
    assert mean_step(lambda past: 0.25, 10, 7) == pytest.approx(0.25)
