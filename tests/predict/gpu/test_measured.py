"""Predictions from a measured GPU: its tables at their points, models in between, graphs and the host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.hardware.simulated_gpu import (  # isort: skip  (it chooses the interpreter first)
    ISSUES, LAUNCH, REPLAY, STEP, ComputedStopwatch, Physics,
)  # fmt: skip

from ridgeline.analysis.step import predict_step, trace_step
from ridgeline.errors import InputError
from ridgeline.hardware.gpu.measure import measure_gpu
from ridgeline.hardware.gpu_kernels import COLUMNS, GpuKernels
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.lowering import GPU
from ridgeline.predict.gpu.measured import MeasuredGpu, kernel_at, place_of
from ridgeline.predict.gpu.schedule import MOST_SEQUENCES, exposed, runs_as_graph
from ridgeline.predict.tiers import Tier
from tests.ops.small_models import FAMILIES, small

MODELS = ("llama-3-8b", "qwen3-0.6b", "gpt2", "gemma-2-2b", "bert-base")
#: How much slower than its models' shape the simulated GPU runs some tables.
ODD = {"linear.bf16": 1.3, "decode.bf16": 1.6, "norm.rms": 2.5}


class OddStopwatch(ComputedStopwatch):
    def time(self, work):
        timing = super().time(work)
        return replace(timing, seconds=timing.seconds * ODD.get(work.figure, 1.0))


class OddPhysics(Physics):
    def kernel(self, kernel):
        found = place_of(kernel)
        return super().kernel(kernel) * ODD.get(found.table if found else "", 1.0)


@pytest.fixture(scope="module")
def device():
    return measure_gpu(stopwatch=ComputedStopwatch()).device


@pytest.fixture(scope="module")
def odd():
    return measure_gpu(stopwatch=OddStopwatch()).device


def spans_of(config):
    yield [Span(300)]
    if config.is_decoder:
        yield from ([Span(1, 500)], [Span(1, 700, count=30)], [Span(1, 90, count=3), Span(100, 20)])


@pytest.mark.parametrize("name", MODELS)
def test_a_simulated_gpus_steps_are_predicted(device, name):
    model = declare(load_config(name))
    for spans in spans_of(model.config):
        want, _ = Physics().step(trace_step(model, spans, lowering=GPU))
        found = predict_step(model, device, spans)
        assert found.tier is Tier.MEASURED
        assert float(found.seconds) == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize("name", MODELS)
def test_tables_that_differ_from_every_model_are_followed(odd, name):
    """Times that no constants of the models give: the tables carry them to other shapes."""
    model = declare(load_config(name))
    for spans in spans_of(model.config):
        want, _ = OddPhysics().step(trace_step(model, spans, lowering=GPU))
        assert float(predict_step(model, odd, spans).seconds) == pytest.approx(want, rel=0.06)


def test_quantised_weights_take_their_own_tables(device):
    model = declare(load_config("llama-3-8b"), "int4-g32-zp")
    found = predict_step(model, device, [Span(1, 100)])
    assert found.unmeasured == ()
    assert {k.kind for k in found.kernels if k.op == "mlp.gate_up"} == {"linear"}  # the activation is in it


def test_every_point_is_a_kernel_at_that_point(device):
    for name, table in GpuKernels.from_dict(device.kernels).tables.items():
        if name == "sample":
            continue
        for point in table.points:
            found = place_of(kernel_at(name, point))
            assert found.table == name
            assert tuple(map(float, found.point)) == pytest.approx(point)


def test_a_measured_point_is_given_back(odd):
    gpu = MeasuredGpu(odd)
    for name, table in gpu.kernels.tables.items():
        if name == "sample":
            continue
        for point, seconds in zip(table.points, table.seconds, strict=True):
            assert gpu.time(kernel_at(name, point)).seconds == pytest.approx(seconds, rel=1e-3)


def test_arrays_are_as_their_numbers(device):
    model, past = declare(load_config("llama-3-8b")), np.array([0, 100, 5000])
    together = predict_step(model, device, [Span(1, past)]).seconds
    apart = [float(predict_step(model, device, [Span(1, int(p))]).seconds) for p in past]
    assert together == pytest.approx(apart, rel=1e-6)


def test_a_decode_step_is_its_kernels_and_a_replay(device):
    model = declare(load_config("gpt2"))
    assert predict_step(model, device, [Span(1, 50)]).step_seconds == pytest.approx(REPLAY)


def test_a_small_prompt_waits_for_the_host(device):
    """BERT's kernels are over sooner than the host issues them: the step is as long as the host takes."""
    model = declare(load_config("bert-base"))
    trace = trace_step(model, [Span(16)], lowering=GPU)
    found = predict_step(model, device, [Span(16)])
    per_layer = 4 * ISSUES["linear"] + ISSUES["attend"] / 2 + 2 * (ISSUES["norm"] + ISSUES["add"])
    host = STEP + 12 * (per_layer + ISSUES["activation"])
    assert float(found.seconds) > host
    assert float(found.seconds) == pytest.approx(Physics().step(trace)[0], rel=0.02)


