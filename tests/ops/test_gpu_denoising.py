"""Diffusion Transformers on the gpu reading (interpreted where there is no GPU), and where their numbers
lie."""

from __future__ import annotations

import pytest

from tests import gpu as shared  # isort: skip  (it skips the module where there is no Triton)

import torch

from ridgeline.analysis.denoising import trace_denoising
from ridgeline.loading import load
from ridgeline.ops.gpu import Gpu, to_gpu
from ridgeline.ops.gpu_batch import GpuSpans, denoising_on
from ridgeline.ops.lowering import GPU
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_denoising import random_denoising
from ridgeline.weights.load import random_model
from ridgeline.weights.pack import random_packed
from tests.ops.diffusion_models import CONFIGS, SEQUENCES, TEXT, config_of, grid_for

#: Families that the interpreter is soon done with; the others are for the full suite.
QUICK = [n if n in ("dit", "pixart") else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS]
device, patched_once_a_launch = shared.device, shared.patched_once_a_launch


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def step_of(name):
    config = config_of(name)
    return config, random_denoising(config, grid_for(config), SEQUENCES, TEXT, torch.float32)


@pytest.mark.parametrize("name", QUICK)
def test_a_denoising_step_is_the_references(device, name):
    config, batch = step_of(name)
    want = Reference().denoise(random_model(config, "fp32"), batch)
    found = Gpu(torch.float32, device).denoise(to_gpu(random_model(config, "fp32"), device), batch)
    torch.testing.assert_close(found.cpu(), want, rtol=2e-4, atol=2e-4)


def test_quantised_weights_denoise_as_their_unpacked_ones(device):
    config, batch = step_of("dit")
    want = Reference().denoise(random_packed(config, "int8"), batch)
    ops = Gpu(torch.float32, device, quantised=True)
    found = ops.denoise(to_gpu(random_packed(config, "int8"), device), batch)
    torch.testing.assert_close(found.cpu(), want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    "name", ["dit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sd3.5", "cogvideox"))]
)
def test_its_profile_has_the_traces_operators(device, name):
    config, batch = step_of(name)
    model = to_gpu(random_model(config, "fp32"), device)
    profile = Gpu(torch.float32, device).profile_denoising(model, batch)
    trace = trace_denoising(model, grid_for(config), SEQUENCES, TEXT, GPU)
    assert [(r.name, len(r.seconds)) for r in profile] == [(op.name, op.repeat) for op in trace.ops]


def test_all_of_a_step_is_moved_and_a_moved_one_stays(device):
    _, batch = step_of("sd3")
    moved = denoising_on(batch, device)
    assert isinstance(moved.spans.joint, GpuSpans)
    assert moved.spans.joint.device == device
    assert moved.patches.device.type == device.type
    assert denoising_on(moved, device).spans.images is moved.spans.images


def test_a_diffusion_transformer_loads_on_a_gpu(device):
    assert isinstance(load("dit-s-2", weights="random", device="cuda").ops, Gpu)
