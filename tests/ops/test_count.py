"""The count reading against brute force, and arrays of lengths against one length at a time."""

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.count_pairs import Pairs, keys_read, visible_pairs
from ridgeline.ops.kernel import Role
from ridgeline.ops.records import Mask, Norm, Weight
from tests.ops.small_models import FAMILIES, LOWERINGS, count, mlp, small

spans = st.builds(Span, rows=st.integers(1, 12), past=st.integers(0, 12))
sides = st.integers(-1, 14)
masks = st.builds(Mask, causal=st.booleans(), window=st.tuples(sides, sides))


def visible(span, mask):
    """The mask as booleans, [rows, keys], from its definition."""
    query = numpy.arange(span.rows)[:, None] + span.past
    key = numpy.arange(span.keys)[None, :]
    left, right = mask.window
    seen = numpy.ones((span.rows, span.keys), dtype=bool)
    if mask.causal:
        seen &= key <= query
    if left >= 0:
        seen &= key >= query - left
    if right >= 0:
        seen &= key <= query + right
    return seen


@given(spans, masks)
def test_visible_pairs_are_those_of_the_mask(span, mask):
    assert visible_pairs(span, mask) == visible(span, mask).sum()


@given(spans, masks, st.integers(1, 8))
def test_keys_are_read_in_blocks_that_hold_one_that_is_seen(span, mask, block):
    seen = numpy.flatnonzero(visible(span, mask).any(axis=0))
    assert keys_read(span, mask, block) == len(set(seen // block)) * block


@given(st.lists(spans, min_size=1, max_size=5), masks, st.integers(1, 8))
def test_arrays_of_spans_count_as_one_span_at_a_time(several, mask, block):
    together = Span(numpy.array([s.rows for s in several]), numpy.array([s.past for s in several]))
    assert visible_pairs(together, mask).tolist() == [visible_pairs(s, mask) for s in several]
    together_read = numpy.broadcast_to(keys_read(together, mask, block), len(several))
    assert together_read.tolist() == [keys_read(s, mask, block) for s in several]


# -- whole passes -------------------------------------------------------------------------------


def figures(trace):
    """Every figure of a trace that a sweep may ask for."""
    m = trace.memory()
    return {
        "matrix": trace.flops.matrix,
        "vector": trace.flops.vector,
        "exp": trace.flops.exp,
        "bytes": trace.bytes,
        "elements": trace.elements,
        "weights": m.weights,
        "cache": m.cache,
        "activations": m.activations,
        "gradients": m.gradients,
    }


def assert_a_sweep_is_its_points(trace_of, points):
    swept = figures(trace_of(*(numpy.array(column) for column in zip(*points))))
    for i, point in enumerate(points):
        one = figures(trace_of(*point))
        at_point = {name: numpy.broadcast_to(values, len(points))[i] for name, values in swept.items()}
        assert at_point == one


points = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 40), st.integers(1, 5)), min_size=1, max_size=4
)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(FAMILIES[:-1]), st.sampled_from(LOWERINGS), points)
def test_a_sweep_counts_what_its_points_count(family, lowering, points):
    model = small(family)

    def trace(rows, past, sequences):
        span = Span(rows, past, sequences)
        return count(model, span, Span(3, 5), cached=True, logits="last", lowering=lowering)

    assert_a_sweep_is_its_points(trace, points)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(FAMILIES), st.sampled_from(LOWERINGS), points)
def test_a_sweep_of_training_steps_counts_what_its_points_count(family, lowering, points):
    model = small(family)

    def trace(rows, past, sequences):
        return count(model, Span(rows, 0, sequences), lowering=lowering, train=True).backward()

    assert_a_sweep_is_its_points(trace, points)


def test_a_sweep_does_not_wrap_around_beyond_64_bits():
    model = declare(load_config("llama-3-405b"))
    one = count(model, Span(131_072, 0, 4096), train=True).backward().flops.matrix
    (swept,) = count(model, Span(131_072, 0, numpy.array([4096])), train=True).backward().flops.matrix
    assert one > 2**70
    assert swept == pytest.approx(one, rel=1e-12)


def test_numpy_integers_do_not_wrap_around_either():
    model = declare(load_config("llama-3-405b"))
    rows, sequences = numpy.int64(131_072), numpy.int64(4096)
    assert count(model, Span(rows, 0, sequences)).flops == count(model, Span(131_072, 0, 4096)).flops


@given(st.sampled_from(FAMILIES[:-1]), st.integers(1, 6), st.integers(1, 20))
def test_a_span_that_stands_for_several_counts_as_that_many(family, sequences, past):
    model = small(family)
    together = count(model, Span(1, past, sequences), cached=True)
    apart = count(model, *[Span(1, past)] * sequences, cached=True)
    assert figures(together) == figures(apart)


# -- single operators, by hand ------------------------------------------------------------------


def bytes_of(trace, role, kind="reads"):
    return sum(
        a.bytes for _, kernel in trace.kernels() for a in getattr(kernel, kind) if a.value.role is role
    )


def test_a_linear_layer_multiplies_and_adds_each_weight_once_a_row():
    ops = Count()
    y = ops.linear(ops.input("x", (7, 5), "bf16"), Weight("w", (3, 5), "bf16"))
    trace = ops.trace(y)
    assert y.shape == (7, 3)
    assert trace.flops.matrix == 2 * 7 * 5 * 3
    assert trace.bytes == 2 * (7 * 5 + 5 * 3 + 7 * 3)


