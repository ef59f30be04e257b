"""Recomputation: PyTorch's count with checkpoints, what is kept, and what stays the same."""

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.models import declare, read_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.lowering import FUSED, NAIVE_ATTENTION, UNFUSED
from tests.ops.backward_twins import ROWS, SEQUENCES, TWINS
from tests.ops.small_models import FAMILIES, LOWERINGS, count, count_mlp, mlp, small, unrolled
from tests.ops.test_backward import backward_flops


def flops_with_checkpoints(architecture, fields):
    """What PyTorch counts for transformers' class when every layer is a checkpoint."""
    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**fields, attn_implementation="eager", experts_implementation="eager")
    model = model_class(config).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    ids = torch.zeros(SEQUENCES, ROWS, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        inputs = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
        model(input_ids=ids, **inputs).logits.sum().backward()
    return config.to_dict() | {"architectures": [architecture]}, counter.get_total_flops()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("architecture", TWINS)
def test_full_recomputation_takes_the_matrix_flops_that_pytorch_counts_with_checkpoints(architecture):
    raw, expected = flops_with_checkpoints(architecture, TWINS[architecture])
    model = declare(read_config(raw, "twin"))
    trace = count(model, Span(ROWS, count=SEQUENCES), lowering=UNFUSED, pairs=Pairs.SQUARE, train=True)
    assert trace.backward("full").flops.matrix == expected


@pytest.mark.parametrize("lowering", LOWERINGS, ids=lambda lowering: lowering.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_full_recomputation_runs_every_layer_once_more(family, lowering):
    trace = count(small(family), 9, lowering=lowering, train=True)
    layers = sum(op.flops.matrix * op.repeat for run in trace.runs for op in trace.ops[run.start : run.stop])
    extra = trace.backward("full").flops.matrix - trace.backward().flops.matrix
    assert extra == layers > 0


@pytest.mark.parametrize("lowering", [UNFUSED, NAIVE_ATTENTION], ids=lambda lowering: lowering.name)
def test_selective_recomputation_makes_the_scores_again(lowering):
    trace = count(small("gpt2"), 9, lowering=lowering, train=True)
    extra = trace.backward("selective").flops.matrix - trace.backward().flops.matrix
    assert extra == trace.by_class()["attention"].matrix / 2


def test_a_fused_kernel_makes_the_scores_again_in_any_case():
    trace = count(small("llama-3-8b"), 9, lowering=FUSED, train=True)
    none, selective = trace.backward(), trace.backward("selective")
    assert (none.flops, none.bytes, none.memory()) == (selective.flops, selective.bytes, selective.memory())


@pytest.mark.parametrize("policy", ["selective", "full"])
@pytest.mark.parametrize("lowering", LOWERINGS, ids=lambda lowering: lowering.name)
@pytest.mark.parametrize("family", ["gpt2", "qwen3-0.6b", "bert-base"])
def test_recomputation_changes_neither_the_gradients_nor_the_forward_work(family, lowering, policy):
    trace = count(small(family), 9, lowering=lowering, train=True)
    none, some = trace.backward(), trace.backward(policy)
    assert some.memory().gradients == none.memory().gradients
    assert [w.name for w, _ in some.weight_gradients] == [w.name for w, _ in none.weight_gradients]
    again = sum(op.flops.matrix * op.repeat for op in some.ops if op.name.endswith(".recompute"))
    assert some.flops.matrix - again == none.flops.matrix


@settings(max_examples=30)
@given(
    st.sampled_from(FAMILIES),
    st.integers(1, 4),
    st.integers(1, 12),
    st.sampled_from(LOWERINGS),
    st.sampled_from(["selective", "full"]),
)
def test_layers_in_a_loop_cost_what_they_cost_one_by_one(family, layers, rows, lowering, policy):
    model = small(family, layers=layers)
    loop = count(model, rows, lowering=lowering, train=True).backward(policy)
    if policy == "selective":
        flat = unrolled(model, rows, lowering=lowering, train=True).backward(policy)
        assert loop.by_class() == flat.by_class()
    else:  # unrolled layers are no layers to the trace
        flat = count(model, rows, reading=OneByOne, lowering=lowering, train=True).backward(policy)
    assert loop.flops == flat.flops
    # The experts that are touched are no whole number.
    assert (loop.bytes, loop.elements) == pytest.approx((flat.bytes, flat.elements), rel=1e-12)
    assert asdict(loop.memory()) == pytest.approx(asdict(flat.memory()), rel=1e-12)


def test_only_the_layers_inputs_are_kept_in_full():
    """Each further layer keeps its input alone, as published: 2 s b h bytes."""
    shallow, deep = (
        count(small("gpt2", layers=n), Span(16, count=2), train=True).backward("full").memory().activations
        for n in (3, 4)
    )
    assert deep - shallow == 2 * 16 * 2 * 48


def test_full_recomputation_of_an_mlp_by_hand():
    """Three layers in a loop of four with one before it, whose input wants no gradient."""
    trace = count_mlp(mlp(8, 8, 8, 8, 8), 5, train=True)
    none, full = trace.backward(), trace.backward("full")
    assert full.flops.matrix - none.flops.matrix == 4 * 2 * 5 * 8 * 8
    assert full.memory().weights == none.memory().weights


def test_the_policy_survives_another_lowering():
    trace = count(small("gpt2"), 9, train=True).backward("full")
    assert (
        trace.unfused().flops == count(small("gpt2"), 9, lowering=UNFUSED, train=True).backward("full").flops
    )


def test_an_unknown_policy_is_refused():
    with pytest.raises(InputError, match="recompute is 'some'; choose one of: none, selective, full"):
        count(small("gpt2"), 5, train=True).backward("some")


def test_backward_work_is_what_it_was_without_a_policy():
    trace = count(small("llama-3-8b"), 9, train=True)
    assert trace.backward("none").flops.matrix - trace.flops.matrix == backward_flops(trace)


class OneByOne(Count):
    """A count that takes no two layers for identical."""

    def repeat(self, layers, body, x):
        for layer in layers:
            x = super().repeat((layer,), body, x)
        return x
