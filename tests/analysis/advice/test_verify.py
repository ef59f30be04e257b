"""Advice that is tried on this machine. Times are not judged here, only that each trial is the right run."""

from __future__ import annotations

import pytest

from ridgeline.analysis.advice import advise
from ridgeline.analysis.advice.verify import verify
from ridgeline.errors import InputError

TEXT = "def add(a, b):\n    return a + b\n" * 20


@pytest.fixture(scope="module")
def advice():
    return advise("demo", "generic-cpu", prompt=24, output=8)


def test_each_suggestion_is_tried_or_says_why_not(advice):
    trials = {t.technique: t for t in verify(advice, "demo", "auto", TEXT, rounds=1)}
    assert set(trials) == {s.technique for s in advice.suggestions}
    for technique in (
        "weights in int8",
        "speculation with n-gram look-up",
        "batches of 2",
        "reuse of shared prefixes",
    ):
        assert trials[technique].measured > 0
        assert trials[technique].predicted > 0
    assert trials["KV cache in int8"].measured is None
    assert "nothing to run" in trials["KV cache in int8"].skipped


def test_random_weights_are_not_asked_to_guess(advice):
    trials = {t.technique: t for t in verify(advice, "demo", "random", TEXT, rounds=1)}
    assert trials["weights in int8"].measured > 0
    assert "random weights continue no text" in trials["speculation with n-gram look-up"].skipped


def test_a_text_shorter_than_the_prompt_is_named(advice):
    trials = {t.technique: t for t in verify(advice, "demo", "auto", "a b", rounds=1)}
    assert "the text to continue has" in trials["speculation with n-gram look-up"].skipped


def test_memory_is_not_timed():
    with pytest.raises(InputError, match="memory is counted, not timed"):
        verify(advise("demo", "generic-cpu", goal="memory"), "demo", "auto")
