"""A predicted training step: phases, memory, utilisation, sharing out, refusals."""

import json
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from math import prod

import pytest
from rich.console import Console

from ridgeline.analysis.denoising import explain_denoising
from ridgeline.analysis.training import training
from ridgeline.analysis.training_step import Recipe, count_training
from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.predict import predict
from ridgeline.report.training import show_training

A100 = load_device("a100")


@pytest.fixture(scope="module")
def found():
    return training("gpt2", "a100", batch=4, length=512)


def test_the_phases_are_the_traces_kernels(found):
    trace = count_training(declare(load_config("gpt2")), Span(512, count=4), Recipe())
    assert [p.name for p in found.phases] == ["forward", "backward", "optimizer"]
    assert sum(p.seconds for p in found.phases) == pytest.approx(predict(trace, A100).seconds)
    assert sum(p.bytes for p in found.phases) == trace.bytes
    assert sum(p.flops.matrix for p in found.phases) == trace.flops.matrix == found.hardware_flops


def test_a_step_takes_three_times_the_products_of_its_forward_pass():
    """Without recomputation, and but for nothing: the first layer's input wants a gradient too."""
    found = training("gpt2", "a100", batch=4, length=512, kernels="unfused")
    forward = found.phases[0].flops.matrix
    assert found.model_flops == found.hardware_flops == 3 * forward


def test_utilisation_is_of_the_matrix_rate_in_the_steps_time(found):
    peak = A100.matrix_rate("bf16") * found.seconds
    assert found.mfu == pytest.approx(found.model_flops / peak)
    assert found.hfu == pytest.approx(found.hardware_flops / peak)
    assert found.tokens_per_second == pytest.approx(4 * 512 / found.seconds)


def test_recomputing_lowers_memory_and_mfu_and_raises_hfu(found):
    none, selective, full = found.policies
    assert none.seconds == found.seconds
    assert selective == replace(none, recompute="selective")
    assert full.activations < none.activations / 2
    assert full.mfu < none.mfu
    assert full.hfu > none.hfu
    again = training("gpt2", "a100", batch=4, length=512, recompute="full")
    assert [p.name for p in again.phases] == ["forward", "recompute", "backward", "optimizer"]
    assert again.model_flops == found.model_flops


def test_the_largest_batch_is_the_last_that_fits():
    small = replace(A100, levels=(replace(A100.levels[-1], capacity=6e9),))
    most = training("gpt2", small, length=512).largest_batch
    fits = [training("gpt2", small, batch=n, length=512).memory.fits for n in (most, most + 1)]
    assert fits == [True, False]


def test_a_model_that_fits_nowhere_has_no_batch():
    found = training("llama-3-8b", "rtx-4090", length=128)
    assert found.largest_batch == 0
    assert not found.memory.fits
    assert any("does not fit" in said for said in found.assumptions)


@pytest.mark.parametrize(
    ("zero", "shared"),
    [(0, ()), (1, ("states",)), (2, ("states", "gradients")), (3, ("states", "gradients", "weights"))],
)
def test_zero_shares_out_one_thing_more_at_each_stage(zero, shared):
    one = training("gpt2", "a100", length=256)
    eight = training("gpt2", "a100", length=256, devices=8, zero=zero)
    for name in ("weights", "gradients", "states"):
        part = 8 if name in shared else 1
        assert getattr(eight.memory, name) == getattr(one.memory, name) / part
    assert eight.memory.activations == one.memory.activations
    assert eight.model_flops == 8 * one.model_flops


def test_devices_send_rings_worth_of_gradients_and_weights():
    sent = [training("gpt2", "a100", devices=8, zero=z, length=256).communication_bytes for z in range(4)]
    weights = 2 * declare(load_config("gpt2")).parameter_count()
    assert sent == [2 * weights * 7 / 8, 2 * weights * 7 / 8, 2 * weights * 7 / 8, 3 * weights * 7 / 8]
    assert training("gpt2", "a100", length=256).communication_bytes == 0


def test_communication_hides_behind_the_passes_unless_it_is_longer():
    slow = replace(A100, link_bandwidth=1e6)
    fast, held_up = (training("gpt2", d, devices=8, length=256) for d in (A100, slow))
    passes = sum(p.seconds for p in fast.phases if p.name != "optimizer")
    updating = fast.phases[-1].seconds
    assert fast.seconds == pytest.approx(passes + updating)
    assert held_up.seconds == pytest.approx(held_up.communication_seconds + updating)


@pytest.mark.parametrize(("precision", "a_parameter"), [("mixed", 16), ("bf16", 8), ("fp32", 16)])
def test_precision_sets_the_bytes_a_parameter(precision, a_parameter):
    memory = training("gpt2", "a100", length=64, precision=precision).memory
    total = memory.weights + memory.gradients + memory.states
    assert total == a_parameter * declare(load_config("gpt2")).parameter_count()


