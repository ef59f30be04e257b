"""Predicting for the memory of the moment, and timing while it stays."""

from dataclasses import replace

import pytest

from ridgeline.analysis.check import PhaseCheck
from ridgeline.analysis.memory_now import ATTEMPTS, MemoryNow
from ridgeline.hardware.kernels import Kernels
from tests.analysis.test_check import KERNELS, MACHINE

KNOWN = replace(MACHINE, kernels=replace(KERNELS, memory=4e10).to_dict())


class Predicted:
    """As long as reading 4e10 bytes takes."""

    def __init__(self, device):
        self.seconds = 4e10 / Kernels.from_dict(device.kernels).memory


def time(prediction):
    return PhaseCheck("decode", 1, 1, prediction.seconds, 1.0, 0.0, ())


def timed(*rates, device=KNOWN, **options):
    """The phase, and how many readings were made."""
    left = list(rates)
    phase = MemoryNow(device, read=lambda: left.pop(0), **options).timed(Predicted, time)
    return phase, len(rates) - len(left)


def test_a_phase_is_predicted_at_the_rate_before_it():
    phase, _ = timed(2e10, 2e10)
    assert phase.predicted == pytest.approx(2.0)
    assert phase.memory.measured == 4e10
    assert (phase.memory.before, phase.memory.after, phase.memory.moved) == (2e10, 2e10, False)


def test_a_phase_in_which_memory_moved_is_predicted_and_timed_anew():
    phase, readings = timed(2e10, 4e10, 4e10, 4.1e10, 1.0)
    assert readings == 4
    assert phase.predicted == pytest.approx(1.0)
    assert not phase.memory.moved


def test_memory_that_never_rests_is_reported():
    phase, readings = timed(*[2e10, 4e10] * ATTEMPTS, 1.0)
    assert readings == 2 * ATTEMPTS
    assert phase.memory.moved


def test_the_file_as_it_is_reads_nothing():
    for device, options in ((KNOWN, {"as_measured": True}), (MACHINE, {})):
        memory = MemoryNow(device, read=lambda: 1 / 0, **options)
        assert memory.read() is None
        assert memory.device(None) is device
    phase = MemoryNow(KNOWN, as_measured=True, read=lambda: 1 / 0).timed(Predicted, time)
    assert (phase.predicted, phase.memory) == (1.0, None)
