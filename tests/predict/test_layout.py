"""Layouts: where the ranks of each axis lie, and pipelines of stages against a simulation of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.predict.layout import AXES, Layout
from ridgeline.predict.pipeline import Cost, PassCosts


@given(
    tensor=st.sampled_from([1, 2, 4, 8, 16]),
    context=st.sampled_from([1, 2, 4]),
    pipeline=st.sampled_from([1, 2, 4]),
    data=st.sampled_from([1, 2]),
    per_node=st.sampled_from([1, 2, 4, 8]),
)
def test_groups_lie_where_numbering_the_devices_puts_them(tensor, context, pipeline, data, per_node):
    """By brute force: device numbers, with the innermost axis first."""
    layout = Layout(tensor, pipeline, data, context)
    sizes = [getattr(layout, axis) for axis in AXES]
    coordinates = []
    for device in range(layout.devices):
        rest, place = device, []
        for size in sizes:
            rest, own = divmod(rest, size)
            place.append(own)
        coordinates.append(tuple(place))
    for index, axis in enumerate(AXES):
        groups = {}
        for device, place in enumerate(coordinates):
            others = place[:index] + place[index + 1 :]
            groups.setdefault(others, []).append(device // per_node)
        most_in_a_node = max(max(nodes.count(node) for node in nodes) for nodes in groups.values())
        found = layout.group(axis, per_node)
        assert (found.ranks, found.per_node) == (sizes[index], most_in_a_node)


def test_a_layout_is_written_as_the_field_abbreviates_it():
    assert str(Layout(8, 4, 2)) == "tp8 pp4 dp2"
    assert str(Layout()) == "one device"
    assert str(Layout(context=4, context_kind="ulysses")) == "cp4 (ulysses)"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tensor": 0}, "tensor must be a whole number"),
        ({"pipeline": 2.0}, "pipeline must be a whole number"),
        ({"data": True}, "data must be a whole number"),
        ({"context_kind": "star"}, "context_kind must be ring or ulysses or allgather"),
    ],
)
def test_what_is_no_layout_is_refused(fields, said):
    with pytest.raises(InputError, match=said):
        Layout(**fields)


def simulated(stages: list[float], micro_batches: int) -> float:
    """A pipeline, event by event: a stage begins when it is free and the one before has handed over."""
    free = [0.0] * len(stages)
    for _ in range(micro_batches):
        ready = 0.0
        for number, seconds in enumerate(stages):
            free[number] = ready = max(free[number], ready) + seconds
    return free[-1]


@given(stages=st.integers(1, 12), micro_batches=st.integers(1, 40))
def test_equal_stages_wait_p_minus_1_of_m_plus_p_minus_1(stages, micro_batches):
    """The bubble of GPipe (Huang et al., 2019) and of Megatron-LM (Narayanan et al., 2021)."""
    taken = simulated([1.0] * stages, micro_batches)
    assert 1 - micro_batches / taken == pytest.approx((stages - 1) / (micro_batches + stages - 1))


@given(
    seconds=st.lists(st.floats(0.1, 5), min_size=1, max_size=8),
    micro_batches=st.integers(1, 20),
)
def test_a_pass_takes_all_stages_once_and_the_slowest_for_every_further_micro_batch(seconds, micro_batches):
    expected = sum(seconds) + (micro_batches - 1) * max(seconds)
    assert simulated(seconds, micro_batches) == pytest.approx(expected)


LAYER = Cost(seconds=1.0, communication=0.25, weights=10.0, layers=1)
WINDOWED = Cost(seconds=0.5, communication=0.25, weights=10.0, layers=1)


def costs(runs=((6, LAYER),)) -> PassCosts:
    return PassCosts(Cost(0.5, 0.0, 7.0), tuple(runs), Cost(2.0, 0.5, 7.0), tied=7.0, entry_bytes=1.0)


def test_stages_share_the_layers_and_the_ends():
    first, middle, last = costs().stages(3)
    assert [stage.layers for stage in (first, middle, last)] == [2, 2, 2]
    assert [stage.seconds for stage in (first, middle, last)] == [2.5, 2.0, 4.0]
    assert [stage.weights for stage in (first, middle, last)] == [27.0, 20.0, 27.0]


def test_one_stage_holds_a_tied_table_once():
    (whole,) = costs().stages(1)
    assert whole.weights == 60 + 7
    assert whole.seconds == 6 + 0.5 + 2
    assert whole.communication == pytest.approx(6 * 0.25 + 0.5)


@given(pipeline=st.integers(1, 9), runs=st.lists(st.sampled_from([LAYER, WINDOWED]), min_size=9, max_size=30))
def test_no_layer_is_lost_or_run_twice(pipeline, runs):
    found = costs([(1, layer) for layer in runs]).stages(pipeline)
    assert sum(stage.layers for stage in found) == len(runs)
    assert sum(stage.seconds for stage in found) == pytest.approx(sum(layer.seconds for layer in runs) + 2.5)
    assert max(stage.layers for stage in found) - min(stage.layers for stage in found) <= 1
