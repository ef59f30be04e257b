"""The backward pass: PyTorch's own count of matrix operations, and what is read and kept."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.models import declare, load_config, read_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.kernel import Role
from ridgeline.ops.lowering import FUSED, NAIVE_ATTENTION, TORCH_CPU, UNFUSED
from ridgeline.ops.records import Heads, Mask, Score, Weight
from tests.ops.backward_twins import ROWS, SEQUENCES, TWINS
from tests.ops.small_models import FAMILIES, LOWERINGS, Unrolled, count, count_mlp, mlp, small, unrolled


def backward_flops(trace):
    """Matrix operations that the backward pass adds."""
    return trace.backward().flops.matrix - trace.flops.matrix


# -- PyTorch's count ----------------------------------------------------------------------------


def flops_counted_by_pytorch(architecture, fields):
    """Of transformers' class with attention in plain products: its config, forward, backward."""
    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**fields, attn_implementation="eager", experts_implementation="eager")
    model = model_class(config)
    ids = torch.zeros(SEQUENCES, ROWS, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        inputs = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
        loss = model(input_ids=ids, **inputs).logits.sum()
        forward = counter.get_total_flops()
        loss.backward()
    return config.to_dict() | {"architectures": [architecture]}, forward, counter.get_total_flops() - forward


@pytest.mark.parametrize("architecture", TWINS)
def test_backward_matrix_flops_are_those_that_pytorch_counts(architecture):
    raw, forward, backward = flops_counted_by_pytorch(architecture, TWINS[architecture])
    trace = count(
        declare(read_config(raw, "twin")),
        Span(ROWS, count=SEQUENCES),
        lowering=UNFUSED,
        pairs=Pairs.SQUARE,
        train=True,
    )
    assert (trace.flops.matrix, backward_flops(trace)) == (forward, backward)


@pytest.mark.parametrize("widths", [(9, 5, 7, 3), (5, 5, 5, 5, 5)])
def test_an_mlps_backward_is_the_one_that_pytorch_counts(widths):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = torch.nn.Sequential(
        *(m for i, o in pairwise(widths) for m in (torch.nn.Linear(i, o, bias=False), torch.nn.ReLU()))
    )
    with FlopCounterMode(display=False) as counter:
        loss = model(torch.ones(ROWS, widths[0])).sum()
        forward = counter.get_total_flops()
        loss.backward()
    trace = count_mlp(mlp(*widths), ROWS, train=True)
    assert (trace.flops.matrix, backward_flops(trace)) == (forward, counter.get_total_flops() - forward)


# -- the rule of the documents -------------------------------------------------------------------


@given(st.integers(1, 50), st.lists(st.integers(1, 30), min_size=4, max_size=4))
def test_a_three_layer_mlp_takes_twice_its_forward_but_for_the_first_layer(m, widths):
    """Each layer is an (m, k) by (k, n) product; backward it is two such, and only the weight's
    in the first layer, whose input wants no gradient."""
    trace = count_mlp(mlp(*widths), m, train=True)
    layers = [2 * m * n * k for k, n in pairwise(widths)]
    assert trace.flops.matrix == sum(layers)
    assert backward_flops(trace) == layers[0] + 2 * layers[1] + 2 * layers[2]


@given(st.integers(1, 8), st.integers(1, 9), st.sampled_from(LOWERINGS))
def test_identical_layers_have_one_missing_input_gradient_between_them(depth, rows, lowering):
    layers = mlp(*[6] * (depth + 1))
    loop, flat = (
        count_mlp(layers, rows, reading=reading, lowering=lowering, train=True).backward()
        for reading in (Count, Unrolled)
    )
    assert (loop.flops, loop.bytes, loop.elements) == (flat.flops, flat.bytes, flat.elements)
    assert loop.flops.matrix == 2 * rows * 6 * 6 * (3 * depth - 1)


# -- attention ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lowering", "products"), [(UNFUSED, 4), (NAIVE_ATTENTION, 4), (FUSED, 5), (TORCH_CPU, 5)]
)
@pytest.mark.parametrize("family", ["gpt2", "llama-3-8b"])
def test_attention_takes_four_products_where_its_weights_are_stored_and_else_five(family, lowering, products):
    trace = count(small(family), 9, lowering=lowering, train=True)
    forward = trace.by_class()["attention"].matrix
    assert trace.backward().by_class()["attention"].matrix - forward == products * forward / 2


