"""Simulated time: what a schedule gives when every step takes as long as it is told."""

from dataclasses import dataclass

import pytest

from ridgeline.engine.arrivals import Arrival, Lengths, poisson
from ridgeline.engine.blocks import BlockPool
from ridgeline.engine.plan import Limits
from ridgeline.engine.simulate import simulate
from ridgeline.errors import InputError


@dataclass
class Constant:
    """A second a step, and so much a row."""

    a_row: float = 0.0

    def seconds(self, plan):
        assert plan.chunks
        return 1.0 + self.a_row * plan.rows


def run(arrivals, *, blocks=1000, block_size=4, cost=None, **limits):
    return simulate(arrivals, BlockPool(blocks, block_size), Limits(**limits), cost or Constant())


def test_a_request_alone_takes_a_step_for_its_prompt_and_one_for_each_further_token():
    found = run([Arrival(5.0, 20, 4)])
    assert found.serving.ttft.mean == pytest.approx(1.0)
    assert found.serving.tpot.mean == found.serving.itl.p99 == pytest.approx(1.0)
    assert found.serving.end_to_end.mean == found.serving.seconds == pytest.approx(4.0)
    assert (found.steps, found.batch, found.preemptions, found.recomputed) == (4, 1.0, 0, 0)


def test_a_prompt_is_cut_to_the_budget():
    assert run([Arrival(0.0, 20, 1)], token_budget=8).serving.ttft.mean == pytest.approx(3.0)


def test_with_one_seat_requests_are_served_one_after_another():
    found = run([Arrival(0.0, 4, 3), Arrival(0.0, 4, 3), Arrival(10.0, 4, 1)], sequences=1)
    assert [found.serving.ttft.p50, found.serving.end_to_end.p50] == pytest.approx([1.0, 3.0])
    assert found.serving.end_to_end.p99 == pytest.approx(6.0, rel=0.02)
    assert found.serving.seconds == pytest.approx(11.0)
    assert found.busy_seconds == pytest.approx(7.0)


def test_steps_take_what_the_cost_model_says():
    found = run([Arrival(0.0, 20, 2)], cost=Constant(a_row=0.1))
    assert found.serving.ttft.mean == pytest.approx(1 + 20 * 0.1)
    assert found.serving.tpot.mean == pytest.approx(1 + 0.1)


def test_occupancy_is_the_share_of_blocks_in_use():
    found = run([Arrival(0.0, 8, 1)], blocks=10)
    assert (found.occupancy, found.peak_occupancy) == pytest.approx((0.2, 0.2))


def test_a_cache_that_is_too_small_for_all_preempts_and_computes_again():
    arrivals = [Arrival(0.0, 8, 15), Arrival(0.0, 8, 15)]
    found = run(arrivals, blocks=7, headroom=0, prefix_cache=False)
    assert found.preemptions > 0
    assert found.recomputed > 0
    assert found.serving.output_tokens == 30


def test_every_request_is_answered_in_full():
    arrivals = poisson(2.0, 300, Lengths(1, 60), Lengths(1, 40))
    found = run(arrivals, blocks=60, token_budget=32, sequences=12)
    assert found.serving.requests == 300
    assert found.serving.output_tokens == sum(arrival.output for arrival in arrivals)
    assert found.serving.prompt_tokens == sum(arrival.prompt for arrival in arrivals)


def test_headroom_saves_preemptions():
    arrivals = poisson(float("inf"), 60, Lengths(1, 60), Lengths(20, 60))
    greedy, careful = (run(arrivals, blocks=120, headroom=n, prefix_cache=False) for n in (0, 2))
    assert careful.preemptions < greedy.preemptions


def test_a_request_that_never_fits_is_refused():
    with pytest.raises(InputError, match="takes 10 cache blocks of 4 tokens"):
        run([Arrival(0.0, 30, 11)], blocks=9)
