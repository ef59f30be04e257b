"""The grid behind the sliders: every point is what `explain` says of it."""

from __future__ import annotations

import pytest

from ridgeline.analysis.explain import explain
from ridgeline.analysis.sweep import BATCHES, sweep
from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.models import load_config


@pytest.fixture(scope="module")
def swept():
    return sweep(load_config("llama-3-8b"), load_device("h100"))


@pytest.mark.parametrize(
    ("weights", "batch", "context"), [("bf16", 1, 128), ("int8", 64, 2048), ("int4-g128", 8, 4096)]
)
def test_a_point_is_what_explain_says(swept, weights, batch, context):
    (found,) = [f for f in swept.formats if f.weights == weights]
    at = BATCHES.index(batch), swept.contexts.index(context)
    told = explain("llama-3-8b", on="h100", prompt=context, output=2, batch=batch, weights=weights)
    for phase in told.phases:
        grid = found.phases[phase.name]
        assert grid.seconds[at[0]][at[1]] == pytest.approx(phase.seconds, rel=1e-3)
        for values, expected in (
            (grid.by_class, phase.seconds_by_class),
            (grid.by_bound, phase.seconds_by_bound),
        ):
            for name, seconds in expected.items():
                assert values[name][at[0]][at[1]] == pytest.approx(seconds, rel=1e-3)


def test_classes_and_bounds_each_add_up_to_the_step(swept):
    for found in swept.formats:
        for phase in found.phases.values():
            for b in range(len(BATCHES)):
                for c in range(len(swept.contexts)):
                    for grids in (phase.by_class, phase.by_bound):
                        total = sum(grid[b][c] for grid in grids.values())
                        assert total == pytest.approx(phase.seconds[b][c], rel=1e-3)


def test_an_encoder_only_encodes():
    found = sweep(load_config("bert-base"), load_device("t4"))
    assert found.contexts == (128, 256, 512)
    assert set(found.formats[0].phases) == {"encode"}


def test_a_short_window_still_has_a_context():
    found = sweep(load_config("demo"), load_device("generic-cpu"))
    assert found.contexts == (128, 256, 512)


def test_a_format_that_nobody_knows_is_refused():
    with pytest.raises(InputError, match="int5"):
        sweep(load_config("gpt2"), load_device("a100"), ["int5"])
