"""Quantities read as an engineer would write them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.report.units import count, nbytes, percent, rate, seconds, signed_percent

SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (seconds(0.0123), "12.3 ms"),
        (seconds(1.05), "1.05 s"),
        (seconds(0.9999), "1.00 s"),
        (seconds(3e-6), "3.00 µs"),
        (seconds(412.3), "412 s"),
        (seconds(0), "0 ns"),
        (nbytes(512), "512 B"),
        (nbytes(80e9), "80.0 GB"),
        (nbytes(999.9e6), "1.00 GB"),
        (rate(989.4e12, "FLOP"), "989 TFLOP/s"),
        (rate(3.35e12, "B"), "3.35 TB/s"),
        (count(12345), "12,345"),
        (count(1234.6), "1,235"),
        (count(0.95), "0.950"),
        (count(1.1e9), "1.10B"),
        (signed_percent(0.032), "+3.2 %"),
        (signed_percent(-0.12), "\N{MINUS SIGN}12 %"),
        (signed_percent(12.5), "+1,250 %"),
        (signed_percent(-0.0001), "0.0 %"),
        (percent(0.57), "57 %"),
    ],
)
def test_quantities_have_three_digits_and_a_unit_that_fits(said, expected):
    assert said == expected


@given(st.floats(1e-9, 1e6))
def test_a_duration_can_be_read_back_to_half_a_per_cent(x):
    digits, unit = seconds(x).split(" ")
    assert float(digits.replace(",", "")) * SECONDS[unit] == pytest.approx(x, rel=0.00501)


@given(st.floats(1, 1e19))
def test_a_rate_can_be_read_back_to_half_a_per_cent(x):
    digits, prefix = re.fullmatch(r"([\d.,]+) (\w?)FLOP/s", rate(x, "FLOP")).groups()
    assert float(digits.replace(",", "")) * PREFIXES[prefix] == pytest.approx(x, rel=0.00501)


@given(st.integers(0, 999_999))
def test_a_count_below_a_million_is_exact(n):
    assert int(count(n).replace(",", "")) == n
