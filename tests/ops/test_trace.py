"""What must hold of every trace: it is a program, and neither fusion nor loops change its work."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.kernel import Access, Flops, Role, Value
from ridgeline.ops.lowering import FUSED, TORCH_CPU
from ridgeline.ops.records import Weight
from ridgeline.ops.trace import op_class
from tests.ops.small_models import FAMILIES, LOWERINGS, count, small, unrolled

steps = st.lists(st.builds(Span, rows=st.integers(1, 9), past=st.integers(0, 9)), min_size=1, max_size=3)


@st.composite
def passes(draw):
    """The arguments of a pass: with or without a cache, or a training step."""
    family, layers = draw(st.sampled_from(FAMILIES)), draw(st.integers(1, 4))
    lowering, training = draw(st.sampled_from(LOWERINGS)), draw(st.booleans())
    spans = draw(steps)
    cached = family != "bert-base" and not training and draw(st.booleans())
    if not cached:
        spans = [Span(s.rows) for s in spans]
    options = {"lowering": lowering, "train": training, "cached": cached}
    return family, layers, spans, options


def forward_of(family, layers, spans, options, counted=count):
    return counted(small(family, layers=layers), *spans, **options)


def trace_of(family, layers, spans, options, counted=count):
    trace = forward_of(family, layers, spans, options, counted)
    return trace.backward() if options["train"] else trace


@settings(max_examples=60)
@given(passes())
def test_a_kernel_reads_only_what_is_there_already(a_pass):
    trace = trace_of(*a_pass)
    there = {v.id for v in trace.values if v.role in (Role.INPUT, Role.WEIGHT, Role.CACHE)}
    if trace.forward is not None:  # the loss gives the gradient of the output, the first value added
        there.add(len(trace.forward.values))
    for _, kernel in trace.kernels():
        for access in kernel.reads:
            assert {access.value.id, access.value.storage} & there, f"{kernel.kind} reads {access.value}"
        for access in kernel.writes:
            there |= {access.value.id, access.value.storage}


@settings(max_examples=60)
@given(passes())
def test_a_value_is_written_by_one_kernel(a_pass):
    trace = trace_of(*a_pass)
    written = [a.value.id for _, kernel in trace.kernels() for a in kernel.writes]
    assert len(written) == len(set(written))


@settings(max_examples=60)
@given(passes())
def test_every_access_is_to_a_value_as_the_trace_lists_it(a_pass):
    trace = trace_of(*a_pass)
    for op in trace.ops:
        for part in op.parts:
            for access in (*part.reads, *part.writes):
                assert access.value == trace.values[access.value.id]
                assert access.elements <= access.value.elements


@settings(max_examples=60)
@given(passes())
def test_a_loop_does_what_its_layers_do_one_by_one(a_pass):
    trace, flat = trace_of(*a_pass), trace_of(*a_pass, counted=unrolled)
    assert flat.loops == ()
    assert trace.flops == flat.flops
    # The experts that are touched are no whole number.
    assert (trace.bytes, trace.elements) == pytest.approx((flat.bytes, flat.elements), rel=1e-12)
    assert trace.by_class() == flat.by_class()


@settings(max_examples=60)
@given(passes())
def test_fusion_saves_traffic_and_no_operation(a_pass):
    trace = forward_of(*a_pass)
    assert trace.unfused().flops == trace.flops
    assert trace.unfused().bytes >= trace.bytes >= trace.lowered(FUSED).bytes


@given(passes())
def test_a_trace_lowered_is_the_trace_counted_that_way(a_pass):
    *what, options = a_pass
    for lowering in LOWERINGS:
        assert trace_of(*a_pass).lowered(lowering) == trace_of(*what, options | {"lowering": lowering})


def test_a_run_of_identical_layers_is_one_loop():
    trace = count(small("llama-3-8b", layers=4), 5)
    (loop,) = trace.loops
    assert loop.count == 4
    assert [op.repeat for op in trace.ops] == [1] + [4] * (loop.stop - loop.start) + [1, 1]


# -- fusion, by hand ----------------------------------------------------------------------------


def linear_with_everything():
    ops = Count()
    x, residual = ops.input("x", (7, 5), "bf16"), ops.input("residual", (7, 3), "bf16")
    w, bias = Weight("w", (6, 5), "bf16"), Weight("bias", (6,), "bf16")
    return ops.trace(ops.linear(x, w, bias=bias, activation="silu_gated", residual=residual))


def traffic(trace):
    """By kernel: its kind, elements read, elements written."""
    return [
        (k.kind, sum(a.elements for a in k.reads), sum(a.elements for a in k.writes))
        for _, k in trace.kernels()
    ]


def test_a_fused_linear_layer_hands_its_parts_results_on_in_registers():
    inputs, outputs = 7 * 5 + 6 * 5 + 6 + 7 * 3, 7 * 3
    assert traffic(linear_with_everything()) == [("linear", inputs, outputs)]


def test_an_unfused_linear_layer_writes_and_reads_back_every_result():
    assert traffic(linear_with_everything().unfused()) == [
        ("matmul", 7 * 5 + 6 * 5, 7 * 6),
        ("bias", 7 * 6 + 6, 7 * 6),
        ("activation", 7 * 6, 7 * 3),
        ("residual", 7 * 3 + 7 * 3, 7 * 3),
    ]


def test_a_kernel_writes_what_a_kernel_of_the_same_operator_reads():
    assert traffic(linear_with_everything().lowered(TORCH_CPU)) == [
        ("linear", 7 * 5 + 6 * 5 + 6, 7 * 6),
        ("activation", 7 * 6, 7 * 3),
        ("residual", 7 * 3 + 7 * 3, 7 * 3),
    ]


def test_fused_attention_reads_back_old_keys_and_values_only():
    model = small("gpt2", layers=1)
    (fused,) = (k for op, k in count(model, Span(2, 4), cached=True).kernels() if op.kind == "attend")
    token = model.config.width  # elements of one token's keys, values or queries
    assert {a.value.name: a.elements for a in fused.reads} == {
        "q": 2 * token,
        "k": 2 * token,
        "v": 2 * token,
        "keys": 6 * token,  # 6 tokens are in blocks of 4: 8, less the 2 that it has just written
        "values": 6 * token,
    }
    assert {a.value.name: a.elements for a in fused.writes} == {
        "keys": 2 * token,
        "values": 2 * token,
        "attention": 2 * token,
    }


def test_unfused_attention_moves_the_scores_four_times():
    moved = [
        access.elements
        for op, kernel in count(small("gpt2", layers=1), 6).unfused().kernels()
        if op.kind == "attend"
        for access in (*kernel.reads, *kernel.writes)
        if access.value.name in ("scores", "weights")
    ]
    assert moved == [6 * 6 * 6] * 4


# -- records ------------------------------------------------------------------------------------


def test_part_of_a_quantised_value_takes_its_rows_scales():
    value = Value(0, "table", (100, 256), "int4-g128", Role.WEIGHT)
    assert Access(value, 3 * 256).bytes == 3 * (256 / 2 + 2 * 2)


def test_operations_add_and_multiply_by_unit():
    assert Flops(1, 2, 3) + Flops(10, 20, 30) * 2 == Flops(21, 42, 63)
    assert Flops(1, 2, 3).total == 6


@pytest.mark.parametrize(("kind", "name"), [("attend", "attention"), ("split", "norm"), ("linear", "linear")])
def test_a_backward_operator_is_of_its_forwards_class(kind, name):
    assert op_class(kind) == op_class(f"{kind}_backward") == name
