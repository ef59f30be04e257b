"""From which level of the memory hierarchy an access is served."""

import pytest

from ridgeline.analysis.step import trace_step
from ridgeline.hardware import Level
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.kernel import Role
from ridgeline.ops.lowering import CPU
from ridgeline.predict.residency import bandwidth_at, footprint, input_distances, place

LEVELS = (Level("L2", 1e6, 9e12), Level("L3", 1e8, 3e12), Level("memory", 1e12, 1e11))


def test_the_nearest_level_that_holds_the_distance_serves_it():
    assert bandwidth_at(LEVELS, 5e5) == 9e12
    assert bandwidth_at(LEVELS, 1e6) == 9e12
    assert bandwidth_at(LEVELS, 2e6) == 3e12
    assert bandwidth_at(LEVELS, 5e11) == 1e11
    assert bandwidth_at(LEVELS, 9e13) == 1e11


def test_distances_may_be_arrays():
    import numpy

    found = bandwidth_at(LEVELS, numpy.array([5e5, 2e6, 5e11]))
    assert found.tolist() == [9e12, 3e12, 1e11]


def test_weights_come_round_once_a_step_and_activations_sooner():
    trace = trace_step(declare(load_config("llama-2-7b")), [Span(1, 100)])
    step = footprint(trace)
    assert step > 13e9
    for placed in place(trace):
        for touch in placed.touches[: len(placed.kernel.reads)]:
            if touch.access.value.role is Role.WEIGHT:
                assert touch.distance == step
            elif touch.access.value.role is Role.ACTIVATION:
                assert touch.distance < step / 10


def test_a_footprint_counts_weights_once_and_the_cache_as_read():
    model = declare(load_config("gpt2"))
    short, long = (footprint(trace_step(model, [Span(1, n)])) for n in (31, 1023))
    per_token = 2 * 12 * 768 * 2
    assert long - short == (1024 - 32) * per_token
    assert short > model.weight_bytes() - model.embedding.numel * 2 - model.positions.numel * 2


def distances(spans, model="llama-2-7b", **options):
    """By operator, with the bytes of each kernel."""
    trace = trace_step(declare(load_config(model)), spans, lowering=CPU, **options)
    kernels = [(op.name, kernel.bytes) for op, kernel in trace.kernels()]
    found = dict(zip((name for name, _ in kernels), input_distances(trace), strict=True))
    return found, dict(kernels), footprint(trace)


def test_an_input_is_as_far_as_what_was_touched_since_it_was_begun():
    found, nbytes, step = distances([Span(64)])
    assert found["post_norm"] == nbytes["attention.out"]
    assert found["mlp.gate_up"] >= nbytes["post_norm"]
    assert found["embedding"] == pytest.approx(step, rel=1e-2)  # a few bytes of ids are near


def test_a_layers_input_is_that_of_the_layer_before():
    """Not that of the embedding, which only the first layer reads."""
    found, nbytes, _ = distances([Span(64)])
    assert found["input_norm"] == nbytes["mlp.down"]
    assert nbytes["mlp.down"] > 10 * nbytes["embedding"]


def test_distances_of_inputs_may_be_arrays():
    import numpy

    lengths = [16, 64]
    found, _, _ = distances([Span(numpy.array(lengths))])
    single = [distances([Span(n)])[0]["post_norm"] for n in lengths]
    assert found["post_norm"].tolist() == single
