"""Runs of layers: they stand for the layers in their order, and no other choice has fewer to trace."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.ops.loops import Run, runs
from ridgeline.ops.profile import Fold
from ridgeline.ops.records import Weight
from tests.ops.small_models import Dense

kinds = st.lists(st.integers(0, 2), max_size=9)


def layers_of(kinds):
    return [Dense(i, Weight("dense", (1, kind + 1), "bf16")) for i, kind in enumerate(kinds)]


def fewest(kinds):
    """By trying every pattern and count at every place."""

    @cache
    def least(i):
        if i == len(kinds):
            return 0
        options = []
        for length in range(1, len(kinds) - i + 1):
            count = 1
            while True:
                options.append(length + least(i + length * count))
                again = kinds[i + length * count : i + length * (count + 1)]
                if again != kinds[i : i + length]:
                    break
                count += 1
        return min(options)

    return least(0)


@given(kinds)
def test_runs_stand_for_the_layers_and_have_the_fewest_to_trace(kinds):
    found = runs(layers_of(kinds))
    expanded = [k for run in found for k in kinds[run.start : run.start + run.length] * run.count]
    assert expanded == kinds
    assert sum(run.length for run in found) == fewest(tuple(kinds))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("A" * 40, [Run(0, 1, 40)]),
        ("AB" * 23, [Run(0, 2, 23)]),
        ("AAAAAB" * 10 + "AA", [Run(0, 6, 10), Run(60, 1, 2)]),
        ("AAA" + "B" * 58, [Run(0, 1, 3), Run(3, 1, 58)]),
        ("ABC", [Run(0, 1, 1), Run(1, 1, 1), Run(2, 1, 1)]),
    ],
)
def test_patterns_of_layers(kinds, expected):
    assert runs(layers_of([ord(kind) - ord("A") for kind in kinds])) == expected


@given(kinds)
def test_what_layers_run_is_folded_into_the_operators_of_the_runs(kinds):
    fold = Fold()
    for layer in fold.layers(layers_of(kinds)):
        for _ in range(layer.weight.shape[1]):  # kinds differ in how many operators they run
            fold.note(f"kind {layer.weight.shape[1]}")
    traced = [kinds[i] for run in runs(layers_of(kinds)) for i in range(run.start, run.start + run.length)]
    assert fold.names == [f"kind {kind + 1}" for kind in traced for _ in range(kind + 1)]
    assert sum(fold.calls) == sum(kind + 1 for kind in kinds)