def test_a_gated_activation_takes_half_of_the_columns_each():
    ops = Count()
    y = ops.linear(ops.input("x", (7, 5), "bf16"), Weight("w", (6, 5), "bf16"), activation="silu_gated")
    assert y.shape == (7, 3)
    assert ops.trace(y).flops.exp == 7 * 3


def test_a_gated_mlp_counts_three_matrices():
    model = small("llama-3-8b", layers=1)
    trace = count(model, 7)
    flops = {op.name: op.flops.matrix for op in trace.ops}
    width, inner = model.config.width, model.config.intermediate
    assert flops["mlp.gate_up"] + flops["mlp.down"] == 3 * 2 * 7 * width * inner


def test_a_quantised_matrix_is_read_with_its_scales():
    ops = Count()
    y = ops.linear(ops.input("x", (7, 256), "bf16"), Weight("w", (10, 256), "int4-g128"))
    assert bytes_of(ops.trace(y), Role.WEIGHT) == 10 * (256 / 2 + 2 * 2)


def test_an_embedding_reads_the_rows_that_it_takes_and_no_others():
    ops = Count()
    trace = ops.trace(ops.embed(ops.input("ids", (7,)), Weight("table", (1000, 5), "bf16")))
    assert bytes_of(trace, Role.WEIGHT) == 7 * 5 * 2
    assert bytes_of(trace, Role.INPUT) == 7 * 8
    assert trace.memory().weights == 1000 * 5 * 2
    assert trace.flops.total == 0


def test_an_embedding_reads_no_more_than_its_table():
    ops = Count()
    trace = ops.trace(ops.embed(ops.input("segments", (7,)), Weight("segments", (2, 5), "bf16")))
    assert bytes_of(trace, Role.WEIGHT) == 2 * 5 * 2


def test_a_norm_of_the_heads_reads_one_weight_for_all_of_them():
    ops = Count()
    x = ops.input("x", (7, 6, 10), "bf16")
    trace = ops.trace(ops.norm(x, Norm("rms", Weight("w", (10,), "bf16"), 1e-5)))
    assert trace.bytes == 2 * (7 * 6 * 10 + 10 + 7 * 6 * 10)


@given(st.integers(1, 9), st.integers(0, 30))
def test_attention_takes_two_products_over_the_pairs_that_are_seen(rows, past):
    model = small("llama-3-8b")
    c = model.config
    trace = count(model, Span(rows, past), cached=True)
    pairs = sum(past + i + 1 for i in range(rows))
    assert trace.by_class()["attention"].matrix == c.layers * 2 * (2 * pairs * c.heads * c.head_dim)
    assert trace.by_class()["attention"].exp == c.layers * pairs * c.heads


@given(st.integers(1, 9), st.integers(0, 30))
def test_the_full_square_counts_the_pairs_behind_a_causal_mask_too(rows, past):
    model = small("llama-3-8b")
    c = model.config
    trace = count(model, Span(rows, past), cached=True, pairs=Pairs.SQUARE)
    pairs = rows * (past + rows)
    assert trace.by_class()["attention"].matrix == c.layers * 2 * (2 * pairs * c.heads * c.head_dim)


def test_a_decode_step_reads_the_old_keys_and_values_in_blocks_and_writes_the_new():
    model = small("llama-3-8b", layers=1)
    trace = count(model, Span(1, 9), cached=True)  # 10 tokens in blocks of 4: 12, one of them new
    token = 2 * 2 * model.config.kv_heads * model.config.head_dim
    assert bytes_of(trace, Role.CACHE) == (12 - 1) * token
    assert bytes_of(trace, Role.CACHE, "writes") == token
    assert trace.memory().cache == 12 * token


def test_a_window_leaves_blocks_before_it_unread():
    model = small("mistral-7b", layers=1)  # a query sees 4 keys to its left
    trace = count(model, Span(1, 21), cached=True)  # keys 17 to 21: blocks 4 and 5, one token new
    token = 2 * 2 * model.config.kv_heads * model.config.head_dim
    assert bytes_of(trace, Role.CACHE) == (8 - 1) * token


def test_attention_is_as_tall_as_its_longest_span():
    def rows(*spans):
        (attend,) = (k for op, k in count(small("gpt2", layers=1), *spans).kernels() if op.kind == "attend")
        return attend.rows

    assert rows(3, 9, 5) == 9
    assert rows(Span(numpy.array([3, 9])), Span(5)).tolist() == [5, 9]


@pytest.mark.parametrize(("logits", "rows"), [("last", 2), ("all", 16)])
def test_only_the_rows_that_want_logits_meet_the_head(logits, rows):
    model = small("gpt2")
    (head,) = (op for op in count(model, 7, 9, logits=logits).ops if op.name == "head")
    assert head.flops.matrix == rows * 2 * model.config.vocab * model.config.width


def test_a_loop_in_the_body_of_a_loop_is_refused():
    ops = Count()
    layers = mlp(5, 5, 5)
    with pytest.raises(ValueError, match="loop inside the body of a loop"):
        ops.repeat(
            layers,
            lambda _, x: ops.repeat(layers, lambda layer, x: ops.linear(x, layer.weight), x),
            ops.input("x", (1, 5), "bf16"),
        )
