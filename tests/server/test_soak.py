"""Many clients at once, some of whom leave: those that stay get their own answers, and nothing is left."""

import asyncio
import random

import pytest

from benchmarks import soak


@pytest.mark.parametrize(("requests", "at_once"), [(60, 16), pytest.param(1000, 64, marks=pytest.mark.slow)])
def test_every_answer_is_right_and_nothing_is_left_over(loaded, requests, at_once):
    draw = random.Random(3)
    cases = soak.cases(loaded, draw)
    with soak.serving(loaded) as (url, server, service):
        found = asyncio.run(soak.soak(url, cases, draw, requests, at_once))
        assert soak.left(server, service).is_clean
        assert service.is_alive
    assert found.total() == requests
    assert found["wrong"] == 0
    assert found["right"] > requests / 2
    assert found["left"] + found["gone"] > 0
