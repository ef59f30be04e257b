"""A trace's kernels on a GPU: their bounds, what they stand on, and the tiers."""

from dataclasses import replace

import numpy as np
import pytest

from ridgeline.analysis.step import predict_step, trace_step
from ridgeline.errors import InputError
from ridgeline.hardware import Provenance, load_device
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.lowering import FUSED, GPU_ENGINE, NAIVE_ATTENTION, UNFUSED
from ridgeline.predict import predict
from ridgeline.predict.gpu.elementwise import seconds as elementwise_seconds
from ridgeline.predict.gpu.gemm import gemm_time, seconds
from ridgeline.predict.gpu.generic import constants_of
from ridgeline.predict.tiers import Tier, tier_of, tiers_of

LLAMA = declare(load_config("llama-2-7b"), "fp16")
H100, H200 = load_device("h100-sxm"), load_device("h200")


def test_a_linear_layer_takes_what_its_shape_takes():
    prediction = predict_step(LLAMA, H100, [Span(300)])
    qkv = next(k for k in prediction.kernels if k.op == "attention.qkv")
    assert qkv.seconds == pytest.approx(seconds(H100, constants_of(H100, "gemm"), 300, 12288, 4096))


def test_the_best_founded_tier_is_taken_and_named():
    assert predict_step(LLAMA, H100, [Span(1)]).tier is Tier.CALIBRATED
    assert predict_step(LLAMA, H200, [Span(1)]).tier is Tier.GENERIC
    assert predict_step(LLAMA, load_device("epyc-9654"), [Span(1)]).tier is Tier.DATASHEET
    assert predict_step(LLAMA, H100, [Span(1)], tier="datasheet").tier is Tier.DATASHEET


def test_every_prediction_says_of_each_kind_where_its_constants_come_from():
    own, others = (predict_step(LLAMA, device, [Span(1)]).basis for device in (H100, H200))
    assert own["gemm"] is own["elementwise"] is Provenance.CALIBRATED
    assert others["gemm"] is others["elementwise"] is Provenance.ASSUMED
    assert own["memory"] is Provenance.DATASHEET
    assert "launch" not in own  # the constants have their own


@pytest.mark.parametrize("span", [Span(1, 512), Span(700), Span(1, 100, count=32)])
@pytest.mark.parametrize("lowering", [None, NAIVE_ATTENTION, UNFUSED])
def test_no_kernel_but_one_in_cache_beats_the_datasheet_by_much(span, lowering):
    """The A100's constants lie below its rates; what goes beyond them does so through the L2."""
    device = load_device("a100-80gb")
    trace = trace_step(LLAMA, [span])
    trace = trace if lowering is None else trace.lowered(lowering)
    best, found = (predict(trace, device, tier) for tier in ("datasheet", "calibrated"))
    assert found.seconds > best.seconds
    for least, kernel in zip(best.kernels, found.kernels, strict=True):
        assert kernel.seconds > 0
        if kernel.op_class == "linear" and kernel.flops.matrix:
            assert kernel.seconds > least.seconds - device.launch_seconds, kernel.name


def test_rotating_and_appending_takes_no_longer_behind_a_long_cache():
    """Its rows are those that it writes, not those of the cache that it writes into."""
    short, long = (
        predict_step(LLAMA, load_device("a100-80gb"), [Span(1, past)], lowering=GPU_ENGINE).kernels
        for past in (64, 3500)
    )
    appended, again = (
        next(k for k in found if k.op == "attention" and not k.flops.matrix) for found in (short, long)
    )
    assert appended.seconds == pytest.approx(again.seconds)
    assert appended.seconds < 10e-6


def test_an_engine_s_kernels_are_those_that_have_time_models():
    """A datasheet's bound is that of the fewest kernels."""
    for span in (Span(1, 2000, 32), Span(1024)):
        for tier, lowering in (("datasheet", FUSED), ("calibrated", GPU_ENGINE)):
            default, named = (
                predict_step(LLAMA, H100, [span], tier=tier, lowering=given) for given in (None, lowering)
            )
            assert default.seconds == named.seconds
            assert len(default.kernels) == len(named.kernels)
            counted = predict_step(LLAMA, H100, [span], tier=tier, pairs=Pairs.SQUARE)
            assert len(counted.kernels) == len(named.kernels)
            assert counted.flops.matrix >= default.flops.matrix


