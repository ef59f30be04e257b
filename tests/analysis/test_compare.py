"""Comparisons: every point is what `explain` says of it, and the best batch keeps within the limits."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from ridgeline.analysis.compare import Limits, compare
from ridgeline.analysis.explain import explain
from ridgeline.errors import InputError
from ridgeline.report.compare import to_csv


@pytest.mark.parametrize(
    ("prompt", "output", "batch"), [(512, 128, 1), (2048, 300, 16), (64, 2, 4), (64, 1, 4)]
)
def test_a_point_is_what_explain_says(prompt, output, batch):
    found = compare(["llama-3-8b"], ["h100"], prompts=[prompt], outputs=[output], batches=[batch])
    (point,) = found.points
    request = explain("llama-3-8b", on="h100", prompt=prompt, output=output, batch=batch).request
    assert point.ttft_seconds == pytest.approx(request.ttft_seconds, rel=1e-12)
    assert point.total_seconds == pytest.approx(request.total_seconds, rel=1e-3)
    assert point.tokens_per_second == pytest.approx(request.output_tokens_per_second, rel=1e-3)
    assert (point.tpot_seconds is None) == (output == 1)


def test_points_of_one_sweep_are_those_of_single_ones():
    options = {"prompts": [128, 700], "outputs": [16, 64], "batches": [1, 32]}
    sweep = compare(["opt-1.3b"], ["a40"], weights=[None, "int8"], **options)
    for point in sweep.points:
        (alone,) = compare(
            ["opt-1.3b"],
            ["a40"],
            weights=[point.weights],
            prompts=[point.prompt],
            outputs=[point.output],
            batches=[point.batch],
        ).points
        times = ("tpot_seconds", "total_seconds", "tokens_per_second", "dollars_per_million")
        for name in times:  # sums in another order
            assert getattr(point, name) == pytest.approx(getattr(alone, name), rel=1e-12)
        same = dict.fromkeys(times, 0.0)
        assert replace(point, **same) == replace(alone, **same)


def test_memory_is_weights_cache_and_activations():
    found = compare(["llama-2-7b"], ["a100"], prompts=[1000], outputs=[24], batches=[4])
    memory = explain("llama-2-7b", on="a100", prompt=1000, output=24, batch=4).memory
    (point,) = found.points
    # explain takes the larger activations of prefill and decode, which are the prefill's
    assert point.memory_bytes == memory.total


def test_the_cost_of_a_million_tokens_is_the_price_of_the_time_they_take():
    (point,) = compare(["llama-3-8b"], ["h100"], batches=[8]).points
    from ridgeline.hardware import load_device

    hours = 1e6 / point.tokens_per_second / 3600
    assert point.dollars_per_million == pytest.approx(hours * load_device("h100").price_per_hour)
    (unpriced,) = compare(["llama-3-8b"], ["a100-40gb"], batches=[8]).points
    assert unpriced.dollars_per_million is None


def test_an_encoder_has_no_tokens_after_the_first():
    (point,) = compare(["bert-base"], ["t4"], prompts=[128], batches=[32]).points
    assert (point.output, point.tpot_seconds, point.cache) == (0, None, "")
    assert point.tokens_per_second == pytest.approx(128 * 32 / point.ttft_seconds)


def test_the_best_batch_is_the_fastest_within_the_limits():
    limits = Limits(tpot=0.012)
    found = compare(["llama-3-8b"], ["a100"], limits=limits, batches=[1, 8, 64, 512, 4096])
    (best,) = found.best
    allowed = [p for p in found.points if p.fits and p.tpot_seconds <= 0.012]
    assert 0 < len(allowed) < len(found.points)
    assert best.broken is None
    assert best.point == max(allowed, key=lambda p: p.tokens_per_second)


@pytest.mark.parametrize(
    ("device", "limits", "reason"),
    [
        ("rtx-4060", Limits(), "does not fit in memory"),
        ("a100", Limits(ttft=1e-4), "its first token comes too late"),
        ("a100", Limits(tpot=1e-4), "its tokens take too long"),
    ],
)
def test_a_setting_without_an_allowed_batch_says_what_the_smallest_breaks(device, limits, reason):
    (best,) = compare(["llama-3-8b"], [device], batches=[2, 1], limits=limits).best
    assert (best.broken, best.point.batch) == (reason, 1)


def test_what_a_model_does_not_take_is_left_out_with_the_reason():
    found = compare(["gpt2", "llama-3-8b"], ["a100"], prompts=[1000], outputs=[100], batches=[1])
    assert [p.model for p in found.points] == ["llama-3-8b"]
    assert found.refused == ("gpt2 takes 1024 tokens at most, not 1000 + 100",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": [0]}, "batch must be 1 to"),
        ({"prompts": [1.5]}, "prompt must be a whole number, not 1.5"),
        ({"outputs": [-1]}, "output must be 0 to"),
        ({"batches": []}, "0 points to compare"),
        ({"batches": list(range(1, 300_000))}, "299,999 points to compare"),
        ({"weights": ["int5"]}, "int5"),
    ],
)
def test_bad_input_is_named(options, message):
    if "weights" in options:
        found = compare(["gpt2"], ["a100"], **options)
        assert message in found.refused[0]
        return
    with pytest.raises(InputError, match=message):
        compare(["gpt2"], ["a100"], **options)


def test_csv_holds_every_point():
    found = compare(["gpt2"], ["a100", "h100"], batches=[1, 2])
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [(r["device"], int(r["batch"])) for r in rows] == [(p.device, p.batch) for p in found.points]
    assert float(rows[0]["ttft_seconds"]) == found.points[0].ttft_seconds
    assert rows[0]["dollars_per_million"] == str(found.points[0].dollars_per_million)


@pytest.mark.parametrize("limit", [0, -1, float("inf"), float("nan")])
def test_a_limit_is_a_positive_time(limit):
    with pytest.raises(InputError, match="ttft must be a positive number"):
        Limits(ttft=limit)
