"""check and bench of a model on a GPU that computes its times: what is predicted, run and held together."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from tests.hardware import simulated_gpu as simulated  # isort: skip  (it chooses the interpreter first)

import torch

from ridgeline.analysis import bench as benching
from ridgeline.analysis import check as module
from ridgeline.analysis.bench import BenchTest, bench
from ridgeline.analysis.check import check
from ridgeline.analysis.check_denoising import check_denoising
from ridgeline.analysis.denoising import trace_denoising
from ridgeline.analysis.here import NO_GPU, stored_here
from ridgeline.analysis.step import trace_step
from ridgeline.analysis.step_cost import cost_here
from ridgeline.cli import main
from ridgeline.errors import InputError
from ridgeline.hardware import gpu_file, load_device, save_device
from ridgeline.hardware.gpu.measure import measure_gpu
from ridgeline.loading import Loaded
from ridgeline.models import load_config
from ridgeline.models.denoising import Grid
from ridgeline.ops.batch import Span
from ridgeline.ops.gpu import Gpu
from ridgeline.ops.lowering import GPU_INVARIANT
from ridgeline.ops.profile import OpTime
from ridgeline.weights.generation import GenerationDefaults
from ridgeline.weights.load import random_model
from tests.hardware.simulated_gpu import ComputedStopwatch, Physics
from tests.ops.diffusion_models import config_of
from tests.ops.small_models import small

patched_once_a_launch = simulated.patched_once_a_launch


class SimulatedGpu(Gpu):
    """Runs nothing: steps pass by in the time that physics says, and the clock stands still otherwise."""

    def __init__(self):
        super().__init__(torch.bfloat16, "cpu")
        self.physics, self.now, self.pending = Physics(), 0.0, 0.0

    def run(self, model, ids, spans, *, logits="last", cache=None, **_):
        self.pending += self.physics.step(self._trace(model, spans, logits))[0]

    def synchronise(self):
        self.now, self.pending = self.now + self.pending, 0.0

    def profile(self, model, ids, spans, *, logits="last", cache=None, **_):
        return self._operators(self._trace(model, spans, logits))

    def denoise(self, model, batch):
        self.pending += self.physics.step(self._denoising(model, batch))[0]

    def profile_denoising(self, model, batch):
        return self._operators(self._denoising(model, batch))

    def alloc_cache(self, spec, blocks):
        return type("Cache", (), {"randomise": lambda self: None})()

    def _operators(self, trace):
        _, seconds = self.physics.step(trace)
        return [OpTime(op.name, [seconds[i]] * op.repeat) for i, op in enumerate(trace.ops)]

    def _trace(self, model, spans, logits):
        shapes = [Span(s.rows, s.past) for s in spans]
        return trace_step(model, shapes, lowering=self.lowering, logits=logits)

    def _denoising(self, model, batch):
        (images, *others) = batch.spans.images.items
        grid = Grid(2, images.rows // 2)
        return trace_denoising(model, grid, 1 + len(others), 5, self.lowering)


@pytest.fixture(scope="module")
def device():
    return measure_gpu(stopwatch=ComputedStopwatch()).device


@pytest.fixture
def _clocked(monkeypatch):
    """Rounds and repetitions read the simulated clock."""

    def timed(run):
        ops = next(c.cell_contents for c in run.__closure__ if isinstance(c.cell_contents, SimulatedGpu))
        begin = ops.now
        run()
        return ops.now - begin

    monkeypatch.setattr(module, "_round", timed)


def loaded(config, ops=None):
    return Loaded(
        config, random_model(config, "bf16"), ops or SimulatedGpu(), None, None, GenerationDefaults(), None
    )


def model_of(name, **changes):
    config = small(name).config
    return loaded(replace(config, format="bf16", width=256, intermediate=512, layers=4, **changes))


def config(**changes):
    given = replace(
        load_config("llama-3-8b"), vocab=512, width=512, layers=4, heads=8, kv_heads=4, head_dim=64
    )
    rope = replace(given.rope, dim=64)
    return replace(given, intermediate=1024, window=4096, windows=(-1,) * 4, rope=rope, **changes)


@pytest.mark.usefixtures("_clocked")
def test_a_decoders_steps_are_met(device):
    found = check(loaded(config()), on=device, prompt=300, contexts=(1, 700))
    assert [phase.name for phase in found.phases] == ["prefill", "decode", "decode"]
    assert found.mape < 0.03
    assert all(phase.operator_mape < 0.06 for phase in found.phases)
    assert "on the device" in found.note


@pytest.mark.usefixtures("_clocked")
def test_an_encoders_pass_is_met(device):
    bert = replace(load_config("bert-base"), vocab=512, width=384, layers=3, heads=6, kv_heads=6, head_dim=64)
    (phase,) = check(loaded(replace(bert, intermediate=768, format="bf16")), on=device, prompt=100).phases
    assert (phase.name, phase.rows) == ("encode", 100)
    assert abs(phase.error) < 0.03


@pytest.mark.usefixtures("_clocked")
def test_a_denoising_step_is_met(device):
    dit = replace(config_of("dit"), format="bf16")
    (phase,) = check_denoising(loaded(dit), on=device, image=32, batch=3).phases
    assert abs(phase.error) < 0.05
    assert phase.operators


def test_a_bench_has_predictions_beside(device, monkeypatch):
    llama = loaded(config())

    def repetitions(loaded, test):
        run = benching._Run(loaded, test)
        while True:
            begin = loaded.ops.now
            for step in run.steps:
                run.step(step)
            yield loaded.ops.now - begin

    monkeypatch.setattr(benching, "repetitions", repetitions)
    found = bench(llama, prompts=[128], generates=[4], depths=[0, 200], batches=[1, 3], repeat=2, on=device)
    assert [r.test for r in found.results][:1] == [BenchTest("prompt", 128, 0, 1)]
    for result in found.results:
        assert result.predicted == pytest.approx(result.seconds[0], rel=0.05)
    assert (found.machine.gpu, found.machine.triton != "") == (NO_GPU, True)


def test_a_bench_takes_no_threads_on_a_gpu_and_no_other_machines_file(device):
    llama = loaded(config())
    with pytest.raises(InputError, match="leave them out"):
        bench(llama, threads=2)
    found = bench(llama, prompts=[4], generates=[], repeat=1, on=load_device("generic-cpu"))
    assert found.results[0].predicted is None


def test_this_is_the_gpu_that_the_model_lies_on(device, monkeypatch, tmp_path):
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))
    llama = loaded(config())
    assert stored_here(llama) is None
    with pytest.raises(InputError, match=r"is not measured yet: run `ridgeline measure --device cuda`"):
        check(llama)
    with pytest.raises(InputError, match="no GPU is measured yet"):
        load_device("this-gpu")
    save_device(device, gpu_file(NO_GPU))
    assert stored_here(llama) == load_device("this-gpu") == device
    assert float(cost_here(llama).device.units) == device.units


def test_an_invariant_model_is_on_a_gpu_too_and_no_file_is_of_its_kernels(device, monkeypatch, tmp_path):
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))
    save_device(device, gpu_file(NO_GPU))
    ops = SimulatedGpu()
    ops.lowering = GPU_INVARIANT
    llama = loaded(config(), ops)
    assert stored_here(llama) == device
    assert cost_here(llama).device is None  # steps are counted, and none is predicted
    for on in ("this", device):
        with pytest.raises(InputError, match="a GPU is measured without `invariant`"):
            check(llama, on=on)
    assert bench(llama, prompts=[4], generates=[], repeat=1, on=device).results[0].predicted is None


def test_of_several_gpus_one_has_to_be_named(device, monkeypatch, tmp_path):
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))
    for name in ("NVIDIA H200", "NVIDIA A100-SXM4-80GB"):
        save_device(device, gpu_file(name))
    assert gpu_file("NVIDIA A100-SXM4-80GB").name == "nvidia-a100-sxm4-80gb.toml"
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"give one of .*a100.*h200"):
            load_device("this-gpu")


def test_a_file_of_the_other_is_refused(device):
    from ridgeline.ops.cpu import Cpu
    from ridgeline.weights.pack import random_packed

    with pytest.raises(InputError, match="is a datasheet"):
        check(loaded(config()), on="h200")
    given = replace(config(), format="fp32")
    on_cpu = Loaded(given, random_packed(given, "fp32"), Cpu(), None, None, GenerationDefaults(), None)
    with pytest.raises(InputError, match="this-gpu is a GPU, the model runs elsewhere"):
        check(on_cpu, on=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "line",
    [
        "measure --device cuda",
        "check demo --device cuda",
        "bench demo --device cuda",
        "eval demo --heldout --device cuda",
        "demo --device cuda",
        "advise demo --verify --device cuda",
        "check dit-s-2 --weights random --device cuda",
    ],
)
def test_without_a_gpu_a_command_says_so_in_a_line(line, monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(sys, "argv", ["ridgeline", *line.split()])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert "PyTorch sees no CUDA device here" in said.err
