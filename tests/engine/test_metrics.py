"""What serving is judged by: each rate by its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.engine.metrics import Served, distribution, summarise


def test_latencies_by_their_definitions():
    request = Served(arrival=10.0, prompt=7, times=(12.0, 12.5, 14.0))
    assert (request.ttft, request.tpot, request.gaps, request.total) == (2.0, 1.0, [0.5, 1.5], 4.0)


def test_a_single_token_has_no_time_per_further_token():
    request = Served(0.0, 3, (1.0,))
    assert (request.tpot, request.gaps) == (None, [])
    found = summarise([request])
    assert (found.tpot, found.itl) == (None, None)


def test_throughput_runs_from_the_first_arrival_to_the_last_token():
    found = summarise([Served(5.0, 100, (6.0, 7.0)), Served(2.0, 50, (4.0, 12.0))])
    assert (found.seconds, found.output_tokens, found.prompt_tokens) == (10.0, 4, 150)
    assert found.output_tokens_per_second == pytest.approx(0.4)
    assert found.tokens_per_second == pytest.approx(15.4)
    assert found.requests_per_second == pytest.approx(0.2)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_are_those_of_numpy(values):
    found = distribution(values)
    assert [found.p50, found.p90, found.p99] == pytest.approx(np.percentile(values, [50, 90, 99]))
    assert found.mean == pytest.approx(np.mean(values))
