"""The GPU benchmark's ways through, on a device and a clock that are made up: budgets, failures, what is
kept."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.hardware import simulated_gpu as simulated  # isort: skip  (it chooses the interpreter first)

import torch

from benchmarks import gpu as benchmark
from benchmarks import gpu_cases, gpu_model, gpu_results, gpu_timing
from benchmarks.gpu_results import Results, Row, Target, targets
from ridgeline.hardware import load_device
from ridgeline.hardware.gpu.measure import measure_gpu
from tests.analysis.test_check_gpu import SimulatedGpu
from tests.hardware.simulated_gpu import ComputedStopwatch

patched_once_a_launch = simulated.patched_once_a_launch
CPU = torch.device("cpu")
RIGHT = Row("decode", "16x1 over 32768 h32/8 d128", 1e-3, 1e-2, 0.0, 8.6e9, {"ours": 2e-3})


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(check=False, seed=1, output=tmp_path / "out.json", points=None)


@pytest.fixture
def found(options):
    return Results.begin(CPU, options.output)


def kept(options):
    return json.loads(options.output.read_text())


def test_a_part_that_fails_says_so_and_keeps_what_it_found(found, options, monkeypatch):
    def cases(device, tiny):
        yield from list(gpu_cases.row_cases(device, tiny))[:1]
        raise RuntimeError("no kernel image\nfor this device")

    monkeypatch.setitem(gpu_cases.PARTS, "rows", cases)
    monkeypatch.setattr(benchmark, "time_case", lambda row, *_: row.seconds.update(ours=1e-5))
    benchmark.run_part("rows", found, options, CPU)
    assert found.stopped == {"rows": "no kernel image"}
    assert [row["seconds"] for row in kept(options)["rows"]] == [{"ours": 1e-5}]
    assert kept(options)["stopped"] == found.stopped


def test_a_case_that_fails_says_so_and_the_next_one_runs(found, options, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("out of resource: shared memory\nand more")

    def cases(device, tiny):
        first, second, *_ = gpu_cases.row_cases(device, tiny)
        yield replace(first, ours=fails)
        yield second

    monkeypatch.setitem(gpu_cases.PARTS, "rows", cases)
    monkeypatch.setattr(benchmark, "time_case", lambda row, *_: row.seconds.update(ours=1e-5))
    benchmark.run_part("rows", found, options, CPU)
    [(case, why)] = found.stopped.items()
    assert case.startswith("rows add + rms norm")
    assert why == "out of resource: shared memory"
    assert [row.name.split()[0] for row in found.rows] == ["silu"]
    assert Results.read(options.output) == found


def test_a_part_that_misses_its_alarm_hears_the_next(found, options, monkeypatch):
    class Deaf:
        def __del__(self):
            time.sleep(0.5)  # what is raised here goes unheard

    def waits(found, device, options):
        held = [Deaf()]
        held.clear()
        time.sleep(30)

    monkeypatch.setattr(gpu_model, "model_part", waits)
    monkeypatch.setattr(benchmark, "AGAIN", 0.2)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    monkeypatch.setitem(benchmark.BUDGETS, "model", 0.1)
    benchmark.run_part("model", found, options, CPU)
    assert found.stopped == {"model": "stopped after its 0.1 s"}


def test_a_part_ends_with_its_budget_and_nothing_takes_that_for_an_error(found, options, monkeypatch):
    def waits(found, device, options):
        try:
            time.sleep(30)
        except Exception:
            time.sleep(30)

    monkeypatch.setattr(gpu_model, "model_part", waits)
    monkeypatch.setitem(benchmark.BUDGETS, "model", 0.2)
    benchmark.run_part("model", found, options, CPU)
    assert found.stopped == {"model": "stopped after its 0.2 s"}
    assert found.seconds["model"] < 20


def test_the_budgets_fit_into_eight_minutes():
    assert sum(benchmark.BUDGETS.values()) < 8 * 60
    assert {*benchmark.PARTS} == {*gpu_cases.PARTS, *benchmark.WHOLE}


def test_a_contestant_that_does_not_run_is_left_out_and_named(monkeypatch, capsys):
    def missing(*_):
        raise ModuleNotFoundError("No module named 'flashinfer'")

    case = SimpleNamespace(ours=len, peers={"flashinfer": missing}, inputs=None, ring_inputs=lambda g: ())
    monkeypatch.setattr(benchmark, "ring_of", lambda inputs, device: [([1],)])
    row = Row("decode", "one", 0.0, 0.0, 0.0, 0.0)
    benchmark.time_case(row, case, CPU, lambda call, ring: call(*ring[0]) * 1e-3)
    assert row.seconds == {"ours": 1e-3}
    assert row.left_out == {"flashinfer": "No module named 'flashinfer'"}
    assert "flashinfer is left out" in capsys.readouterr().err


@pytest.mark.parametrize("part", gpu_cases.PARTS)
def test_what_is_timed_is_made_and_called_as_it_will_be(part, monkeypatch):
    """Every contestant on small shapes: ours runs, and of the peers those that this machine has."""
    monkeypatch.setattr(gpu_cases, "_compiled", lambda functions: functions[0])

    def once(call, ring):
        call(*ring[0])
        return 1e-3

    monkeypatch.setattr(
        benchmark, "ring_of", lambda inputs, device: [inputs(torch.Generator().manual_seed(3))]
    )
    for case in list(gpu_cases.PARTS[part](CPU, True))[:2]:
        case.peers.pop("flex", None)
        row = Row(part, case.name, 0.0, 1.0, case.flops, case.bytes)
        benchmark.time_case(row, case, CPU, once)
        assert "ours" in row.seconds
        assert set(row.seconds) | set(row.left_out) == {"ours", *case.peers}
        assert set(row.left_out) <= {"flashinfer", "sdpa cudnn", "sdpa flash", "sdpa mem"}


def test_a_ring_does_not_fit_the_cache(monkeypatch):
    properties = SimpleNamespace(L2_cache_size=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    ring = gpu_timing.ring_of(lambda g: (torch.zeros(100, dtype=torch.uint8), 3), CPU)
    assert len(ring) == 1 + 3 * 1000 // 100
    assert len(gpu_timing.ring_of(lambda g: (torch.zeros(10_000, dtype=torch.uint8),), CPU)) == 1


def test_targets_are_judged_by_what_was_found(found):
    assert not any(target.is_met for target in targets(found))
    found.bandwidth, found.rows = 4.3e12, [RIGHT]
    [decode] = [t for t in targets(found) if t.name.startswith("paged decode")]
    assert decode.reached == pytest.approx(1.0)
    assert decode.is_met
    name = "1x8192 h32/32 d128 causal"
    forward = Row(
        "attention", name, 0, 1, 1, 0, {"ours": 2.0, "sdpa cudnn": 1.8, "sdpa mem": 4.0, "flex": 3.0}
    )
    both = Row("backward", name, 0, 1, 1, 0, {"ours": 7.0, "sdpa cudnn": 5.8, "sdpa mem": 9.0})
    model = Row("model", "llama-3-8b bf16, 1x1 after 512", 0, 0, 0, 16e9)
    model.seconds = {"ours": 5e-3, "transformers, compiled": 7e-3}
    found.rows += [forward, both, model]
    found.checked = {"a": 0.1, "b": -0.2}
    reached = [t.reached for t in targets(found)]
    wanted = [0.9, 0.8, 1.0, None, 16e9 / 5e-3 / 4.3e12, 1.4, 0.15]
    assert [r and round(r, 6) for r in reached] == [w and round(w, 6) for w in wanted]
    assert [t.is_met for t in targets(found)] == [True, True, True, False, False, True, False]


def test_a_target_that_was_not_found_is_not_met():
    assert not Target("x", None, 0.1, at_most=True).is_met
    assert Target("x", 0.1, 0.1, at_most=True).is_met


def test_the_table_has_a_line_for_everything(found, capsys):
    found.bandwidth, found.rows = (
        4.3e12,
        [RIGHT, replace(RIGHT, name="wrong", error=float("nan"), seconds={})],
    )
    found.checked, found.stopped, found.seconds = (
        {"prefill": -0.04},
        {"model": "out of memory"},
        {"model": 3.0},
    )
    gpu_results.show(found)
    said = capsys.readouterr().out
    for part in (
        "nan!",
        "check prefill",
        "-4.0%",
        "model is not complete: out of memory",
        "met",
        "not found",
    ):
        assert part in said


def test_what_is_kept_is_whole_or_not_there(found, options, monkeypatch):
    found.rows = [RIGHT]
    found.save()
    monkeypatch.setattr(gpu_results.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    found.rows = []
    with pytest.raises(KeyboardInterrupt):
        found.save()
    assert len(kept(options)["rows"]) == 1


def test_measure_and_check_are_one_part(found, options, monkeypatch, tmp_path):
    """On the simulated GPU, with a model of few layers: the file, its points, and the errors are kept."""
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu_model, "random_on_gpu", lambda name, device: _small(name))
    monkeypatch.setattr(gpu_model, "PROMPT", 64)
    monkeypatch.setattr(gpu_model, "CONTEXTS", (100,))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    from ridgeline.analysis import check

    monkeypatch.setattr(check, "ROUND_SECONDS", 0.0)
    gpu_model.measure_part(
        found, CPU, options, lambda plan: measure_gpu(plan=plan, stopwatch=ComputedStopwatch())
    )
    assert set(found.checked) == {
        "llama-3-8b prefill at 64", "llama-3-8b decode at 100", "bert-base encode at 64",
    }  # fmt: skip
    assert found.measured["copy bytes/s"] == pytest.approx(4.1e12)
    assert load_device(options.output.with_suffix(".toml")).kernels
    assert options.output.with_suffix(".csv").read_text().startswith("kind,")
    assert kept(options)["checked"] == found.checked


def _small(name):
    from ridgeline.loading import Loaded
    from ridgeline.weights.generation import GenerationDefaults
    from tests.ops.small_models import small

    config = replace(small(name).config, format="bf16", width=96, intermediate=192)
    from ridgeline.weights.load import random_model

    return Loaded(
        config, random_model(config, "bf16"), SimulatedGpu(), None, None, GenerationDefaults(), None
    )


def test_a_random_model_lies_where_it_was_drawn_and_decodes():
    loaded = gpu_model.random_on_gpu("llama-3-8b", CPU, **_few())
    assert all(weight.data is not None for weight in loaded.model.weights())
    with torch.inference_mode():
        logits = gpu_model.decode_step(loaded, 2, 40)()
    assert logits.shape == (2, 64)
    assert logits.isfinite().all()
    read = gpu_model.bytes_read(loaded, 2, 40)
    assert (
        read
        == loaded.model.weight_bytes() - 64 * 32 * 2 + 80 * loaded.model.cache_spec("bf16").bytes_per_token
    )


@pytest.mark.slow
def test_transformers_decodes_the_same_shape(monkeypatch):
    """Uncompiled and on the CPU: the arguments are those that it takes."""
    from ridgeline.models import load_config

    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    monkeypatch.setattr(gpu_model, "step_seconds", lambda step: step().shape)
    config = replace(load_config("llama-3-8b"), **_few())
    assert gpu_model.transformers_seconds(config, CPU) == (1, 1, 64)
    assert torch.get_default_dtype() == torch.float32


def _few():
    from ridgeline.models import load_config

    rope = replace(load_config("llama-3-8b").rope, dim=16)
    sizes = {"vocab": 64, "width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16}
    return {**sizes, "intermediate": 48, "window": 1024, "windows": (-1,), "rope": rope}
