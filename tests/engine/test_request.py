"""Sampling options and the state of a request."""

import pytest

from ridgeline.engine.request import GREEDY, Request, Sampling
from ridgeline.errors import InputError


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 1e-9),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", None),
    ],
)
def test_an_option_out_of_range_is_refused_by_name_with_its_range(option, value):
    with pytest.raises(InputError, match=rf"^{option} is .*, expected .*\d") as caught:
        Sampling(**{option: value})
    assert "\n" not in str(caught.value)


def test_temperature_zero_is_greedy():
    assert GREEDY.greedy
    assert Sampling(temperature=0).greedy
    assert not Sampling().greedy


def test_a_request_catches_up_with_its_prompt_then_with_its_output():
    request = Request((5, 6, 7), max_tokens=2)
    assert request.pending == 3
    request.computed = 3
    request.accept(8)
    assert (request.pending, request.output, request.finish_reason) == (1, [8], None)
    request.computed = 4
    request.accept(9)
    assert (request.output, request.finish_reason) == ([8, 9], "length")


def test_the_last_output_needs_no_room_in_the_cache():
    assert Request((5, 6, 7), max_tokens=1).cached_at_most == 3


def test_a_stop_token_ends_a_request_and_is_kept():
    request = Request((5,), max_tokens=1, stop_ids=frozenset({4}))
    request.accept(4)
    assert (request.output, request.finish_reason) == ([4], "stop")
