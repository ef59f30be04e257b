"""Seconds and bounds of kernels, on datasheets and on measured machines."""

from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.analysis.step import predict_step, trace_step
from ridgeline.errors import InputError
from ridgeline.hardware import Level, Provenance, load_device
from ridgeline.hardware.kernels import Affine, AttendCurve, EngineTimes, Kernels, LinearTable
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.lowering import CPU, UNFUSED
from ridgeline.predict import predict

LLAMA = declare(load_config("llama-2-7b"), "bf16")
A100 = load_device("a100-40gb")


def test_a_kernel_takes_its_launch_and_its_longest_need():
    trace = trace_step(LLAMA, [Span(1, 2000)])
    prediction = predict(trace, A100, "datasheet")
    gate_up = next(k for k in prediction.kernels if k.op == "mlp.gate_up")
    weight = 2 * 11008 * 4096 * 2
    assert gate_up.bound == "memory"
    assert gate_up.seconds > A100.launch_seconds + weight / A100.bandwidth
    assert gate_up.seconds == pytest.approx(A100.launch_seconds + weight / A100.bandwidth, rel=1e-3)


def test_decode_is_bound_by_memory_and_a_long_prefill_by_matrix_products():
    decode = predict_step(LLAMA, A100, [Span(1, 512)])
    prefill = predict_step(LLAMA, A100, [Span(2048)])
    assert max(decode.by_bound(), key=decode.by_bound().get) == "memory"
    assert max(prefill.by_bound(), key=prefill.by_bound().get) == "matrix"


def test_batching_decodes_is_nearly_free_while_weights_dominate():
    one, eight = (predict_step(LLAMA, A100, [Span(1, 64, count=n)]).seconds for n in (1, 8))
    assert one < eight < 1.1 * one


def test_a_slow_exponential_unit_can_be_the_bound():
    slow = replace(A100, exp_rate=1e9)
    found = predict_step(LLAMA, slow, [Span(512)], tier="datasheet")
    attention = next(k for k in found.kernels if k.op == "attention")
    assert attention.bound == "exp"


def test_a_small_enough_step_lives_in_cache():
    small = replace(A100, levels=(Level("L2", 1e12, 1e15), Level("HBM", 2e12, 1.555e12)))
    assert (
        predict_step(LLAMA, small, [Span(1, 512)], tier="datasheet").seconds
        < predict_step(LLAMA, A100, [Span(1, 512)], tier="datasheet").seconds
    )


def test_unfusing_costs_time_and_never_saves_it():
    trace = trace_step(LLAMA, [Span(1024)])
    assert predict(trace.lowered(UNFUSED), A100).seconds > predict(trace, A100).seconds


def test_the_sums_by_class_op_and_bound_are_the_total():
    prediction = predict_step(LLAMA, A100, [Span(100, 28)])
    for sums in (prediction.by_class(), prediction.by_op(), prediction.by_bound()):
        assert sum(sums.values()) == pytest.approx(prediction.seconds)


@given(lengths=st.lists(st.integers(1, 4000), min_size=1, max_size=5))
def test_a_sweep_equals_its_points_one_by_one(lengths):
    swept = predict_step(LLAMA, A100, [Span(1, numpy.array(lengths))]).seconds
    single = [predict_step(LLAMA, A100, [Span(1, n)]).seconds for n in lengths]
    assert swept == pytest.approx(single)


def test_every_prediction_says_what_it_stands_on():
    basis = predict_step(LLAMA, A100, [Span(1)], tier="datasheet").basis
    assert basis["matrix"] is Provenance.DATASHEET
    assert basis["launch"] is Provenance.ASSUMED


# -- a measured machine --------------------------------------------------------------------------

TABLE = LinearTable((1, 512), (1e5, 1e7), ((1e-5, 2e-4), (1e-3, 5e-2)), ((3e-5, 9e-4), (1e-3, 5e-2)))
QUANTISED = LinearTable((1, 512), (1e5, 1e7), ((2e-5, 3e-4), (2e-3, 6e-2)), ((4e-5, 5e-4), (2e-3, 6e-2)))
KERNELS = Kernels(
    reading="cpu",
    isa="avx2",
    threads=2,
    step=1e-4,
    linear={"bf16": TABLE, "int4-g128": QUANTISED},
    attend={"bf16": AttendCurve(2e-5, 3e-5, 2e10, 1e10, 1e11, (16, 512), (1e10, 4e10))},
    simple={"fp32": {kind: Affine(1e-6, 1e10) for kind in ("norm", "embed", "gather")}},
    engine=EngineTimes(1e-4, 1e-5, 1e-9),
)
MEASURED = replace(
    A100, kernels=KERNELS.to_dict(), provenance={**A100.provenance, "kernels": Provenance.MEASURED}
)


