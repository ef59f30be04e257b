"""A remembered step time is the predicted one, within the rounding of its lengths."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.analysis import step_cost
from ridgeline.analysis.step import predict_step
from ridgeline.analysis.step_cost import StepCost
from ridgeline.engine.plan import Chunk, StepPlan
from ridgeline.hardware import load_device
from ridgeline.models import declare, load_config
from ridgeline.ops.protocol import Span

MODEL, DEVICE = declare(load_config("llama-3-8b")), load_device("rtx-4090")


def plan(*spans):
    return StepPlan(tuple(Chunk(None, rows, past, (), 1) for rows, past in spans), ())


def exactly(*spans):
    return predict_step(MODEL, DEVICE, [Span(rows, past) for rows, past in spans]).seconds


@pytest.mark.parametrize(
    "spans", [[(1, 20)], [(1, 20)] * 7, [(24, 0)], [(24, 8), (24, 8)], [(1, 30), (16, 0)]]
)
def test_small_numbers_are_taken_as_they_are(spans):
    assert StepCost(MODEL, DEVICE).seconds(plan(*spans)) == pytest.approx(exactly(*spans), rel=1e-12)


decodes = st.lists(st.tuples(st.just(1), st.integers(1, 7000)), max_size=60)
prefills = st.lists(st.tuples(st.integers(2, 900), st.integers(0, 4000)), max_size=5)


@settings(max_examples=60)
@given(decodes, prefills)
def test_mixed_steps_are_within_a_few_per_cent(decoding, prefilling):
    spans = decoding + prefilling
    if spans:
        assert StepCost(MODEL, DEVICE).seconds(plan(*spans)) == pytest.approx(exactly(*spans), rel=0.05)


def test_rounding_up_does_not_leave_the_window():
    window = MODEL.config.window
    assert StepCost(MODEL, DEVICE).seconds(plan((1, window - 1), (100, window - 100))) > 0


def test_the_cache_format_counts():
    long = plan(*[(1, 6000)] * 32)
    assert StepCost(MODEL, DEVICE, "fp8").seconds(long) < StepCost(MODEL, DEVICE).seconds(long)


def test_alike_steps_are_predicted_once(monkeypatch):
    calls = []
    monkeypatch.setattr(step_cost, "predict_step", lambda *a, **o: calls.append(a) or predict_step(*a, **o))
    cost = StepCost(MODEL, DEVICE)
    for past in range(4000, 4060):
        cost.seconds(plan((1, past)))
    assert len(calls) <= 2
