"""Attention's time on GPUs: against measured steps, and what must follow from how the kernel works."""

from dataclasses import astuple, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from ridgeline.analysis.step import predict_step, trace_step
from ridgeline.hardware import load_device
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count_pairs import most_keys
from ridgeline.ops.kernel import SequenceWork
from ridgeline.ops.lowering import NAIVE_ATTENTION
from ridgeline.ops.records import Mask
from ridgeline.predict.calibrate.calibrate import judge
from ridgeline.predict.calibrate.choose import choose
from ridgeline.predict.calibrate.points import read_file
from ridgeline.predict.gpu.attention import KIND, fit, roofline, seconds
from ridgeline.predict.gpu.fitting import rounded
from ridgeline.predict.gpu.flash import AttentionConstants, attend
from ridgeline.predict.gpu.generic import constants_of, generic_constants
from ridgeline.predict.gpu.kernels import GpuTimes
from ridgeline.predict.gpu.kinds import Points
from ridgeline.predict.tiers import Tier

DEVICE = load_device("rtx-4090")
MEASURED = read_file(Path(str(files("ridgeline.validation") / "measured/attention_rtx-4090.csv.gz")))[
    "attention"
]
CHOSEN = choose(MEASURED, KIND.share)
FITTED_TO, JUDGED = MEASURED.take(CHOSEN), MEASURED.take(np.delete(np.arange(len(MEASURED)), CHOSEN))
DECODES, ALONE = JUDGED["prefill_chunk"] == 0, JUDGED["n_decode"] == 0
LONG = np.maximum(JUDGED["kv_prefill"], JUDGED["kv_decode"]) > 2048
#: A machine that shares no constant with the one whose constants the fit starts from.
OTHER = AttentionConstants(8, 0.7, 0.2, 0.6, 0.8, 6, 5, 20)


def errors(constants, points):
    return np.abs(seconds(DEVICE, constants, points) / points.seconds - 1)


def decode(count, keys, heads=32, kv_heads=8, head_dim=128, cached=0):
    return SequenceWork(1, count, 4 * heads * head_dim * keys, cached, keys, heads, kv_heads, head_dim)


def prompt(rows, past=0, heads=32, kv_heads=8, head_dim=128):
    pairs = rows * past + rows * (rows + 1) // 2
    return SequenceWork(rows, 1, 4 * heads * head_dim * pairs, 0, past + rows, heads, kv_heads, head_dim)


def points(**columns):
    sizes = {"heads": 32, "kv_heads": 8, "head_dim": 128, **columns}
    arrays = np.broadcast_arrays(*(np.asarray(sizes[name]) for name in KIND.numbers))
    return Points("attention", dict(zip(KIND.numbers, arrays, strict=True)), np.ones(len(arrays[0])))


# -- measured steps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "most"), [(DECODES, 0.08), (ALONE, 0.05), (~DECODES & ~ALONE, 0.055), (LONG, 0.06)]
)
def test_twenty_points_predict_the_others(which, most):
    assert len(FITTED_TO) == 20
    assert which.sum() > 80
    assert errors(fit(DEVICE, FITTED_TO), JUDGED.take(which)).mean() < most


def test_the_card_s_constants_are_fitted_as_its_file_says_and_as_good():
    eighteen = choose(MEASURED, 18)
    assert rounded(fit(DEVICE, MEASURED.take(eighteen))) == constants_of(DEVICE, "attention")
    rest = MEASURED.take(np.delete(np.arange(len(MEASURED)), eighteen))
    found = judge(DEVICE, {"attention": rest})["attention"]
    assert found.mean < 0.05
    assert found.median < 0.035


def test_a_roofline_is_far_from_what_was_measured():
    assert np.abs(roofline(DEVICE, JUDGED) / JUDGED.seconds - 1).mean() > 0.5


