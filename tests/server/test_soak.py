"""Many clients at once, some of whom leave: those that stay get their own answers, and nothing is left."""

import asyncio
import random
import threading

import pytest

from benchmarks import soak
from ridgeline.engine.speculation.choice import choose


@pytest.mark.parametrize(("requests", "at_once"), [(60, 16), pytest.param(1000, 64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("speculate", ["off", "ngram", "draft:demo-draft"])
def test_every_answer_is_right_and_nothing_is_left_over(loaded, requests, at_once, speculate):
    """With a draft in a thread of its own, too."""
    draw = random.Random(3)
    cases = soak.cases(loaded, draw)
    speculator = choose(speculate, loaded, draft_threads=1 if ":" in speculate else None)
    with soak.serving(loaded, speculator) as (url, server, service):
        found = asyncio.run(soak.soak(url, cases, draw, requests, at_once))
        assert soak.left(server, service).is_clean
        assert service.is_alive
    assert found.total() == requests
    assert found["wrong"] == 0
    assert found["right"] > requests / 2
    assert found["left"] + found["gone"] > 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ridgeline-")]
    if ":" in speculate:
        assert speculator.proposer.proposer.pool.available == speculator.proposer.proposer.pool.blocks
