"""Memory by use: peaks by hand, and loops against the same layers one by one."""

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.lowering import FUSED, UNFUSED
from ridgeline.ops.records import Heads, Mask, Norm, Score, Weight
from tests.ops.small_models import FAMILIES, LOWERINGS, Unrolled, count, count_mlp, mlp, small, unrolled

BF16 = 2


def weight(*shape):
    return Weight("w", shape, "bf16")


def activations(ops, output):
    return ops.trace(output).memory().activations


# -- peaks by hand ------------------------------------------------------------------------------


def test_a_layer_needs_its_input_and_its_output_at_once():
    trace = count_mlp(mlp(30, 70, 20, 40), 5)
    assert trace.memory().activations == 5 * (30 + 70) * BF16
    trace = count_mlp(mlp(30, 20, 70, 40), 5)
    assert trace.memory().activations == 5 * (70 + 40) * BF16


def test_what_is_read_again_lives_until_then():
    ops = Count()
    x = ops.input("x", (5, 30), "bf16")
    h = ops.linear(ops.linear(x, weight(50, 30)), weight(30, 50))
    y = ops.linear(h, weight(30, 30), residual=x)
    assert activations(ops, y) == 5 * (30 + 30 + 50) * BF16  # x through both


def test_nothing_lives_after_its_last_reader():
    ops = Count()
    x = ops.input("x", (5, 30), "bf16")
    y = ops.linear(ops.linear(x, weight(10, 30), residual=None), weight(35, 10))
    assert activations(ops, y) == 5 * (10 + 35) * BF16


def test_the_output_lives_to_the_end():
    ops = Count()
    x = ops.input("x", (5, 30), "bf16")
    y = ops.linear(x, weight(30, 30))
    ops.linear(ops.linear(x, weight(20, 30)), weight(40, 20))
    assert activations(ops, y) == 5 * (30 + 20 + 40) * BF16


def test_an_input_is_there_from_the_start():
    ops = Count()
    x, late = ops.input("x", (5, 30), "bf16"), ops.input("late", (5, 1), "bf16")
    y = ops.add(ops.linear(ops.linear(x, weight(40, 30)), weight(1, 40)), late)
    assert activations(ops, y) == 5 * (30 + 40 + 1) * BF16


def test_views_share_the_memory_of_their_base():
    ops = Count()
    qkv = ops.linear(ops.input("x", (5, 12), "bf16"), weight(36, 12))
    q, k, v = ops.split_heads(qkv, Heads(3, 3, 4))
    spans = ops.batch([Span(5)]).spans
    y = ops.attend(q, k, v, spans=spans, mask=Mask(causal=True), score=Score(0.5))
    assert activations(ops, y) == 5 * (36 + 12) * BF16


def test_a_view_keeps_all_of_its_base():
    ops = Count()
    qkv = ops.linear(ops.input("x", (5, 12), "bf16"), weight(36, 12))
    q, _, v = ops.split_heads(qkv, Heads(3, 3, 4))
    y = ops.norm(q, Norm("rms", weight(4), 1e-5))
    y = ops.norm(y, Norm("rms", weight(4), 1e-5))
    ops.add(y, v)
    assert activations(ops, y) == 5 * (36 + 12 + 12) * BF16


def test_scores_are_memory_only_where_they_are_written():
    trace = count(small("gpt2", layers=1), Span(32, count=3))
    square = 6 * 3 * 32 * 32
    attention = 32 * 3 * 48 * (1 + 3)  # the residual stream and q, k, v
    assert trace.unfused().memory().activations == (attention + 2 * square) * BF16
    assert trace.memory().activations < trace.unfused().memory().activations


# -- what stays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 3])
def test_weights_are_those_of_the_model(family, layers):
    model = small(family, layers=layers)
    assert count(model, 5).memory().weights == model.weight_bytes()


@given(st.sampled_from(FAMILIES[:-1]), st.integers(1, 4), st.integers(1, 9), st.integers(0, 9))
def test_the_cache_holds_every_layers_keys_and_values_in_blocks(family, layers, rows, past):
    model = small(family, layers=layers)
    tokens = -(-(past + rows) // 4) * 4
    expected = tokens * model.cache_spec("bf16").elements_per_token * BF16
    assert count(model, Span(rows, past), cached=True).memory().cache == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_training_holds_a_gradient_for_every_weight(family):
    model = small(family)
    memory = count(model, 5, train=True).backward().memory()
    buffers = sum(weight.nbytes for weight in model.weights() if not weight.trained)
    assert memory.gradients == memory.weights - buffers
    assert count(small(family), 5).memory().gradients == 0


# -- loops --------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    st.sampled_from(FAMILIES),
    st.integers(1, 5),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.sampled_from(LOWERINGS),
    st.booleans(),
)
def test_a_loop_needs_what_its_layers_need_one_by_one(family, layers, rows, lowering, training):
    model = small(family, layers=layers)
    loop, flat = (counted(model, *rows, lowering=lowering, train=training) for counted in (count, unrolled))
    assert loop.memory() == flat.memory()
    if training:
        assert loop.backward().memory() == flat.backward().memory()


