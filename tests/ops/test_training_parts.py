"""Dropout, the loss, the optimizer and stashed activations, by hand and beside published formulas."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.count_training import TrainingCount
from ridgeline.ops.kernel import Role
from ridgeline.ops.lowering import FUSED, UNFUSED
from ridgeline.ops.optimizer import OPTIMIZERS, get_optimizer, step
from ridgeline.ops.stash import stash
from tests.ops.small_models import FAMILIES, LOWERINGS, count, count_mlp, mlp, small
from tests.ops.test_recompute import OneByOne

ROWS, SEQUENCES, WIDTH, HEADS = 16, 2, 48, 6


def a_layers_activations(recompute, **options):
    """Bytes that one more layer of a small GPT-2 keeps for the backward pass, in 16 bits."""
    spans = Span(ROWS, count=SEQUENCES)
    traces = (count(small("gpt2", layers=n), spans, train=True, **options) for n in (4, 5))
    few, many = (trace.backward(recompute).memory().activations for trace in traces)
    return many - few


# -- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recompute", "squares"), [("none", 5), ("selective", 0)])
def test_a_layer_keeps_what_megatron_publishes(recompute, squares):
    """s b h (34 + 5 a s / h) bytes, and 34 s b h with selective recomputation (Korthikanti et al. 2022)."""
    sbh = ROWS * SEQUENCES * WIDTH
    expected = 34 * sbh + squares * HEADS * ROWS * ROWS * SEQUENCES
    assert a_layers_activations(recompute, lowering=UNFUSED, dropout=True) == expected


def test_without_dropout_a_layer_keeps_its_two_masks_and_the_dropped_weights_less():
    sbh, squares = ROWS * SEQUENCES * WIDTH, HEADS * ROWS * ROWS * SEQUENCES
    assert a_layers_activations("none", lowering=UNFUSED) == 32 * sbh + 2 * squares


def test_a_fused_kernel_draws_the_mask_of_the_weights_again():
    dropped, plain = (a_layers_activations("none", lowering=FUSED, dropout=d) for d in (True, False))
    assert dropped - plain == 2 * ROWS * SEQUENCES * WIDTH  # the masks of both residual connections


@pytest.mark.parametrize("lowering", LOWERINGS, ids=lambda lowering: lowering.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_adds_vector_work_and_no_products(family, lowering):
    plain, dropped = (
        count(small(family), 9, lowering=lowering, train=True, dropout=d).backward() for d in (False, True)
    )
    assert dropped.flops.matrix == plain.flops.matrix
    assert dropped.flops.exp == plain.flops.exp
    assert dropped.flops.vector > plain.flops.vector
    assert dropped.memory().gradients == plain.memory().gradients


# -- the loss -------------------------------------------------------------------------------------


def with_loss(model, rows):
    ops = TrainingCount(train=True)
    return ops.trace(ops.cross_entropy(model.forward(ops, ops.batch([Span(rows)], logits="all"))))


def test_the_loss_reads_the_logits_and_its_backward_pass_writes_their_gradient():
    trace = with_loss(small("gpt2"), 9).backward()
    forward, backward = (kernel for op, kernel in trace.kernels() if op.name.startswith("loss"))
    logits = 9 * 70 * 2
    assert forward.bytes == logits + 9 * 8 + 2 * 9 * 4  # targets, the loss and its log-sum-exp
    assert backward.bytes == 2 * logits + 9 * 8 + 2 * 9 * 4
    assert forward.flops.exp == backward.flops.exp == 9 * 70


def test_the_loss_adds_no_products():
    plain = count(small("gpt2"), 9, train=True).backward()
    assert with_loss(small("gpt2"), 9).backward().flops.matrix == plain.flops.matrix


# -- the optimizer --------------------------------------------------------------------------------


def trained(model, **options):
    return count(model, 5, train=True, **options).backward()


def parameters(trace):
    repeats = {a.value.id: op.repeat for op in trace.forward.ops for part in op.parts for a in part.reads}
    return sum(w.elements * repeats[w.id] for w, _ in trace.weight_gradients)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_weight_is_updated_once(family, name):
    model = small(family)
    trace = step(trained(model), OPTIMIZERS[name])
    updates = [op for op in trace.ops if op.kind == "optimizer"]
    used = {w.id for w, _ in trace.weight_gradients}
    assert len(updates) == len(used)
    elements = sum(op.parts[0].writes[0].elements * op.repeat for op in updates)
    assert elements == parameters(trace)


def test_the_parameters_that_are_updated_are_the_models():
    model = small("llama-3-8b")
    trace = trained(model)
    assert parameters(trace) == sum(
        w.shape[0] * (w.shape[1] if len(w.shape) > 1 else 1) for w in model.weights()
    )


@pytest.mark.parametrize(
    ("name", "master", "published"),
    [
        ("adam", "fp32", 16),
        ("adamw", "fp32", 16),
        ("sgd", "fp32", 8),
        ("adamw", None, 8),
        ("sgd-momentum", None, 6),
    ],
)
def test_bytes_a_parameter_are_those_of_mixed_precision(name, master, published):
    """2 + 2 + 12 bytes a parameter with Adam (Rajbhandari et al. 2020, section 3.1)."""
    trace = step(trained(small("gpt2")), OPTIMIZERS[name], master=master)
    memory = trace.memory()
    assert memory.weights + memory.gradients + memory.states == published * parameters(trace)


def test_eight_bit_states_have_a_scale_for_256_elements():
    ops = Count(train=True)
    from ridgeline.ops.records import Weight

    trace = ops.trace(ops.linear(ops.input("x", (5, 512), "bf16"), Weight("w", (8, 512), "bf16"))).backward()
    memory = step(trace, OPTIMIZERS["adamw-8bit"], master="fp32").memory()
    assert memory.states == 8 * 512 * 4 + 2 * (8 * 512 + 8 * 2 * 4)


def test_adafactor_keeps_sums_of_rows_and_columns():
    trace = step(count_mlp(mlp(30, 20), 5, activation=None, train=True).backward(), OPTIMIZERS["adafactor"])
    assert trace.memory().states == 4 * (30 + 20)


def test_an_update_reads_the_gradient_and_moves_every_state_twice():
    trace = step(
        count_mlp(mlp(30, 20), 5, activation=None, train=True).backward(), OPTIMIZERS["adam"], master="fp32"
    )
    (kernel,) = trace.ops[-1].parts
    assert kernel.bytes == 30 * 20 * (2 + 2 * 12 + 2)  # gradient, three states in and out, weight
    assert sum(a.value.role is Role.STATE for a in kernel.reads) == 3


def test_a_shard_updates_its_part():
    trace = trained(small("gpt2"))
    whole, part = (step(trace, OPTIMIZERS["adam"], shards=n) for n in (1, 4))
    extra = [t.bytes - trace.bytes for t in (whole, part)]
    assert extra[0] == pytest.approx(4 * extra[1])
    assert part.memory() == whole.memory()


def test_what_cannot_be_optimized_is_refused():
    with pytest.raises(InputError, match="optimizer is 'lion'; choose one of: sgd, "):
        get_optimizer("lion")
    with pytest.raises(InputError, match="by its backward pass first"):
        step(count(small("gpt2"), 5, train=True), OPTIMIZERS["adam"])


# -- stashes --------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.sampled_from(FAMILIES),
    st.integers(1, 4),
    st.integers(1, 12),
    st.sampled_from(LOWERINGS),
    st.sampled_from(["none", "selective", "full"]),
    st.booleans(),
)
def test_stashed_layers_in_a_loop_cost_what_they_cost_one_by_one(
    family, layers, rows, lowering, policy, dropout
):
    model, options = small(family, layers=layers), {"lowering": lowering, "train": True, "dropout": dropout}
    loop = stash(count(model, rows, **options).backward(policy), "int8")
    flat = stash(count(model, rows, reading=OneByOne, **options).backward(policy), "int8")
    assert (loop.flops, loop.bytes) == (flat.flops, pytest.approx(flat.bytes))
    assert loop.memory().activations == pytest.approx(flat.memory().activations)


@pytest.mark.parametrize("lowering", LOWERINGS, ids=lambda lowering: lowering.name)
def test_a_stash_in_the_same_format_is_a_second_copy_and_no_more(lowering):
    """Each kept activation is written once more, unless only the backward pass wanted it."""
    trace = count(small("gpt2"), 9, lowering=lowering, train=True).backward()
    stashed = stash(trace, "bf16")
    first = len(trace.forward.ops)
    extra = sum(
        a.bytes * op.repeat
        for op in stashed.ops[:first]
        for part in op.parts
        for a in part.writes
        if a.value.name.endswith(".stash")
    )
    assert trace.bytes <= stashed.bytes <= trace.bytes + extra
    if lowering is UNFUSED:
        assert stashed.bytes == trace.bytes + extra


def test_what_is_kept_shrinks_with_the_stashs_bits():
    options = {"lowering": UNFUSED, "train": True}
    traces = [count(small("gpt2", layers=n), Span(64, count=4), **options).backward() for n in (4, 5)]
    plain, eight, four = (
        many.memory().activations - few.memory().activations
        for few, many in (traces, [stash(t, "int8") for t in traces], [stash(t, "int4-g128") for t in traces])
    )
    assert 0.5 < eight / plain < 0.53
    assert 0.25 < four / plain < 0.30


def test_the_backward_pass_reads_the_stash_and_the_forward_pass_never_does():
    trace = stash(count(small("llama-3-8b"), 9, train=True).backward(), "int8")
    first = len(trace.forward.ops)
    names = [
        {a.value.name for op in ops for part in op.parts for a in part.reads}
        for ops in (trace.ops[:first], trace.ops[first:])
    ]
    assert not any(name.endswith(".stash") for name in names[0])
    assert {"attention.stash", "q.stash", "k.stash", "v.stash"} <= names[1]
    assert "lse" in names[1]


def test_what_a_fused_kernel_kept_on_chip_is_written_in_the_stashs_format_only():
    model, rows = small("gpt2", layers=1), 9
    trace = stash(count(model, rows, train=True).backward(), "int8")
    up = next(kernel for op, kernel in trace.kernels() if op.name == "mlp.up")
    written = {a.value.format: a.elements for a in up.writes if a.value.name == "mlp.up.stash"}
    assert written == {"int8": 9 * 4 * 48}
    assert sorted(a.value.format for a in up.writes) == ["bf16", "int8", "int8"]  # the result, and its stash


def test_a_stash_of_nothing_is_refused():
    with pytest.raises(InputError, match="extend the trace first"):
        stash(count(small("gpt2"), 5, train=True), "int8")
    with pytest.raises(InputError, match="unknown storage format 'int5'"):
        stash(count(small("gpt2"), 5, train=True).backward(), "int5")
