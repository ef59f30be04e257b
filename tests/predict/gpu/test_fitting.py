"""Fits go where the points are, and stay usual where these say nothing."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.predict.gpu.fitting import Prior, fit_constants, rounded


@dataclass(frozen=True)
class Line:
    start: float
    rate: float
    share: float


PRIORS = {"start": Prior(1.0, 1.0), "rate": Prior(10.0, 1.0), "share": Prior(0.3, 0.5, is_share=True)}
X = np.linspace(1, 100, 30)


def test_what_the_points_say_nothing_of_stays_usual():
    found = fit_constants(Line, PRIORS, lambda c: np.zeros(3))
    assert (found.start, found.rate, found.share) == pytest.approx((1.0, 10.0, 0.3))


@given(start=st.floats(0.5, 2), rate=st.floats(5, 20), share=st.floats(0.2, 0.4))
@settings(max_examples=20)
def test_clean_points_give_their_constants(start, rate, share):
    measured = np.log(start + X / rate + share * np.sqrt(X))
    found = fit_constants(
        Line, PRIORS, lambda c: np.log(c.start + X / c.rate + c.share * np.sqrt(X)) - measured
    )
    fitted = found.start + X / found.rate + found.share * np.sqrt(X)
    assert fitted == pytest.approx(np.exp(measured), rel=0.05)
    assert 0 < found.share < 1


def test_one_outlier_does_not_bend_the_fit():
    measured = np.log(2 + X / 20)
    measured[7] += 2.0
    priors = {"start": PRIORS["start"], "rate": PRIORS["rate"], "share": Prior(0.3, 1e-3, is_share=True)}
    found = fit_constants(Line, priors, lambda c: np.log(c.start + X / c.rate) - measured)
    assert found.start == pytest.approx(2, rel=0.05)
    assert found.rate == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize("prior", PRIORS.values())
def test_a_prior_goes_in_and_out(prior):
    assert prior.outward(prior.inward(0.4)) == pytest.approx(0.4)


def test_constants_are_rounded_to_what_a_fit_can_know():
    assert rounded(Line(1.23456789, 12345.6, 0.000123456)) == Line(1.235, 12350.0, 0.0001235)