@given(
    st.integers(2, 6),
    st.integers(1, 9),
    st.sampled_from(["relu", "silu", "tanh", None]),
    st.sampled_from(LOWERINGS),
)
def test_a_loop_whose_first_entry_wants_no_gradient_needs_the_same(depth, rows, activation, lowering):
    layers = mlp(*[7] * (depth + 1))
    loop, flat = (
        count_mlp(layers, rows, reading=reading, activation=activation, lowering=lowering, train=True)
        for reading in (Count, Unrolled)
    )
    assert loop.memory() == flat.memory()
    assert loop.backward().memory() == flat.backward().memory()


def test_what_every_layer_reads_lives_until_the_last():
    def trace(reading):
        ops = reading()
        x, context = ops.input("x", (5, 8), "bf16"), ops.input("context", (5, 8), "bf16")

        def layer(layer, x):
            x = ops.add(x, context)
            return ops.linear(ops.linear(x, weight(60, 8)), layer.weight)

        return ops.trace(ops.repeat(mlp_of_widths_60_to_8(), layer, x))

    assert trace(Count).memory() == trace(Unrolled).memory()
    assert trace(Count).memory().activations == 5 * (8 + 8 + 60) * BF16


def test_an_entry_that_is_read_after_the_loop_lives_beside_what_replaces_it():
    def trace(reading):
        ops = reading()
        x = ops.input("x", (5, 8), "bf16")
        y = ops.repeat(mlp(8, 8, 8), lambda layer, x: ops.linear(x, layer.weight), x)
        return ops.trace(ops.add(x, y))

    assert trace(Count).memory() == trace(Unrolled).memory()
    assert trace(Count).memory().activations == 5 * (8 + 8 + 8) * BF16


def mlp_of_widths_60_to_8():
    return tuple(mlp(60, 8)[0] for _ in range(3))


# -- training -----------------------------------------------------------------------------------


def held_by_a_layer(family, lowering, rows, sequences):
    """How much one more layer adds to the peak of a training step."""
    span = Span(rows, count=sequences)
    deep, shallow = (
        count(small(family, layers=layers), span, lowering=lowering, train=True).backward().memory()
        for layers in (5, 4)
    )
    return deep.activations - shallow.activations


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 4))
def test_gpt2_stores_the_published_activations_a_layer(s, b):
    """sbh(34 + 5as/h) bytes with dropout (Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198,
    equation 1). Without dropout two byte masks of sbh, and of 5abs² the mask and the dropped-out
    copy, three bytes, are not there."""
    a, h = 6, 48
    assert held_by_a_layer("gpt2", UNFUSED, s, b) == s * b * h * 32 + 2 * a * b * s * s


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 4))
def test_fused_attention_stores_a_log_sum_exp_a_row_and_head_in_place_of_the_weights(s, b):
    a, h = 6, 48
    assert held_by_a_layer("gpt2", FUSED, s, b) == s * b * h * 32 + 4 * a * b * s


def test_relu_keeps_its_result_and_silu_its_input_beside_it():
    def held(activation):
        deep, shallow = (
            count_mlp(mlp(*[7] * depth), 5, activation=activation, train=True).backward().memory().activations
            for depth in (8, 7)
        )
        return deep - shallow

    assert held("relu") == 5 * 7 * BF16
    assert held("silu") == 2 * 5 * 7 * BF16


def test_the_output_lives_until_its_gradient_is_first_read():
    trace = count_mlp(mlp(30, 50, 1, 20), 5, activation=None, train=True).backward()
    at_the_end = 30 + 50 + 1 + 20 + 20 + 1  # all layers' values, the output's gradient and its input's
    at_the_second_layer = 30 + 50 + 1 + 50  # its two inputs and its two gradients: the output is gone
    assert trace.memory().activations == 5 * max(at_the_end, at_the_second_layer) * BF16
    trace = count_mlp(mlp(30, 50, 1, 40), 5, activation=None, train=True).backward()
    at_the_end = 30 + 50 + 1 + 40 + 40 + 1
    assert trace.memory().activations == 5 * max(at_the_end, at_the_second_layer) * BF16


# -- sweeps -------------------------------------------------------------------------------------


def test_the_peak_of_a_sweep_is_each_points_own_peak():
    model = small("gpt2", layers=2)  # long sequences peak in the scores, short ones in the logits
    lengths = numpy.array([1, 4, 64, 256])
    swept = count(model, Span(lengths), lowering=UNFUSED).memory().activations
    assert swept.tolist() == [count(model, int(n), lowering=UNFUSED).memory().activations for n in lengths]
