"""What analyses take from their callers."""

from enum import StrEnum

import pytest

from ridgeline.analysis.arguments import MOST, choice, config_of, device_of, whole_number
from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.models import load_config


class Goal(StrEnum):
    LATENCY = "latency"
    MEMORY = "memory"


def test_a_name_stands_for_what_it_names():
    assert config_of("gpt2") == load_config("gpt2")
    assert device_of("h100-sxm") == load_device("h100-sxm")


def test_what_is_given_itself_is_taken_as_it_is():
    config, device = load_config("gpt2"), load_device("h100-sxm")
    assert config_of(config) is config
    assert device_of(device) is device


@pytest.mark.parametrize("value", [1, 7, MOST])
def test_a_whole_number_in_range_is_taken(value):
    assert whole_number("batch", value) == value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "batch must be 1 to 1,073,741,824, not 0"),
        (MOST + 1, "batch must be 1 to 1,073,741,824, not 1073741825"),
        (10**50, "not a number of 51 digits"),
        pytest.param(10**5000, "not a number of thousands of digits", id="huge"),
        (True, "batch must be a whole number, not True"),
        (1.5, "batch must be a whole number, not 1.5"),
        ("4", "batch must be a whole number, not '4'"),
    ],
)
def test_any_other_number_is_refused_by_its_name(value, said):
    with pytest.raises(InputError) as caught:
        whole_number("batch", value)
    assert str(caught.value).endswith(said)


def test_a_choice_is_one_of_its_kind():
    assert choice("goal", "memory", Goal) is Goal.MEMORY
    with pytest.raises(InputError, match="goal must be latency or memory, not 'speed'"):
        choice("goal", "speed", Goal)
