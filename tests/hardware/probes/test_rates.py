import pytest
import torch

from ridgeline.hardware.probes.rates import exp_probes, launch_probe, matrix_probes, trial_rate, vector_probes
from ridgeline.hardware.timing import Schedule, time_probes

ONCE = Schedule(rounds=2, seconds=0.1, calls=1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rates_are_found_and_are_those_of_a_computer(dtype):
    probes = [*matrix_probes(dtype, (64, 128)), *vector_probes(dtype), *exp_probes([dtype]), launch_probe()]
    with torch.inference_mode():
        found = time_probes(probes, ONCE)
    for figure in (f"matrix.{dtype}", f"vector.{dtype}", "exp_rate"):
        assert 1e5 < found.rate(figure) < 1e15
    assert 1e-9 < found.seconds("launch_seconds") < 1e-2


def test_quantised_weights_are_multiplied_in_int8():
    assert {probe.figure for probe in matrix_probes("int4-g32", (64,))} == {"matrix.int8"}


def test_a_square_product_is_two_operations_a_multiply_add():
    assert [probe.work for probe in matrix_probes("fp32", (8, 16))] == [2 * 8**3, 2 * 16**3]


def test_a_trial_tells_a_rate():
    with torch.inference_mode():
        assert trial_rate("fp32") > 1e6