@pytest.mark.parametrize("kept", ["prompts alone", "short contexts"])
def test_what_the_points_do_not_show_is_predicted_too(kept):
    """Fitted to one part of the measured steps, judged on all others."""
    part = ALONE if kept == "prompts alone" else ~LONG
    chosen = np.flatnonzero(part)[:: max(1, int(part.sum()) // 20)]
    constants = fit(DEVICE, JUDGED.take(chosen))
    assert errors(constants, JUDGED.take(~part)).mean() < 0.08


def test_the_fit_finds_the_constants_of_another_machine():
    """From exact times of steps of all kinds, although it starts from quite other constants."""
    truth = replace(FITTED_TO, seconds=seconds(DEVICE, OTHER, FITTED_TO))
    found = fit(DEVICE, truth)
    assert errors(found, truth).mean() < 0.02
    judged = replace(JUDGED, seconds=seconds(DEVICE, OTHER, JUDGED))
    assert errors(found, judged).mean() < 0.04
    assert errors(AttentionConstants(), judged).mean() > 0.15


def test_the_generation_of_the_kernel_is_found():
    """The profile's is the second; times of the third make a fit of the third."""
    assert fit(DEVICE, FITTED_TO).generation == 2
    third = replace(OTHER, generation=3.0)
    truth = replace(FITTED_TO, seconds=seconds(DEVICE, third, FITTED_TO))
    found = fit(DEVICE, truth)
    assert found.generation == 3
    judged = replace(JUDGED, seconds=seconds(DEVICE, third, JUDGED))
    assert errors(found, judged).mean() < 0.04


# -- what must follow ----------------------------------------------------------------------------


def test_long_decodes_take_as_long_as_reading_their_keys():
    keys = 16384 * 128 * 2 * 8 * 128 * 2
    found = attend(DEVICE, AttentionConstants(memory=1.0), [decode(128, 16384)], "bf16")
    assert float(found.seconds) == pytest.approx(keys / DEVICE.bandwidth, rel=0.02)


def test_a_smaller_cache_format_is_read_faster():
    full = attend(DEVICE, AttentionConstants(), [decode(64, 8192, cached=8192 * 4096)], "bf16").seconds
    half = attend(DEVICE, AttentionConstants(), [decode(64, 8192, cached=8192 * 2048)], "bf16").seconds
    assert 0.5 * full < half < 0.57 * full


def test_a_lone_row_of_a_mixed_step_costs_as_much_as_a_tile_of_rows():
    """Without a chunk its heads share a tile, and many units read its keys."""
    few = [
        attend(DEVICE, AttentionConstants(), [prompt(n), decode(4, 8192)], "bf16").seconds for n in (16, 64)
    ]
    assert few[0] == pytest.approx(few[1], rel=0.02)
    assert few[0] > 1.5 * attend(DEVICE, AttentionConstants(), [decode(4, 8192)], "bf16").seconds


def test_heads_that_share_keys_read_them_once_only_while_they_run_together():
    """In mixed steps of 128 sequences on 128 units, one head at a time: from L2 if one head's keys fit in
    it (72 MiB), else from memory again."""
    fits, exceeds = (
        float(attend(DEVICE, AttentionConstants(), [prompt(16), decode(128, n)], "bf16").needs["memory"])
        for n in (1024, 4096)
    )
    assert exceeds == pytest.approx(4 * 4 * fits, rel=0.02)


def test_the_third_generation_groups_heads_beside_a_prompt_too():
    """A few long sequences beside a chunk then cost no tile a head, and are split."""
    works = [prompt(64), decode(4, 16384)]
    second, third = (
        float(attend(DEVICE, AttentionConstants(generation=n), works, "bf16").seconds) for n in (2.0, 3.0)
    )
    assert third < 0.9 * second


@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_long_prompt_on_an_a100_reaches_what_was_published(head_dim):
    """50 to 73 % of the matrix rate on an A100 (Dao 2023, FlashAttention-2, abstract). Nothing was fitted to
    that card's attention."""
    a100, n, heads = load_device("a100-80gb"), 16384, 32
    flops = 4 * heads * head_dim * n * n
    work = SequenceWork(n, 1, flops, 0, n, heads, heads, head_dim)
    found = attend(a100, AttentionConstants(), [work], "bf16").seconds
    assert 0.5 < flops / found / a100.matrix_rate("bf16") < 0.73


#: TFLOP/s of FlashAttention-3 on an H100 SXM by the size of a head, causal or not, for sequences of 512 to
#: 16,384 tokens, 16,384 in a batch, with 2,048 elements in all heads (Shah et al. 2024, figure 5).
PUBLISHED = {
    (64, False): (333, 392, 460, 476, 496, 497),
    (64, True): (197, 265, 371, 420, 460, 473),
    (128, False): (467, 565, 625, 638, 646, 648),
    (128, True): (292, 423, 521, 579, 602, 616),
    (256, True): (286, 427, 537, 612, 628, 642),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["h100-sxm", "h200"])
def test_uncalibrated_hopper_reaches_what_was_published_of_flash_attention_3(name, causal):
    device = load_device(name)
    constants = generic_constants(device, "attention")
    assert constants.generation == 3
    off = []
    for (head_dim, masked), rates in PUBLISHED.items():
        if masked != causal:
            continue
        for length, published in zip((512, 1024, 2048, 4096, 8192, 16384), rates, strict=True):
            heads, pairs = 2048 // head_dim, length * (length + 1) / 2 if causal else length**2
            work = SequenceWork(length, 16384 // length, 4 * 2048 * pairs, 0, length, heads, heads, head_dim)
            found = float(attend(device, constants, [work], "bf16").seconds)
            done = 16384 // length * 4 * 2048 * (length**2 / (2 if causal else 1))
            off.append(done / found / 1e12 / published - 1)
    assert np.mean(np.abs(off)) < 0.07
    assert np.max(np.abs(off)) < 0.4


def test_only_hopper_takes_the_third_generation_unasked():
    for name in ("a100-80gb", "l40s", "rtx-5090", "b200", "t4"):
        assert generic_constants(load_device(name), "attention").generation == 2


#: Query heads, heads with keys, and the size of a head.
HEADS = [(28, 4, 128), (64, 8, 128), (16, 16, 128), (32, 8, 64), (12, 12, 64), (40, 8, 96), (16, 8, 256)]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize("name", ["rtx-4090", "a100-80gb", "h100-sxm"])
def test_other_heads_have_the_right_limits_and_no_leaps(name, heads, kv_heads, head_dim):
    """Long decodes are bound by reading keys, long prompts reach much of the matrix rate, and a quarter
    more never doubles the time. One row less may: without a chunk the second generation shares keys."""
    device = load_device(name)
    constants = generic_constants(device, "attention")
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    keys = 65536
    read = 64 * keys * 2 * kv_heads * head_dim * 2 / device.bandwidth
    long = float(attend(device, constants, [decode(64, keys, **shape)], "bf16").seconds)
    assert 0.87 < read / long < 1
    n = 32768
    filled = float(attend(device, constants, [prompt(n, **shape)], "bf16").seconds)
    reached = 4 * heads * head_dim * n * (n + 1) / 2 / filled / device.matrix_rate("bf16")
    assert 0.35 < reached < 0.9
    sizes = np.unique(np.geomspace(2, 32768, 80).astype(int))
    for works in (
        [decode(8, sizes, **shape)],
        [decode(sizes, 1024, **shape)],
        [prompt(sizes, **shape)],
        [prompt(sizes, **shape), decode(16, 2048, **shape)],
        [prompt(256, **shape), decode(sizes, 512, **shape)],
    ):
        times = np.asarray(attend(device, constants, works, "bf16").seconds)
        growth = times[1:] / times[:-1]
        assert growth.min() > 0.75  # splitting ends where blocks fill the device
        assert growth.max() < 2


def test_exponentials_bind_where_heads_are_small_and_products_fast():
    fast = replace(DEVICE, matrix={"bf16": 1000e12}, exp_rate=2e12)
    needs = attend(fast, AttentionConstants(), [prompt(2048, head_dim=64)], "bf16").needs
    assert max(needs, key=needs.get) == "exp"


def test_arrays_give_what_numbers_give():
    chunks, counts = np.array([0, 64, 0, 2048, 256]), np.array([3, 0, 200, 17, 1])
    found = seconds(
        DEVICE,
        AttentionConstants(),
        points(prefill_chunk=chunks, kv_prefill=chunks, n_decode=counts, kv_decode=777),
    )
    for i, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
        works = ([prompt(chunk, chunk)] if chunk else []) + ([decode(count, 778)] if count else [])
        assert float(attend(DEVICE, AttentionConstants(), works, "bf16").seconds) == pytest.approx(
            found[i], rel=1e-12
        )


def test_more_keys_rows_or_sequences_never_take_less_by_much():
    """Whole waves and splits make steps, but no cliffs downwards."""
    grid = 2 ** np.arange(4, 15)
    for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"):
        sizes = {"prefill_chunk": 256, "kv_prefill": 512, "n_decode": 16, "kv_decode": 1024, name: grid}
        times = seconds(DEVICE, AttentionConstants(), points(**sizes))
        assert (times[1:] > 0.95 * times[:-1]).all()


def test_all_constants_are_used():
    works = points(prefill_chunk=[0, 512, 0], kv_prefill=0, n_decode=[2, 9, 99], kv_decode=[9000, 300, 999])
    plain = seconds(DEVICE, AttentionConstants(), works)
    for i, value in enumerate(astuple(AttentionConstants())):
        changed = list(astuple(AttentionConstants()))
        changed[i] = value * 1.5  # the third generation, too
        assert (seconds(DEVICE, AttentionConstants(*changed), works) != plain).any()


@pytest.mark.parametrize("mask", [Mask(True), Mask(False), Mask(True, (7, 0)), Mask(False, (3, 2))])
def test_the_row_that_sees_most_is_counted(mask):
    left, right = mask.window
    span = Span(9, 14)
    seen = [
        sum(
            (not mask.causal or key <= query)
            and (left < 0 or key >= query - left)
            and (right < 0 or key <= query + right)
            for key in range(span.keys)
        )
        for query in range(span.past, span.keys)
    ]
    assert most_keys(span, mask) == max(seen)


MODEL = declare(load_config("llama-3.1-8b"))


def test_a_trace_says_how_its_heads_are_cut():
    trace = trace_step(MODEL, [Span(5, 11), Span(1, 7, 3)])
    [works] = [kernel.sequences for _, kernel in trace.kernels() if kernel.kind == "attend"]
    assert [(w.keys, w.heads, w.kv_heads, w.head_dim) for w in works] == [(16, 32, 8, 128), (8, 32, 8, 128)]


def test_a_model_s_attention_takes_what_was_measured_of_its_heads():
    """A step of the profile: a chunk of 256 behind 1,024 tokens beside 32 sequences of 2,048."""
    [attention] = [
        kernel
        for kernel in predict_step(MODEL, DEVICE, [Span(256, 1024), Span(1, 2048, 32)]).kernels
        if kernel.op_class == "attention" and kernel.flops.matrix
    ]
    wanted = {"prefill_chunk": 256, "kv_prefill": 1024, "n_decode": 32, "kv_decode": 2048}
    [real] = MEASURED.seconds[np.all([MEASURED[name] == n for name, n in wanted.items()], axis=0)]
    assert attention.seconds == pytest.approx(real, rel=0.1)
    assert (attention.repeat, attention.bound) == (32, "matrix")


def test_attention_that_does_not_say_how_it_is_cut_is_timed_by_its_work():
    [kernel] = [k for _, k in trace_step(MODEL, [Span(1, 9000, 64)]).kernels() if k.kind == "attend"]
    bare = replace(kernel, sequences=tuple(replace(work, heads=0) for work in kernel.sequences))
    assert KIND.kernel(DEVICE, AttentionConstants(), bare) is None
    times = GpuTimes(DEVICE, Tier.CALIBRATED)
    assert times.time(bare).seconds == pytest.approx(times.time(kernel).seconds, rel=0.3)


def test_a_sweep_of_steps_is_predicted_as_each_of_them():
    past = np.array([100, 3000, 100000])
    sweep = predict_step(MODEL, DEVICE, [Span(1, past, 8)]).seconds
    assert sweep == pytest.approx([predict_step(MODEL, DEVICE, [Span(1, int(n), 8)]).seconds for n in past])


@pytest.mark.parametrize("device", ["a100-80gb", "h100-sxm", "rtx-4090"])
@pytest.mark.parametrize("span", [Span(512), Span(1, 512, 8)])
def test_in_float32_fusing_attention_is_no_loss(device, span):
    """FlashAttention has no kernels for it, so that one row costs no tile of 64 at float32's rate."""
    model = declare(load_config("gpt2"), "fp32")
    fused, naive = (
        predict_step(model, load_device(device), [span], lowering=lowering).seconds
        for lowering in (None, NAIVE_ATTENTION)
    )
    assert fused < naive
