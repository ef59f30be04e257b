"""What the engine takes beside the model: found from three kinds of steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.hardware.kernels import EngineTimes
from ridgeline.hardware.probes.engine import FEW_LOGITS, MANY_LOGITS, ONE, engine_probes, read_engine
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import Timing, Timings

SHAPES = (ONE, FEW_LOGITS, MANY_LOGITS)


def read(seconds):
    figures = (f"kernels.engine[{sequences}, {vocab}]" for sequences, vocab in SHAPES)
    return read_engine(Timings(zip(figures, (Timing(s, 0.0) for s in seconds), strict=True)))


def test_every_call_is_a_step_of_all_sequences():
    probes = engine_probes(Ring(1 << 20))
    with torch.inference_mode():
        for probe, (sequences, vocab) in zip(probes, SHAPES, strict=True):
            assert probe.figure == f"kernels.engine[{sequences}, {vocab}]"
            for _ in range(3):
                probe.prepare()
                events = probe.call()
                assert len(events) == sequences
                assert all(event.result is None for event in events)


times = st.floats(0, 1e-3)


@given(times, times, st.floats(0, 1e-7))
def test_the_times_are_those_that_the_steps_were_made_of(step, sequence, logit):
    made_of = EngineTimes(step, sequence, logit)
    found = read([made_of.seconds(*shape) for shape in SHAPES])
    for shape in ((1, 32_000), (40, 128_000)):
        assert found.seconds(*shape) == pytest.approx(made_of.seconds(*shape), rel=1e-6, abs=1e-9)


@given(st.lists(st.floats(1e-6, 1e-2), min_size=3, max_size=3))
def test_noise_makes_no_negative_times(seconds):
    found = read(seconds)
    assert min(found.step, found.sequence, found.logit) >= 0