def attention_backward(family, lowering):
    trace = count(small(family, layers=1), 9, lowering=lowering, train=True).backward()
    return [kernel for op, kernel in trace.kernels() if op.kind == "attend_backward"]


@pytest.mark.parametrize("family", ["gpt2", "llama-3-8b"])
def test_fused_attention_reads_and_writes_nothing_as_large_as_the_scores(family):
    (kernel,) = attention_backward(family, FUSED)
    assert [a.value.name for a in kernel.reads] == ["q", "k", "v", "attention", "attention.grad", "lse"]
    assert sorted(a.value.shape for a in kernel.writes) == sorted(a.value.shape for a in kernel.reads[:3])


def test_fused_attention_rotates_again_what_it_did_not_store():
    (plain,), (rotated,) = attention_backward("gpt2", FUSED), attention_backward("llama-3-8b", FUSED)
    c = small("llama-3-8b").config
    scores = plain.flops.vector - 2 * 9 * 48  # without rowsum(dO O): the same heads and pairs
    rotations = rotated.flops.vector - 2 * 9 * c.heads * c.head_dim - scores
    assert rotations == 2 * 3 * 9 * (c.heads + c.kv_heads) * c.head_dim


def test_a_rotation_that_was_stored_is_undone_by_a_kernel_of_its_own():
    assert [kernel.kind for kernel in attention_backward("llama-3-8b", TORCH_CPU)] == [
        "attend_backward",
        "rotate",
    ]


def test_the_forward_pass_of_fused_attention_stores_the_log_sum_exp_for_training_only():
    trace = count(small("gpt2", layers=1), 9, train=True)

    def written(trace):
        (kernel,) = (kernel for op, kernel in trace.kernels() if op.kind == "attend")
        return {a.value.name: a.bytes for a in kernel.writes}

    assert written(trace) == {"attention": 9 * 48 * 2}
    assert written(trace.backward()) == {"attention": 9 * 48 * 2, "lse": 9 * 6 * 4}


# -- what is read, kept and added ---------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lowering", LOWERINGS, ids=lambda lowering: lowering.name)
def test_every_weight_has_one_gradient_of_its_own_shape_and_format(family, lowering):
    trace = count(small(family), 5, lowering=lowering, train=True).backward()
    touched = {a.value for op in trace.ops for part in op.parts for a in (*part.reads, *part.writes)}
    weights = Counter((v.shape, v.format) for v in touched if v.role is Role.WEIGHT and v.needs_grad)
    gradients = Counter((v.shape, v.format) for v in touched if v.role is Role.GRADIENT and v.base is None)
    assert gradients == weights


@settings(max_examples=40)
@given(st.sampled_from(FAMILIES), st.integers(1, 4), st.integers(1, 20), st.sampled_from(LOWERINGS))
def test_layers_in_a_loop_cost_what_they_cost_one_by_one(family, layers, rows, lowering):
    model = small(family, layers=layers)
    loop, flat = (
        counted(model, rows, lowering=lowering, train=True).backward() for counted in (count, unrolled)
    )
    assert loop.flops == flat.flops
    # The experts that are touched are no whole number.
    assert (loop.bytes, loop.elements) == pytest.approx((flat.bytes, flat.elements), rel=1e-12)
    assert loop.by_class() == flat.by_class()


def additions(family):
    """Sums of two gradients, by the name of the value they belong to, counted over all layers."""
    trace = count(small(family, layers=4), 5, train=True).backward()
    n = len(trace.forward.ops)
    return Counter({op.parts[0].writes[0].value.name: op.repeat for op in trace.ops[n:] if op.kind == "add"})


def test_the_two_gradients_that_meet_at_each_norm_are_added_once():
    assert additions("llama-3-8b") == {"attention.out.grad": 4, "embedding.grad": 4}


def test_the_residual_stream_passes_its_gradient_on_without_cost():
    ops = Count(train=True)
    embedded = ops.embed(ops.input("ids", (5,)), Weight("table", (9, 8), "bf16"))
    trace = ops.trace(ops.add(embedded, embedded)).backward()
    assert [op.kind for op in trace.ops] == ["embed", "add", "add", "embed_backward"]  # the second add joins
    ops = Count(train=True)
    a, b = (ops.embed(ops.input("ids", (5,)), Weight("table", (9, 8), "bf16")) for _ in range(2))
    trace = ops.trace(ops.add(a, b)).backward()
    assert [op.kind for op in trace.ops] == ["embed", "embed", "add", "embed_backward", "embed_backward"]


