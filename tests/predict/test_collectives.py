"""Times of collectives: against brute force, against published bounds, and against measured A100 nodes."""

from dataclasses import fields, replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.predict.calibrate.choose import choose
from ridgeline.predict.collectives import (
    COLLECTIVES,
    CollectiveConstants,
    Links,
    algorithms,
    chosen,
    constants_of,
    seconds,
)
from ridgeline.predict.gpu.collective import BEGIN, KIND
from ridgeline.predict.gpu.fitting import rounded
from ridgeline.validation.profiles import profiled_points

LINKS = Links(300e9, 25e9)
#: No latency, all of the bandwidth: what the data alone takes.
PURE = CollectiveConstants(
    **{f.name: 0.0 for f in fields(CollectiveConstants) if f.name.endswith(("start", "hop"))},
    **{f.name: 1.0 for f in fields(CollectiveConstants) if f.name.endswith(("link", "network", "sharing"))},
    ports=8.0,
)


DEVICE = load_device("a100-80gb")


def error(constants, points) -> float:
    return float(numpy.mean(numpy.abs(KIND.seconds(DEVICE, constants, points) / points.seconds - 1)))


@pytest.fixture(scope="module")
def measured():
    """Points to calibrate with, twelve beside those of other kinds, and all others."""
    points = profiled_points("a100-80gb")["collective"]
    few = choose(points, KIND.share)
    rest = numpy.ones(len(points), bool)
    rest[few] = False
    return points.take(few), points.take(rest)


# -- measured ------------------------------------------------------------------------------------


def test_collectives_calibrated_with_twelve_points_are_within_15_percent_of_all_others(measured):
    few, judged = measured
    assert (len(few), len(judged)) == (12, 2988)
    found = KIND.fit(DEVICE, few)
    assert error(found, judged) < 0.15
    assert {str(c) for c in judged["collective"]} == {"all_reduce", "send_recv"}


def test_the_catalogue_holds_what_calibration_gives(measured):
    assert rounded(KIND.fit(DEVICE, measured[0])) == constants_of(DEVICE)
    assert constants_of(load_device("h100-sxm")) == CollectiveConstants()


def test_points_with_their_times_mixed_up_do_not_calibrate(measured):
    few, judged = measured
    shuffled = replace(few, seconds=numpy.random.default_rng(1).permutation(few.seconds))
    assert error(KIND.fit(DEVICE, shuffled), judged) > 0.5


def test_what_is_usual_does_not_know_a_network_that_reaches_a_third_of_its_datasheet(measured):
    _, judged = measured
    inside = judged.take(judged["ranks"] == judged["per_node"])
    assert error(CollectiveConstants(), judged) > 0.35
    assert error(CollectiveConstants(), inside) < 0.25


def test_the_datasheet_alone_takes_less_than_was_measured(measured):
    _, judged = measured
    assert numpy.mean(KIND.roofline(DEVICE, judged) < judged.seconds) > 0.999


def test_what_the_points_do_not_tell_of_stays_where_the_fit_began(measured):
    points = measured[1]
    alone = points.take((points["collective"] == "send_recv") & (points["per_node"] == 2))
    alone = alone.take(numpy.arange(0, len(alone), 60))
    found = KIND.fit(DEVICE, alone)
    for name in ("bulk_network", "bulk_network_hop", "reduce_link", "ports"):
        assert getattr(found, name) == pytest.approx(getattr(BEGIN, name))
    assert error(found, alone) < error(BEGIN, alone)


# -- by hand -------------------------------------------------------------------------------------


def ring_by_hand(ranks: int, per_node: int, nbytes: float, port: float, link: float) -> float:
    """A ring all-reduce, chunk by chunk and step by step: every rank sends one chunk a step; the slowest hop
    makes the step."""
    chunk, time = nbytes / ranks, 0.0
    for _ in range(2 * (ranks - 1)):
        hops = []
        for rank in range(ranks):
            crosses = rank // per_node != (rank + 1) % ranks // per_node
            hops.append(chunk / (port * per_node if crosses else link))
        time += max(hops)
    return time


