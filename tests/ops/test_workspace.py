"""Matrices of a recorded pass share room only when they don't live at once."""

from hypothesis import given
from hypothesis import strategies as st

from ridgeline.ops.workspace import Use, place


@st.composite
def uses(draw):
    """Things in the order of their first calls."""
    spans = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8), st.integers(1, 9)), max_size=30))
    return [Use(size, first, first + length) for first, length, size in sorted(spans)]


@given(uses())
def test_what_lives_at_once_lies_apart(uses):
    offsets, size = place(uses)
    for i, (a, use) in enumerate(zip(offsets, uses)):
        assert a >= 0
        assert a + use.size <= size
        for b, other in zip(offsets[:i], uses):
            if other.last >= use.first:
                assert b + other.size <= a or a + use.size <= b


@given(uses())
def test_no_more_room_than_all_of_them_take(uses):
    assert place(uses)[1] <= sum(use.size for use in uses)


def test_room_is_used_again():
    chain = [Use(10, i, i + 1) for i in range(20)]
    assert place(chain)[1] == 20


def test_a_result_may_take_the_place_of_what_it_is_made_from():
    offsets, size = place([Use(10, 0, 1), Use(10, 1, 2, over=0), Use(10, 2, 3, over=1)])
    assert offsets == [0, 0, 0]
    assert size == 10


def test_the_place_that_was_taken_over_stays_taken():
    offsets, _ = place([Use(10, 0, 1), Use(10, 1, 5, over=0), Use(10, 2, 3)])
    assert offsets == [0, 0, 10]
