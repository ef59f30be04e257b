"""From which level of the memory hierarchy an access is served."""

from ridgeline.analysis.step import trace_step
from ridgeline.hardware import Level
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.kernel import Role
from ridgeline.predict.residency import bandwidth_at, footprint, place

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
