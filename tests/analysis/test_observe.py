"""Watching an engine: what it says of requests, steps and operators is what happened, and changes nothing."""

import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ridgeline.analysis.observe import REQUESTS, STEP_ROWS, example_requests, observe
from ridgeline.engine.generate import collect, run
from ridgeline.engine.request import Request
from ridgeline.errors import InputError
from ridgeline.loading import Loaded
from ridgeline.models import load_config
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.torch_cpu import TorchCpu
from ridgeline.weights.generation import GenerationDefaults
from ridgeline.weights.load import random_model
from ridgeline.weights.pack import random_packed
from tests.ops.small_models import small


@pytest.fixture(scope="module", params=["native", "torch"])
def loaded(request):
    config = replace(small("llama-3-8b").config, format="fp32", window=256)
    if request.param == "native":
        return Loaded(config, random_packed(config, "fp32"), Cpu(), None, None, GenerationDefaults(), None)
    ops = TorchCpu(torch.float32)
    return Loaded(config, random_model(config), ops, None, None, GenerationDefaults(), None)


@pytest.fixture
def never_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))


@pytest.fixture
def timeline(loaded, never_measured):
    return observe(loaded)


def test_phases_of_a_request_follow_one_another(timeline):
    assert len(timeline.requests) == REQUESTS
    for request in timeline.requests:
        assert [phase.state for phase in request.phases] == ["queued", "prefill", "decode"]
        assert all(phase.end == later.begin for phase, later in pairwise(request.phases))
        assert all(phase.begin < phase.end for phase in request.phases)


def test_steps_are_as_many_rows_as_the_requests_take(timeline):
    wanted = sum(r.prompt_tokens + r.output_tokens - 1 for r in timeline.requests)
    assert sum(step.rows for step in timeline.steps) == wanted
    assert max(step.rows for step in timeline.steps) <= STEP_ROWS
    assert {step.kind for step in timeline.steps} == {"prefill", "decode", "mixed"}


def test_one_step_of_each_kind_is_profiled_as_if_it_were_the_step(timeline):
    kinds = [timeline.steps[again.step].kind for again in timeline.profiled]
    assert sorted(kinds) == ["decode", "mixed", "prefill"]
    for again in timeline.profiled:
        step = timeline.steps[again.step]
        assert again.begin == pytest.approx(step.started + step.scheduling, abs=1e-9)
        assert again.end > again.begin


def test_second_runs_take_none_of_the_requests_time(loaded, never_measured, monkeypatch):
    profile = type(loaded.ops).profile

    def slowly(*arguments, **options):
        time.sleep(0.5)
        return profile(loaded.ops, *arguments, **options)

    monkeypatch.setattr(loaded.ops, "profile", slowly, raising=False)
    timeline = observe(loaded)
    assert all(again.end - again.begin > 0.5 for again in timeline.profiled)
    for step, following in pairwise(timeline.steps):
        assert 0 <= following.started - (step.started + step.seconds) < 0.5


def test_operators_run_one_after_another_inside_their_step(timeline, loaded):
    for again in timeline.profiled:
        runs = again.operators
        assert again.begin == runs[0].begin
        assert runs[-1].begin + runs[-1].seconds <= again.end
        assert all(later.begin == pytest.approx(run.begin + run.seconds) for run, later in pairwise(runs))
        assert [run.layer for run in runs if run.name == "attention"] == list(range(loaded.config.layers))
        assert [run.name for run in runs][-1] == "head"
        assert {run.predicted for run in runs} == {None}


def test_operators_do_the_work_of_their_step(timeline):
    for again in timeline.profiled:
        step = timeline.steps[again.step]
        assert sum(run.flops for run in again.operators) == pytest.approx(step.flops, rel=0.05)
        assert sum(run.bytes for run in again.operators) == pytest.approx(step.bytes, rel=0.1)


def test_the_cache_fills_and_is_empty_at_the_end(timeline):
    assert all(0 < load.blocks <= timeline.blocks for load in timeline.loads[:-1])
    assert timeline.loads[-1].blocks == 0
    assert [load.moment for load in timeline.loads[:-1]] == [step.started for step in timeline.steps]


def test_a_measured_machine_has_predictions_beside_the_operators(measured):
    measured()
    config = replace(small("llama-3-8b").config, format="fp32", window=256)
    loaded = Loaded(config, random_packed(config, "fp32"), Cpu(), None, None, GenerationDefaults(), None)
    timeline = observe(loaded)
    assert all(step.predicted > 0 and step.bound_share > 0 for step in timeline.steps)
    for again in timeline.profiled:
        linear = [run for run in again.operators if run.kind == "linear"]
        assert all(run.predicted > 0 and run.bound for run in linear)


def test_preemption_is_seen_and_followed_by_more_work(loaded, never_measured):
    requests = [Request((seed,) * 40, 60) for seed in range(1, 5)]
    timeline = observe(loaded, requests, cache_tokens=224)
    states = [[phase.state for phase in request.phases] for request in timeline.requests]
    assert any("preempted" in found for found in states)
    after = {"queued": {"prefill"}, "prefill": {"decode"}, "decode": {"preempted"}}
    # Most of what it had computed is still found in the cache, maybe all but its newest token.
    after["preempted"] = {"prefill", "decode"}
    for found in states:
        assert all(following in after[state] for state, following in pairwise(found))
        assert (found[0], found[-1]) == ("queued", "decode")


def test_being_watched_changes_no_token(loaded, never_measured):
    requests = example_requests(loaded.config)
    expected = collect(run(loaded.generator().start(requests)))
    timeline = observe(loaded, requests)
    assert [r.output_tokens for r in timeline.requests] == [len(result.ids) for result in expected]


def test_an_encoder_is_refused():
    config = load_config("bert-base")
    with pytest.raises(InputError, match="is an encoder"):
        observe(Loaded(config, None, None, None, None, GenerationDefaults(), None), [Request((5,), 2)])