def test_a_measured_machine_answers_from_its_tables():
    prediction = predict(trace_step(LLAMA, [Span(1, 100)], lowering=CPU), MEASURED)
    by_kind = {k.kind: k for k in prediction.kernels}
    assert prediction.step_seconds == 1e-4
    assert prediction.basis == {"kernels": Provenance.MEASURED}
    assert by_kind["split"].seconds == 0.0
    assert by_kind["norm"].seconds == pytest.approx(1e-6 + by_kind["norm"].bytes / 1e10)
    qkv = next(k for k in prediction.kernels if k.op == "attention.qkv")
    assert qkv.seconds == TABLE.seconds(1, 3 * 4096 * 4096 * 2, cached=False)


def test_a_model_that_fits_the_cache_reads_warm_weights():
    near = replace(MEASURED, levels=(Level("L3", 1e12, 1e13), Level("memory", 2e12, 1e12)))
    qkv = next(
        k
        for k in predict(trace_step(LLAMA, [Span(1)], lowering=CPU), near).kernels
        if k.op == "attention.qkv"
    )
    assert qkv.seconds == TABLE.seconds(1, 3 * 4096 * 4096 * 2, cached=True)


def test_each_weight_format_has_a_table_of_its_own():
    model = declare(replace(load_config("llama-2-7b"), format="bf16"), "int4-g128")
    prediction = predict(trace_step(model, [Span(1)], lowering=CPU), MEASURED)
    head = next(k for k in prediction.kernels if k.op == "head")
    packed = 32000 * (4096 / 2 + 4096 / 128 * 2)
    assert head.seconds == QUANTISED.seconds(1, packed, cached=False)
    assert prediction.unmeasured == ()


def test_measured_experts_take_the_time_of_as_many_products_as_are_touched():
    model = declare(load_config("mixtral-8x7b"), "bf16")
    trace = trace_step(model, [Span(3, 40)], lowering=CPU)
    found = {k.name: k for k in predict(trace, MEASURED).kernels}
    used = 8 * (1 - (1 - 2 / 8) ** 3)
    one = KERNELS.linear["bf16"].seconds(6 / used, 2 * 14336 * 4096 * 2, cached=False)
    assert found["mlp.experts"].seconds == pytest.approx(used * one)
    down = KERNELS.linear["bf16"].seconds(6 / used, 14336 * 4096 * 2, cached=False)
    assert found["mlp.experts/down"].seconds == pytest.approx(used * down)


def test_weights_in_a_format_that_was_not_measured_are_refused():
    for format in ("fp16", "int8"):
        model = declare(load_config("llama-2-7b"), format)
        with pytest.raises(InputError, match=f"not measured with weights in {format}.* bf16, int4-g128"):
            predict(trace_step(model, [Span(1)], lowering=CPU), MEASURED)


def test_a_cache_without_tables_reaches_the_measured_rates_and_says_so():
    trace = trace_step(LLAMA, [Span(1, 100)], cache_format="int8", lowering=CPU)
    prediction = predict(trace, MEASURED)
    assert prediction.unmeasured == ("attend in int8",)
    assert prediction.basis["launch"] is Provenance.ASSUMED
    assert "kernels" in prediction.basis


def test_attention_serves_one_sequence_after_another_in_one_kernel():
    """Each reads its own keys or computes its own pairs, and has an overhead of its own."""

    def attention(*spans):
        trace = trace_step(LLAMA, spans, lowering=CPU)
        (seconds,) = (k.seconds for k in predict(trace, MEASURED).kernels if k.op == "attention")
        return seconds

    one, prompt = attention(Span(1, 99)), attention(Span(64))
    assert attention(Span(1, 99, count=8)) == pytest.approx(8 * one)
    assert attention(Span(1, 99), Span(1, 99)) == pytest.approx(2 * one)
    assert attention(Span(64), Span(1, 99)) == pytest.approx(prompt + one)