@given(
    ranks=st.sampled_from([2, 4, 8, 16, 32]),
    per_node=st.sampled_from([1, 2, 4, 8]),
    nbytes=st.floats(1, 1e9),
)
def test_a_ring_is_as_long_as_its_steps(ranks, per_node, nbytes):
    per_node = min(per_node, ranks)
    found = algorithms(PURE, LINKS, "all_reduce", nbytes, ranks, per_node)["ring, bulk"]
    assert found == pytest.approx(ring_by_hand(ranks, per_node, nbytes, LINKS.network, LINKS.link))


@given(ranks=st.sampled_from([2, 4, 8]), nbytes=st.floats(1, 1e9))
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(ranks, nbytes):
    def ring(collective):
        return algorithms(PURE, LINKS, collective, nbytes, ranks, ranks)["ring, bulk"]

    assert ring("all_reduce") == pytest.approx(ring("reduce_scatter") + ring("all_gather"))


@given(
    collective=st.sampled_from(COLLECTIVES),
    nbytes=st.floats(1, 1e9),
    ranks=st.sampled_from([2, 4, 8, 16, 64]),
    per_node=st.sampled_from([1, 2, 8]),
)
def test_no_collective_beats_the_bytes_that_a_rank_must_send_or_receive(collective, nbytes, ranks, per_node):
    per_node = min(per_node, ranks)
    least = (
        {
            "all_reduce": 2 * (ranks - 1) / ranks,
            "all_gather": (ranks - 1) / ranks,
            "reduce_scatter": (ranks - 1) / ranks,
            "all_to_all": (ranks - 1) / ranks,
            "send_recv": 1.0,
        }[collective]
        * nbytes
        / max(LINKS.link, LINKS.network * per_node)
    )
    # A tree over two nodes sends every byte once over their ports: half of it from each side.
    least /= 2 if collective == "all_reduce" else 1
    assert seconds(PURE, LINKS, collective, nbytes, ranks, per_node) >= least * (1 - 1e-9)


@given(
    collective=st.sampled_from(COLLECTIVES),
    nbytes=st.floats(1, 1e8),
    ranks=st.sampled_from([2, 4, 8, 16]),
    per_node=st.sampled_from([1, 2, 8]),
)
def test_more_bytes_never_take_less(collective, nbytes, ranks, per_node):
    one, two = (
        seconds(CollectiveConstants(), LINKS, collective, n, ranks, per_node) for n in (nbytes, 2 * nbytes)
    )
    assert one <= two <= 2 * one


def test_arrays_give_what_numbers_give():
    sizes, ranks, per_node = numpy.array([1e3, 1e6, 1e8]), numpy.array([2, 8, 16]), numpy.array([1, 8, 8])
    for collective in COLLECTIVES:
        found = seconds(CollectiveConstants(), LINKS, collective, sizes, ranks, per_node)
        each = [
            seconds(CollectiveConstants(), LINKS, collective, n, r, p)
            for n, r, p in zip(sizes, ranks.tolist(), per_node.tolist(), strict=True)
        ]
        assert found.tolist() == pytest.approx(each)


def test_one_rank_has_nobody_to_talk_to():
    for collective in COLLECTIVES:
        assert seconds(CollectiveConstants(), LINKS, collective, 1e6, 1, 1) == 0


def test_small_tensors_go_in_one_shot_and_large_ones_round_a_ring():
    assert chosen(CollectiveConstants(), LINKS, "all_reduce", 1e3, 8, 8) == "one-shot, small"
    assert chosen(CollectiveConstants(), LINKS, "all_reduce", 1e9, 8, 8) == "ring, bulk"


def test_groups_that_share_a_nodes_ports_wait_for_each_other():
    shared = CollectiveConstants(port_sharing=2.0, ports=4.0)
    alone, together = (seconds(shared, LINKS, "send_recv", 1e9, 2, 1, concurrent) for concurrent in (1, 8))
    assert together == pytest.approx(2 * alone, rel=0.01)  # eight devices through four ports


def test_an_unknown_collective_is_refused():
    with pytest.raises(InputError, match="unknown collective 'gossip'"):
        seconds(CollectiveConstants(), LINKS, "gossip", 1e6, 2, 2)