def test_heads_that_are_normed_are_rows_of_their_own():
    """128 elements each: 32 heads' tokens take as long as 32 times as many rows of one head."""
    card = load_device("rtx-4090")
    qwen = declare(load_config("qwen3-8b"))
    found = next(k for k in predict_step(qwen, card, [Span(256)]).kernels if k.op == "split_heads")
    constants = constants_of(card, "elementwise")
    expected = elementwise_seconds(card, constants, 256 * 32, 128, "rms_norm")
    assert found.seconds == pytest.approx(float(expected), rel=0.01)


def test_a_sweep_equals_its_points_one_by_one():
    pasts, rows = np.array([1, 77, 3000]), np.array([5, 600, 1000])
    swept = predict_step(LLAMA, H100, [Span(rows, pasts)]).seconds
    alone = [
        predict_step(LLAMA, H100, [Span(int(r), int(p))]).seconds for r, p in zip(rows, pasts, strict=True)
    ]
    assert swept == pytest.approx(alone)


def test_a_slow_exponential_unit_is_the_bound_of_a_softmax_on_a_gpu_too():
    slow = replace(H100, exp_rate=1e9)
    prediction = predict(trace_step(LLAMA, [Span(512)]).lowered(UNFUSED), slow)
    softmax = next(k for k in prediction.kernels if k.kind == "softmax")
    assert softmax.bound == "exp"
    assert softmax.seconds > softmax.flops.exp / 1e9
    fast = next(
        k
        for k in predict(trace_step(LLAMA, [Span(512)]).lowered(UNFUSED), H100).kernels
        if k.kind == "softmax"
    )
    assert fast.bound != "exp"


def test_a_fused_activation_waits_for_slow_exponentials():
    slow = replace(H100, exp_rate=1e9)
    gate_up = next(k for k in predict_step(LLAMA, slow, [Span(512)]).kernels if k.op == "mlp.gate_up")
    assert gate_up.bound == "exp"
    assert gate_up.seconds > gate_up.flops.exp / 1e9


def test_training_has_a_time_at_every_tier():
    from ridgeline.ops.count import Count

    ops = Count(activations="bf16", train=True)
    trace = ops.trace(LLAMA.forward(ops, ops.batch([Span(256)], logits="all"))).backward()
    best, found = (predict(trace, H100, tier).seconds for tier in ("datasheet", "calibrated"))
    assert best < found < 4 * best


def test_a_device_has_the_tiers_that_it_has_figures_for():
    assert tiers_of(H100) == ("datasheet", "generic", "calibrated")
    assert tiers_of(load_device("apple-m4-max")) == ("datasheet",)
    assert tier_of(H200) == "generic"
    with pytest.raises(
        InputError, match="h200 has no figures for tier calibrated; it has: datasheet, generic"
    ):
        tier_of(H200, "calibrated")
    with pytest.raises(InputError, match="unknown tier 'best'; choose one of: datasheet, generic"):
        tier_of(H200, "best")


def test_the_products_of_experts_are_one_batch_of_as_many_as_are_touched():
    model = declare(load_config("mixtral-8x7b"), "bf16")
    trace = trace_step(model, [Span(1, 100, count=3)])
    down = next(k for k in predict(trace, H100).kernels if k.name == "mlp.experts/down")
    used = 8 * (1 - (1 - 2 / 8) ** 3)
    kernel = next(k for op, k in trace.kernels() if k.kind == "down")
    options = {"dtype": "bf16", "nbytes": kernel.bytes, "batch": used}
    expected = gemm_time(H100, constants_of(H100, "gemm"), 6 / used, 4096, 14336, **options)
    assert down.seconds == pytest.approx(float(expected.seconds))


@pytest.mark.parametrize("span", [Span(1, 512, count=8), Span(700)])
@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "deepseek-v2-lite"])
def test_mixtures_and_latents_have_a_time_at_every_tier(name, span):
    trace = trace_step(declare(load_config(name)), [span])
    least, *others = (predict(trace, H100, tier) for tier in ("datasheet", "generic", "calibrated"))
    for found in others:
        assert least.seconds < found.seconds < 3 * least.seconds