@pytest.mark.parametrize(("weights", "attention"), [("bf16", "bf16"), ("fp32", "fp32")])
def test_attention_without_a_cache_multiplies_as_the_weights_that_are_not_quantised(weights, attention):
    curves = {"bf16": 1e10, "fp32": 2e10}
    measured = replace(
        KERNELS,
        linear=dict.fromkeys(curves, TABLE),
        attend={
            f: AttendCurve(0.0, 0.0, 1e10, 1e10, 1e11, (1, 2), (rate, rate)) for f, rate in curves.items()
        },
    )
    trace = trace_step(declare(load_config("bert-base"), weights), [Span(64)], lowering=CPU, logits="all")
    found = predict(trace, replace(MEASURED, kernels=measured.to_dict()))
    (seconds,) = (k.seconds for k in found.kernels if k.op == "attention")
    assert seconds == pytest.approx(4 * 64 * 64 * 768 / curves[attention])


def on_tables(model, span, kernels=KERNELS, device=MEASURED, **options):
    """The seconds of one call of each operator by its name."""
    trace = trace_step(model, [span], lowering=CPU, **options)
    found = predict(trace, replace(device, kernels=kernels.to_dict()))
    return {k.op: k.seconds for k in found.kernels}, {op.name: k for op, k in trace.kernels()}


def test_a_products_activation_and_residual_take_what_they_hand_on():
    extra = {"epilogue.residual": Affine(0.0, 1e9), "epilogue.silu_gated": Affine(0.0, 5e8)}
    more = replace(KERNELS, simple={"fp32": KERNELS.simple["fp32"] | extra})
    without, _ = on_tables(LLAMA, Span(8))
    found, _ = on_tables(LLAMA, Span(8), more)
    assert found["mlp.gate_up"] - without["mlp.gate_up"] == pytest.approx(8 * 11008 * 4 / 5e8)
    assert found["mlp.down"] - without["mlp.down"] == pytest.approx(8 * 4096 * 4 / 1e9)
    assert found["attention.qkv"] == without["attention.qkv"]


def test_many_rows_take_the_time_of_the_weights_shape():
    shaped = replace(TABLE, shaped_bytes=(1e7,), inputs=(1.5,), outputs=(0.8,))
    kernels = replace(KERNELS, linear={"bf16": shaped})
    for span, factors in ((Span(64), (1.5, 0.8)), (Span(1, 64), (1.0, 1.0))):
        square, _ = on_tables(LLAMA, span)
        found, _ = on_tables(LLAMA, span, kernels)
        assert found["attention.out"] == square["attention.out"]
        low, high = sorted((1.0, factors[0]))
        assert low <= found["mlp.down"] / square["mlp.down"] <= high
        assert factors[1] - 1e-9 <= found["mlp.gate_up"] / square["mlp.gate_up"] <= 1.0
        assert (found["mlp.down"] > square["mlp.down"]) == (span.rows > 1)


def test_a_table_that_is_multiplied_by_too_is_looked_up_packed():
    """Where embedding and output matrix are one, a row lies among 31 others."""
    packed = replace(KERNELS, simple={"fp32": KERNELS.simple["fp32"] | {"embed.packed": Affine(0.0, 1e8)}})
    tied, apart = declare(load_config("gpt2"), "bf16"), LLAMA
    add = replace(packed, simple={"fp32": packed.simple["fp32"] | {"add": Affine(0.0, 1e9)}})
    found, kernels = on_tables(tied, Span(4), add)
    assert found["embedding"] == pytest.approx(4 * 768 * 2 / 1e8)
    assert found["positions"] == pytest.approx(1e-6 + kernels["positions"].bytes / 1e10)
    assert on_tables(apart, Span(4), packed)[0]["embedding"] == on_tables(apart, Span(4))[0]["embedding"]


