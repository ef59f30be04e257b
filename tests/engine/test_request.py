"""Sampling options, requests, and the state of a sequence."""

import pytest

from ridgeline.engine.request import Request
from ridgeline.engine.sampling import GREEDY, SEEDS, BeamSearch, Sampling
from ridgeline.engine.sequence import Sequence, common_prefix
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
        ("frequency_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("presence_penalty", None),
        ("logit_bias", 3),
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


@pytest.mark.parametrize("bias", [{-1: 1}, {"a": 1}, {3: 101}, {3: None}, {3: float("nan")}])
def test_a_bias_out_of_range_is_refused(bias):
    with pytest.raises(InputError, match=r"^logit_bias of .*, expected a token id and -100 to 100"):
        Sampling(logit_bias=bias)


def test_a_bias_can_be_compared_and_hashed():
    assert Sampling(logit_bias={3: 1.0}) == Sampling(logit_bias=((3, 1.0),))
    assert len({Sampling(logit_bias={3: 1.0}), Sampling(logit_bias={3: 2.0})}) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("width", 1), ("width", 2.5), ("length_penalty", None), ("early_stopping", "always")],
)
def test_a_beam_option_out_of_range_is_refused_by_name(option, value):
    with pytest.raises(InputError, match=f"^beam {option} is .*, expected"):
        BeamSearch(**{"width": 2, option: value})


# -- state -----------------------------------------------------------------------------------------


def test_a_sequence_catches_up_with_its_prompt_then_with_its_output():
    sequence = Sequence(Request((5, 6, 7), max_tokens=2))
    assert sequence.pending == 3
    sequence.computed = 3
    sequence.accept(8)
    assert (sequence.pending, sequence.output, sequence.finish_reason) == (1, [8], None)
    sequence.computed = 4
    sequence.accept(9)
    assert (sequence.output, sequence.finish_reason) == ([8, 9], "length")


def test_the_last_output_needs_no_room_in_the_cache():
    assert Request((5, 6, 7), max_tokens=1).cached_at_most == 3


def test_beams_need_the_prompts_full_blocks_once_and_the_rest_each():
    request = Request((5,) * 10, max_tokens=7, beams=BeamSearch(3))
    assert request.cached_at_most == 16
    assert request.blocks_at_most(4) == 2 + 3 * 2
    assert Request((5,) * 10, max_tokens=7).blocks_at_most(4) == 4


def test_a_stop_token_ends_a_sequence_and_is_kept():
    sequence = Sequence(Request((5,), max_tokens=1, stop_ids=frozenset({4})))
    sequence.accept(4)
    assert (sequence.output, sequence.finish_reason) == ([4], "stop")


def test_every_sample_has_a_seed_of_its_own():
    request = Request((5,), 1, Sampling(seed=SEEDS - 1), samples=2)
    assert [Sequence(request, sample).sampling.seed for sample in range(2)] == [SEEDS - 1, 0]


def test_a_fork_goes_its_own_way():
    sequence = Sequence(Request((5, 6), max_tokens=4))
    sequence.hashes(1, 2)
    child = sequence.fork(1)
    child.accept(7)
    child.accept(8)
    sequence.accept(9)
    sequence.accept(9)
    assert (sequence.tokens, child.tokens) == ([5, 6, 9, 9], [5, 6, 7, 8])
    mine, its = sequence.hashes(2, 2), child.hashes(2, 2)
    assert (mine[0] == its[0], mine[1] == its[1]) == (True, False)


@pytest.mark.parametrize(("a", "b", "n"), [("abc", "abd", 2), ("abc", "ab", 2), ("", "a", 0), ("b", "a", 0)])
def test_the_common_prefix(a, b, n):
    assert common_prefix(a, b) == common_prefix(b, a) == n