def test_mixed_precision_keeps_a_models_own_sixteen_bits():
    model = training("opt-1.3b", "a100", length=64)
    assert model.memory.weights == 2 * model.parameters
    assert training("gpt2", "a100", length=64).memory.weights == 2 * 124439808


def test_a_stash_saves_memory_and_costs_traffic_of_the_forward_pass():
    plain, stashed = (training("opt-125m", "a100", batch=8, length=512, stash=s) for s in (None, "int4-g128"))
    assert stashed.memory.activations < 0.6 * plain.memory.activations
    assert stashed.phases[0].bytes > plain.phases[0].bytes
    assert stashed.phases[1].bytes < plain.phases[1].bytes
    assert stashed.model_flops == plain.model_flops


def test_counting_all_pairs_changes_the_flops_and_not_the_time(found):
    square = training("gpt2", "a100", batch=4, length=512, pairs="square")
    assert square.seconds == found.seconds
    assert square.model_flops > found.model_flops
    assert square.mfu > found.mfu


def test_an_encoder_without_a_head_is_trained_without_a_loss():
    config = load_config("bert-base")
    names = [op.name for op in count_training(declare(config), Span(16), Recipe()).ops]
    assert ("loss" in names) == (config.architecture == "BertForMaskedLM")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be 1 to"),
        ({"length": 2000}, "gpt2 takes 1024 tokens at most, not 2000"),
        ({"zero": 4}, "zero is 4; choose one of: 0, 1, 2, 3"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"kernels": "fast"}, "kernels is 'fast'"),
        ({"recompute": "some"}, "recompute is 'some'"),
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"stash": "int5"}, "unknown storage format 'int5'"),
        ({"pairs": "all"}, "pairs must be visible or square"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        training("gpt2", "a100", **{"length": 64, **options})


def test_a_diffusion_transformer_is_trained_on_images():
    """A forward pass is what explain counts of the batch without guidance; a backward one is twice that."""
    with pytest.raises(InputError, match="dit-b-2 denoises images: it has no length"):
        training("dit-b-2", "a100", length=64)
    found = training("dit-b-2", "a100", batch=4, kernels="naive")
    assert (found.workload.length, found.workload.tokens) == (256, 1024)
    forward = explain_denoising("dit-b-2", "a100", batch=4, guidance=False).phases[0].flops.matrix
    assert found.phases[0].flops.matrix == forward
    assert found.model_flops == pytest.approx(3 * forward, rel=0.01)


def test_an_encoder_decoder_is_trained_on_sources_and_targets_alike():
    found = training("t5-small", "a100", batch=2, length=64)
    model = declare(load_config("t5-small"))
    rows = 2 * 64
    per_token = 2 * (model.parameter_count() - 32_128 * 512)  # every matrix once a token of its stack
    encoder_and_decoder = per_token * rows + 2 * 32_128 * 512 * rows
    forward = found.phases[0].flops.matrix
    assert encoder_and_decoder < forward < 1.1 * encoder_and_decoder  # attention's products come on top
    assert any("targets are as long as their sources" in line for line in found.assumptions)


def test_a_length_is_by_default_the_window_where_that_is_shorter():
    assert training("gpt2", "a100").workload.length == 1024
    assert training("llama-3.2-1b", "a100").workload.length == 2048


def test_several_devices_need_a_link():
    with pytest.raises(InputError, match="generic-cpu has no link"):
        training("gpt2", "generic-cpu", length=64, devices=2)


def test_the_table_fits_80_columns(found):
    console = Console(width=80, record=True, file=StringIO())
    show_training(console, training("gpt2", "a100", batch=4, length=512, devices=8, zero=2, recompute="full"))
    text = console.export_text()
    assert "…" not in text
    for words in ("forward", "recompute", "backward", "optimizer", "MFU", "HFU", "sends", "states", "fit."):
        assert words in text


def test_the_command_prints_json():
    command = [
        sys.executable,
        "-m",
        "ridgeline.cli",
        "training",
        "gpt2",
        "--on",
        "a100",
        "--length",
        "64",
        "--json",
    ]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found["memory"]["fits"] is True
    assert found["recipe"]["optimizer"] == "adamw"


@pytest.mark.parametrize("name", ["t5-small", "llama-3.2-1b", "gemma-3-1b", "deepseek-v2-lite", "latte-1"])
def test_every_parameter_is_updated_once(name):
    """What all layers read, such as T5's table of biases, has one update, however often a loop runs."""
    model = declare(load_config(name), "bf16")
    trace = count_training(model, Span(8), Recipe(optimizer="sgd", precision="bf16"))
    updated = sum(
        op.repeat * prod(access.value.shape)
        for op in trace.ops
        if op.kind == "optimizer"
        for part in op.parts
        for access in part.writes
        if access.value.role == "weight"
    )
    assert updated == model.parameter_count()