def test_weights_that_only_the_last_level_cache_holds_come_from_there():
    last = replace(TABLE, last=((2e-5, 4e-4), (1e-3, 5e-2)))
    kernels = replace(KERNELS, linear={"bf16": last})
    levels = {
        "own": (Level("L2", 1e12, 1e13), Level("L3", 2e12, 1e13), Level("memory", 3e12, 1e12)),
        "last": (Level("L2", 1e6, 1e13), Level("L3", 2e12, 1e13), Level("memory", 3e12, 1e12)),
        "fresh": (Level("L2", 1e6, 1e13), Level("L3", 2e6, 1e13), Level("memory", 3e12, 1e12)),
    }
    tables = {"own": last.warm, "last": last.last, "fresh": last.fresh}
    nbytes = 4096 * 4096 * 2
    for place, of in levels.items():
        found, _ = on_tables(LLAMA, Span(1), kernels, replace(MEASURED, levels=of))
        assert found["attention.out"] == pytest.approx(tables[place][0][1] * nbytes / 1e7)


def test_inputs_that_are_farther_away_are_read_more_slowly():
    far = Affine(1e-6, 1e11, 3e-6, (1e6, 1e8), (1e11, 1e10))
    kernels = replace(KERNELS, simple={"fp32": KERNELS.simple["fp32"] | {"norm": far}})
    found, passed = on_tables(LLAMA, Span(256), kernels)
    nbytes = passed["input_norm"].bytes
    assert found["input_norm"] == pytest.approx(3e-6 + nbytes / 1e10)  # behind 90 MB of mlp.down's weights
    assert 3e-6 + nbytes / 1e11 < found["post_norm"] < found["input_norm"]


def test_prompts_without_a_mask_and_their_keys_have_rates_of_their_own():
    curve = replace(KERNELS.attend["bf16"], whole=(2e10, 8e10), append=1e9)
    kernels = replace(
        KERNELS,
        attend={"bf16": curve},
        simple={"fp32": KERNELS.simple["fp32"] | dict.fromkeys(("add", "norm"), Affine(0.0, 1e9))},
    )
    found, _ = on_tables(declare(load_config("bert-base"), "bf16"), Span(512), kernels, logits="all")
    assert found["attention"] == pytest.approx(curve.overhead + 4 * 512 * 512 * 768 / 8e10)
    prompt, _ = on_tables(LLAMA, Span(512), kernels)
    causal, stored = 4 * 4096 * 512 * 513 / 2 / 4e10, 2 * 512 * 4096 * 2 / 1e9
    assert prompt["attention"] == pytest.approx(curve.overhead + causal + stored, rel=1e-2)


def test_a_counting_convention_changes_no_time():
    for device in (A100, MEASURED):
        visible, square = (predict_step(LLAMA, device, [Span(512)], pairs=p) for p in Pairs)
        assert visible.seconds == square.seconds
        assert visible.flops.matrix < square.flops.matrix


@pytest.mark.parametrize(
    "spans",
    [
        [],
        [Span(0)],
        [Span(-3, 10)],
        [Span(1, -5)],
        [Span(1, 0, count=0)],
        [Span(1, 5000)],
        [Span(numpy.array([1, 0]))],
    ],
)
def test_impossible_spans_are_refused(spans):
    with pytest.raises(InputError):
        predict_step(LLAMA, A100, spans)


def test_logits_are_of_the_last_row_or_of_all():
    with pytest.raises(InputError, match="foo"):
        predict_step(LLAMA, A100, [Span(1)], logits="foo")


@pytest.mark.parametrize(
    "change",
    [
        {"threads": "x"},
        {"threads": 0},
        {"linear": {"bf16": {**KERNELS.to_dict()["linear"]["bf16"], "rows": []}}},
        {"linear": {"bf16": {**KERNELS.to_dict()["linear"]["bf16"], "warm": [[1.0]]}}},
        {"attend": {"bf16": {**KERNELS.to_dict()["attend"]["bf16"], "warm": -1.0}}},
        {"simple": {"bf16": {"norm": {"overhead": 0.0, "throughput": 0.0}}}},
        {"simple": {"bf16": {"norm": {"speed": 1.0}}}},
        {"linear": None},
    ],
)
def test_an_edited_kernel_table_is_refused_in_one_line(change):
    edited = replace(MEASURED, kernels={**KERNELS.to_dict(), **change})
    with pytest.raises(InputError, match="ridgeline measure"):
        predict_step(LLAMA, edited, [Span(1)])