def test_an_embeddings_gradient_is_zeroed_whole_and_added_to_by_the_row():
    ops = Count(train=True)
    trace = ops.trace(ops.embed(ops.input("ids", (5,)), Weight("table", (100, 8), "bf16"))).backward()
    fill, scatter = (kernel for op, kernel in trace.kernels() if op.kind == "embed_backward")
    assert (fill.reads, fill.bytes) == ((), 100 * 8 * 2)
    assert scatter.bytes == 5 * 8 + 3 * (5 * 8 * 2)  # ids, then dY, the rows before and after


def test_a_tied_embedding_adds_to_the_gradient_that_the_head_left():
    trace = count(small("gpt2"), 5, train=True).backward()
    (scatter,) = (op for op in trace.ops if op.name == "embedding.backward")
    assert [part.kind for part in scatter.parts] == ["embed"]
    table = scatter.parts[0].writes[0].value
    assert trace.values[table.base].role is Role.GRADIENT


def test_the_gradients_of_query_key_and_value_are_written_in_place_of_their_product():
    ops = Count(train=True)
    qkv = ops.linear(ops.input("x", (5, 12), "bf16"), Weight("qkv", (36, 12), "bf16"))
    q, k, v = ops.split_heads(qkv, Heads(3, 3, 4))
    spans = ops.batch([Span(5)]).spans
    y = ops.attend(q, k, v, spans=spans, mask=Mask(causal=True), score=Score(0.5))
    trace = ops.trace(y).backward()
    *_, attention, weight_gradient = (kernel for _, kernel in trace.kernels())
    (base,) = {a.value.base for a in attention.writes}
    assert weight_gradient.reads[0].value.id == base


def test_a_weight_that_is_used_twice_adds_its_second_gradient_to_the_first_in_place():
    ops, w = Count(train=True), Weight("w", (8, 8), "bf16")
    trace = ops.trace(ops.linear(ops.linear(ops.input("x", (5, 8), "bf16"), w), w)).backward()
    (add,) = (kernel for op, kernel in trace.kernels() if op.kind == "add")
    assert trace.values[add.writes[0].value.storage].role is Role.GRADIENT
    assert trace.memory().gradients == 8 * 8 * 2


def test_a_view_that_is_used_twice_has_the_sum_in_its_bases_gradient():
    ops = Count(train=True)
    qkv = ops.linear(ops.input("x", (5, 12), "bf16"), Weight("qkv", (36, 12), "bf16"))
    _, k, v = ops.split_heads(qkv, Heads(3, 3, 4))
    spans = ops.batch([Span(5)]).spans
    y = ops.attend(k, k, v, spans=spans, mask=Mask(causal=True), score=Score(0.5))
    *_, add, weight_gradient = (kernel for _, kernel in ops.trace(y).backward().kernels())
    assert add.kind == "add"
    assert add.writes[0].value.base == weight_gradient.reads[0].value.id


def test_a_gradient_that_nobody_wants_is_not_computed():
    trace = count_mlp(mlp(9, 5), 7, activation=None, train=True).backward()
    (backward,) = trace.ops[1:]
    (product,) = backward.parts
    assert product.writes[0].value.role is Role.GRADIENT


def test_only_the_rows_that_were_taken_have_gradients_from_the_head():
    trace = count(small("gpt2"), 9, logits="last", train=True)
    last, every = backward_flops(trace), backward_flops(count(small("gpt2"), 9, train=True))
    assert every - last == 8 * 2 * (2 * 70 * 48)
    (gather,) = (kernel for op, kernel in trace.backward().kernels() if op.kind == "gather_backward")
    assert gather.writes[0].elements == 9 * 48


def embedded(ops):
    return ops.embed(ops.input("ids", (5,)), Weight("table", (9, 8), "bf16"))


def reading_a_context(reading):
    """Three layers that all add the same context."""
    ops = reading(train=True)
    x, context = embedded(ops), embedded(ops)
    y = ops.repeat(mlp(8, 8, 8, 8), lambda layer, x: ops.add(ops.linear(x, layer.weight), context), x)
    return ops.trace(y).backward()