def test_a_long_prompt_waits_for_nothing_but_its_beginning(device):
    found = predict_step(declare(load_config("llama-3-8b")), device, [Span(8192)])
    assert STEP < float(found.step_seconds) < STEP + 10 * LAUNCH


def test_the_queue_is_that_of_a_stream():
    """Two kernels of 5 after host times of 1, then one of 1 that the host comes to late."""
    model = declare(replace(load_config("gpt2"), layers=1))
    trace = trace_step(model, [Span(4)], lowering=GPU)
    number = sum(len(op.kernels(GPU)) for op in trace.ops)
    seconds, issue = [0.0] * number, [0.0] * number
    seconds[:2], issue[:2] = [5.0, 5.0], [1.0, 1.0]
    seconds[2], issue[2] = 1.0, 20.0
    assert exposed(trace, seconds, issue, begin=2.0) == pytest.approx(24.0 + 1.0 - 11.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_that_are_predicted_as_graphs_are_recorded(name):
    from ridgeline.ops.gpu_graph import BUCKETS, is_recordable

    model = small(name)
    if not model.config.is_decoder:
        return
    trace = trace_step(model, [Span(1, 9)], lowering=GPU)
    assert runs_as_graph(trace) == is_recordable(model)
    assert BUCKETS[-1] == MOST_SEQUENCES
    assert not runs_as_graph(trace_step(model, [Span(1, 9, count=MOST_SEQUENCES + 1)], lowering=GPU))
    assert not runs_as_graph(trace_step(model, [Span(2, 9)], lowering=GPU))


def test_experts_are_named_as_unmeasured(device):
    found = predict_step(declare(load_config("mixtral-8x7b")), device, [Span(1, 9)])
    assert {"select", "down"} <= set(found.unmeasured)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reading": "cpu"}, "ridgeline measure"),
        ({"replay": -1.0}, "replay is -1.0"),
        ({"gap": "x"}, "gap is 'x'"),
        ({"issue": {"linear": 0.0}}, "issue holds a value that is not positive"),
        ({"tables": {"linear.bf16": {"points": [[1, 2, 3]], "seconds": []}}}, "not a time for every point"),
        ({"tables": {"linear.bf16": {"points": [[1, 2]], "seconds": [1.0]}}}, "a point without rows"),
        ({"tables": {"linear.bf16": {"points": [[1, 2, 3]], "seconds": [0.0]}}}, "time that is not positive"),
        ({"tables": {"magic": {"points": [[1]], "seconds": [1.0]}}}, "no table 'magic'"),
    ],
)
def test_a_broken_file_is_told_from_a_good_one(device, change, said):
    broken = replace(device, kernels={**device.kernels, **change})
    with pytest.raises(InputError, match=said):
        predict_step(declare(load_config("gpt2")), broken, [Span(1, 9)])


def test_every_table_has_its_columns():
    assert all(columns for columns in COLUMNS.values())
