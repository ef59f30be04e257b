"""A remembered step time is the predicted one, within the rounding of its lengths."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.analysis import step_cost
from ridgeline.analysis.step import predict_step, trace_step
from ridgeline.analysis.step_cost import StepCost, cost_here
from ridgeline.engine.plan import Chunk, StepPlan
from ridgeline.engine.steps import StepShape
from ridgeline.hardware import load_device, this_machine_file
from ridgeline.hardware.kernels import EngineTimes
from ridgeline.loading import Loaded
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.cpu import Cpu
from ridgeline.predict import predict
from ridgeline.predict.roofline import resource_seconds
from ridgeline.weights.generation import GenerationDefaults
from ridgeline.weights.pack import random_packed
from tests.ops.small_models import small

MODEL, DEVICE = declare(load_config("llama-3-8b")), load_device("rtx-4090")


def plan(*spans):
    return StepPlan(tuple(Chunk(None, rows, past, (), 1) for rows, past in spans), ())


def exactly(*spans, tier=None):
    return predict_step(MODEL, DEVICE, [Span(rows, past) for rows, past in spans], tier=tier).seconds


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
        found = StepCost(MODEL, DEVICE, tier="datasheet").seconds(plan(*spans))
        assert found == pytest.approx(exactly(*spans, tier="datasheet"), rel=0.05)


def test_where_sequences_wait_for_each_other_mixed_steps_are_so_on_average():
    """On a GPU a step waits for its slowest multiprocessor, which means of lengths say less of."""
    draw, cost, errors = random.Random(0), StepCost(MODEL, DEVICE), []
    for _ in range(40):
        spans = [(1, draw.randint(1, 7000)) for _ in range(draw.randint(1, 60))]
        spans += [(draw.randint(2, 900), draw.randint(0, 4000)) for _ in range(draw.choice([0, 0, 1, 1, 3]))]
        errors.append(abs(cost.seconds(plan(*spans)) / exactly(*spans) - 1))
    assert sum(errors) / len(errors) < 0.02
    assert max(errors) < 0.12


def test_one_long_sequence_holds_up_the_others():
    cost = StepCost(MODEL, DEVICE)
    alike, unlike = [(1, 560)] * 20, [(1, 7980)] + [(1, 170)] * 19
    assert sum(past for _, past in unlike) == pytest.approx(sum(past for _, past in alike), rel=0.01)
    assert cost.seconds(plan(*unlike)) > 1.05 * cost.seconds(plan(*alike))
    assert cost.seconds(plan(*unlike)) == pytest.approx(exactly(*unlike), rel=0.02)


def test_rounding_up_does_not_leave_the_window():
    window = MODEL.config.window
    assert StepCost(MODEL, DEVICE).seconds(plan((1, window - 1), (100, window - 100))) > 0


def test_the_cache_format_counts():
    long = plan(*[(1, 6000)] * 32)
    assert StepCost(MODEL, DEVICE, "fp8").seconds(long) < StepCost(MODEL, DEVICE).seconds(long)


def test_alike_steps_are_predicted_once(monkeypatch):
    calls = []
    monkeypatch.setattr(step_cost, "predict", lambda *a: calls.append(a) or predict(*a))
    cost = StepCost(MODEL, DEVICE)
    for past in range(4000, 4060):
        cost.seconds(plan((1, past)))
    assert len(calls) <= 2


def test_work_is_that_of_the_trace_and_the_bound_is_the_longest_need():
    spans = [Span(1, 96, 4), Span(24, 8)]
    found = StepCost(MODEL, DEVICE).estimate(StepShape.of(plan(*[(1, 96)] * 4, (24, 8))))
    trace = trace_step(MODEL, spans)
    needed = resource_seconds(trace, DEVICE)
    assert (found.flops, found.bytes) == (trace.flops.total, trace.bytes)
    assert found.bound == "memory"
    assert found.bound_seconds == pytest.approx(max(needed.values()))
    assert found.bound_seconds < found.seconds


def test_a_long_prompt_is_bound_by_matrix_products():
    assert StepCost(MODEL, DEVICE).estimate(StepShape.of(plan((2048, 0)))).bound == "matrix"


def test_without_a_device_only_work_is_known():
    shape = StepShape.of(plan((1, 96)))
    found, timed = (StepCost(MODEL, device).estimate(shape) for device in (None, DEVICE))
    assert found == replace(timed, seconds=None, bound=None, bound_seconds=None)


# -- on this machine -------------------------------------------------------------------------------


def small_loaded():
    config = replace(small("llama-3-8b").config, format="fp32")
    model = random_packed(config, "fp32")
    return Loaded(model.config, model, Cpu(), None, None, GenerationDefaults(), None)


def test_a_measured_machine_predicts_what_it_runs(measured):
    measured()
    found = cost_here(small_loaded()).estimate(StepShape.of(plan((1, 5))))
    assert found.seconds > found.bound_seconds > 0


def test_the_engine_takes_its_time_beside_the_pass(measured):
    measured()
    cost = cost_here(small_loaded())
    step = StepPlan((Chunk(None, 1, 5, (), 1), Chunk(None, 8, 0, (), 1), Chunk(None, 8, 0, (), 0)), ())
    vocab = small_loaded().config.vocab
    beside = EngineTimes(1e-4, 1e-5, 1e-9).seconds(2, vocab)
    assert cost.seconds(step) == pytest.approx(cost.estimate(StepShape.of(step)).seconds + beside)


@pytest.mark.parametrize("changed", [{"threads": 77}, {"isa": "avx0"}, {"linear": {}}])
def test_what_was_not_measured_is_not_predicted(measured, changed):
    """Other threads, another instruction set, no weights of this format."""
    measured(**changed)
    found = cost_here(small_loaded()).estimate(StepShape.of(plan((1, 5))))
    assert found.seconds is None
    assert found.flops > 0


def test_a_machine_that_was_never_measured_and_a_broken_file_predict_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))
    assert cost_here(small_loaded()).device is None
    this_machine_file().write_text("kernels = 3")
    assert cost_here(small_loaded()).device is None