def test_what_all_layers_read_has_one_gradient_that_each_of_them_adds_to():
    """One by one, the first of three gradients is there and two are added; in a loop, zeros are written first
    and all three added."""
    loop, flat = reading_a_context(Count), reading_a_context(Unrolled)
    assert loop.flops.matrix == flat.flops.matrix
    context = 5 * 8 * 2
    assert loop.bytes - flat.bytes == context + 3 * context
    assert loop.memory().gradients == flat.memory().gradients
    (fill,) = (op for op in loop.ops if op.kind == "fill")
    assert (fill.repeat, fill.parts[0].bytes) == (1, context)


def test_a_table_that_all_layers_read_is_one_weight_with_one_gradient():
    def trace(reading):
        ops, table = reading(train=True), Weight("table", (8, 8), "bf16")
        layers = [replace(layer, weight=table) for layer in mlp(8, 8, 8, 8)]
        y = ops.repeat(layers, lambda layer, x: ops.linear(x, layer.weight), embedded(ops))
        return ops.trace(y)

    loop, flat = trace(Count), trace(Unrolled)
    assert loop.memory().weights == flat.memory().weights == 9 * 8 * 2 + 8 * 8 * 2
    assert loop.backward().memory().gradients == flat.backward().memory().gradients
    assert loop.backward().flops.matrix == flat.backward().flops.matrix


# -- refusals -----------------------------------------------------------------------------------


def test_a_trace_without_gradients_is_refused():
    with pytest.raises(InputError, match="train=True"):
        count(small("gpt2"), 5).backward()


def test_a_second_backward_pass_is_refused():
    with pytest.raises(InputError, match="already"):
        count(small("gpt2"), 5, train=True).backward().backward()


def test_a_pass_with_a_cache_is_refused():
    with pytest.raises(InputError, match="cache"):
        count(small("gpt2"), 5, cached=True, train=True).backward()


def test_quantised_weights_are_refused_by_name():
    model = declare(load_config("gpt2"), "int4-g128")
    with pytest.raises(InputError, match="embedding is stored as int4-g128"):
        count(model, 5, train=True).backward()


def read_by_all_layers(reading, layers):
    """Layers that all multiply a context by their own weight and add it, as cross-attention reads a text."""
    ops = reading(train=True)
    x, context = embedded(ops), embedded(ops)

    def body(layer, x):
        return ops.add(ops.linear(x, layer.weight), ops.linear(context, layer.weight))

    return ops.trace(ops.repeat(layers, body, x)), context


@pytest.mark.parametrize("reading", [Count, Unrolled])
def test_a_gradient_is_summed_over_the_layers_that_read_the_same(reading):
    forward, _ = read_by_all_layers(reading, mlp(8, 8, 8, 8))
    trace = forward.backward()
    assert trace.flops.matrix == 3 * forward.flops.matrix  # both products have both gradients
    table = next(v for v in trace.values if v.name == "table.grad" and v.role is Role.GRADIENT)
    reads = [a.value.name for op in trace.ops for part in op.parts for a in part.reads]
    assert table.shape == (9, 8)
    assert reads.count("table.grad") >= 2  # of x and of the context, each after it is complete


def test_a_sum_over_layers_begins_at_zero_and_adds_every_layers_part_in_place():
    forward, context = read_by_all_layers(Count, mlp(8, 8, 8, 8))
    trace = forward.backward()
    (loop,) = [loop for loop in trace.loops if loop.mirrors is not None]
    sums = [
        op
        for op in trace.ops[loop.start : loop.stop]
        if op.kind == "add" and op.parts[0].writes[0].value.shape == context.shape
    ]
    (total,) = [op.parts[0].writes[0].value for op in sums]
    (first,) = [op for op in trace.ops[: loop.start] if op.kind == "fill"]
    assert total.storage == first.parts[0].writes[0].value.id
    assert [op.repeat for op in sums] == [3]


def test_a_connection_around_a_loop_is_refused():
    ops = Count(train=True)
    x = embedded(ops)
    y = ops.add(x, ops.repeat(mlp(8, 8, 8), lambda layer, x: ops.linear(x, layer.weight), x))
    with pytest.raises(InputError, match="read after the layers too"):
        ops.trace(y).backward()
