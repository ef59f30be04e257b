"""What diffusion Transformers add to the operators: modulation, gates, other orders of rows, other keys."""

from dataclasses import fields, replace

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ridgeline import kernels
from ridgeline.kernels import pack_linear
from ridgeline.models.denoising import Grid, count_denoising
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.counted import counted_spans
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.lowering import CPU, FUSED, TORCH_CPU, UNFUSED
from ridgeline.ops.profile import Profile
from ridgeline.ops.records import Mask, Norm, Score, Weight
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_batch import TorchSpans
from ridgeline.ops.torch_cpu import TorchCpu
from ridgeline.ops.torch_denoising import patchify, random_denoising, unpatchify
from ridgeline.weights.load import random_model
from ridgeline.weights.pack import build_packed, random_packed
from tests.ops.diffusion_models import CONFIGS, SEQUENCES, TEXT, config_of, count_diffusion, grid_for
from tests.ops.packed_models import Lively
from tests.ops.small_models import LOWERINGS, Unrolled

READINGS = {"reference": Reference(), "torch-cpu": TorchCpu(torch.float32), "cpu": Cpu("fp32")}
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=4)
EVERY = pytest.mark.parametrize("ops", READINGS.values(), ids=READINGS)
WIDTH = 32


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def spans_of(lengths, keys=None):
    keys = keys or lengths
    spans = (Span(n, past=m - n) for n, m in zip(lengths, keys, strict=True))
    return TorchSpans(tuple(spans), torch.device("cpu"))


def pieces(x, lengths):
    return torch.split(x, lengths)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# -- executed: every sequence by itself, in the plainest words --------------------------------------------


@EVERY
@given(lengths=LENGTHS)
def test_a_modulated_norm_scales_and_shifts_every_row_by_its_sequences_vectors(ops, lengths):
    x, shift, scale = randn(sum(lengths), WIDTH), randn(len(lengths), WIDTH), randn(len(lengths) + 9, WIDTH)
    norm = Norm("layer", None, 1e-6, role="norm")
    actual = ops.norm(x, norm, shift=shift, scale=scale[: len(lengths)], spans=spans_of(lengths))
    rows = [
        torch.nn.functional.layer_norm(part, (WIDTH,), eps=1e-6) * (1 + scale[i]) + shift[i]
        for i, part in enumerate(pieces(x, lengths))
    ]
    close(actual, torch.cat(rows))


@EVERY
def test_a_norm_with_weights_of_its_own_may_be_modulated_too(ops):
    x, shift, scale, w, b = (randn(n, WIDTH) for n in (5, 2, 3, 1, 4))
    norm = Norm("layer", Weight("w", (WIDTH,), "fp32", w[0]), 1e-6, Weight("b", (WIDTH,), "fp32", b[0]))
    actual = ops.norm(x, norm, shift=shift, scale=scale[:2], spans=spans_of([2, 3]))
    own = torch.nn.functional.layer_norm(x, (WIDTH,), w[0], b[0], 1e-6)
    which = torch.tensor([0, 0, 1, 1, 1])
    close(actual, own * (1 + scale[which]) + shift[which])


@EVERY
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_norm_without_weights_only_normalises(ops, kind):
    x = randn(4, WIDTH)
    centred = x if kind == "rms" else x - x.mean(1, keepdim=True)
    close(
        ops.norm(x, Norm(kind, None, 1e-6, role="norm")),
        centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt(),
    )


@EVERY
@given(lengths=LENGTHS)
def test_a_gate_multiplies_what_is_added_to_the_residual(ops, lengths):
    rows = sum(lengths)
    x, residual, gate = randn(rows, WIDTH), randn(rows, 64), randn(len(lengths), 64)
    matrix, vector = randn(64, WIDTH), randn(64)
    data = pack_linear(matrix, "fp32") if isinstance(ops, Cpu) else matrix
    given = residual.clone()
    actual = ops.linear(
        x,
        Weight("w", (64, WIDTH), "fp32", data),
        bias=Weight("b", (64,), "fp32", vector),
        residual=given,
        gate=gate,
        spans=spans_of(lengths),
    )
    products = torch.cat([part * gate[i] for i, part in enumerate(pieces(x @ matrix.T + vector, lengths))])
    close(actual, residual + products)
    assert torch.equal(given, residual)  # nothing that others may read is overwritten


@EVERY
@given(pairs=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3))
def test_cross_attention_reads_the_keys_of_the_other_sequence(ops, pairs):
    lengths, keys = map(list, zip(*pairs))
    q, k, v = randn(sum(lengths), 2, 16), randn(sum(keys), 2, 16), randn(sum(keys) + 1, 2, 16)[:-1]
    actual = ops.attend(
        q, k, v, spans=spans_of(lengths, keys), mask=Mask(causal=False), score=Score(0.25), name="cross"
    )
    rows = []
    for a, b, c in zip(pieces(q, lengths), pieces(k, keys), pieces(v, keys), strict=True):
        weights = torch.softmax(0.25 * torch.einsum("qhd,khd->hqk", a, b), -1)
        rows.append(torch.einsum("hqk,khd->qhd", weights, c).flatten(1))
    close(actual, torch.cat(rows))


@EVERY
@given(pairs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4))
def test_joined_rows_are_each_sequences_first_and_second_and_split_again(ops, pairs):
    first, second = map(list, zip(*pairs))
    a, b = randn(sum(first), 2, 8), randn(sum(second) + 1, 2, 8)[1:]
    spans = {"first": spans_of(first), "second": spans_of(second)}
    joined = ops.join_rows(a, b, **spans)
    both = zip(pieces(a, first), pieces(b, second), strict=True)
    assert torch.equal(joined, torch.cat([part for pair in both for part in pair]))
    again = ops.split_rows(joined, **spans)
    assert torch.equal(again[0], a)
    assert torch.equal(again[1], b)


@EVERY
def test_vectors_columns_and_permutations(ops):
    x, vector = randn(3, 8), randn(24)
    close(
        ops.add_vector(x, Weight("v", (24,), "fp32", vector)), torch.cat([x, x, x], dim=1) + vector[None, :]
    )
    assert [torch.equal(part, x[:, i : i + 2]) for i, part in zip((0, 2, 4, 6), ops.columns(x, 4))] == [
        True
    ] * 4
    assert torch.equal(ops.permute_rows(x, torch.tensor([2, 0, 1])), x[[2, 0, 1]])
    close(ops.activate(x, "silu"), x * torch.sigmoid(x))


# -- patches ---------------------------------------------------------------------------------------------


def test_a_patch_holds_its_pixels_channel_by_channel_and_patches_go_row_by_row():
    latents = torch.arange(2 * 3 * 2 * 4 * 6).view(2, 3, 2, 4, 6)
    rows = patchify(latents, 2)
    for row, (n, frame, i, j) in enumerate(
        (n, f, i, j) for n in (0, 1) for f in (0, 1) for i in (0, 1) for j in range(3)
    ):
        patch = latents[n, :, frame, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        assert torch.equal(rows[row], patch.flatten())


def test_predicted_patches_hold_their_channels_last():
    latents = torch.randn(2, 3, 2, 4, 6)
    rows = patchify(latents, 2).view(-1, 3, 2, 2).permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(unpatchify(rows, Grid(2, 3, 2), 2), latents)


# -- counted ---------------------------------------------------------------------------------------------


def test_modulation_reads_its_vectors_once_a_sequence():
    ops = Count(activations="fp32")
    x, vectors = ops.input("x", (10, 8), "fp32"), ops.input("v", (2, 16), "fp32")
    shift, scale = ops.columns(vectors, 2)
    spans = counted_spans([Span(5, count=2)])
    y = ops.norm(x, Norm("layer", None, 1e-6, role="norm"), shift=shift, scale=scale, spans=spans)
    trace = ops.trace(y)
    moved = {low.name: trace.lowered(low).bytes for low in (FUSED, UNFUSED, CPU)}
    once = 4 * (10 * 8 + 2 * 2 * 8 + 10 * 8)
    assert moved == {"fused": once, "cpu": once, "unfused": once + 2 * 4 * 10 * 8}
    assert (
        trace.flops.vector == (5 + 2) * 80 + 16
    )  # normalised, scaled and shifted; 1 + scale once a sequence


def test_a_gate_is_a_kernel_of_its_own_where_the_product_has_none():
    ops = Count(activations="fp32")
    x, gate = ops.input("x", (10, 8), "fp32"), ops.input("gate", (2, 8), "fp32")
    y = ops.linear(x, Weight("w", (8, 8), "fp32"), residual=x, gate=gate, spans=None)
    (op,) = ops.trace(y).ops
    kinds = {low.name: [k.kind for k in op.kernels(low)] for low in (FUSED, CPU, TORCH_CPU)}
    assert kinds == {
        "fused": ["linear"],
        "cpu": ["linear"],
        "torch-cpu": ["matmul", "gate", "residual"],
    }


def test_cross_attention_counts_every_pair_and_reads_the_others_keys():
    ops = Count(activations="fp32")
    q, k = ops.input("q", (10, 2, 16), "fp32"), ops.input("k", (14, 2, 16), "fp32")
    spans = counted_spans([Span(5, past=7 - 5, count=2)])
    short = counted_spans([Span(5, past=3 - 5, count=2)])
    for keys, laid_out in ((7, spans), (3, short)):
        trace_ops = Count(activations="fp32")
        trace_ops.attend(q, k, k, spans=laid_out, mask=Mask(causal=False), score=Score(1.0))
        (op,) = trace_ops._ops
        assert op.flops.matrix == 2 * 2 * (2 * 5 * keys * 2 * 16)
        assert op.parts[0].reads[1].elements == 2 * keys * 2 * 16


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_loop_is_its_layers_unrolled(name, lowering):
    loop, flat = (count_diffusion(name, reading=r, lowering=lowering) for r in (Count, Unrolled))
    assert (loop.flops, loop.bytes, loop.elements) == (flat.flops, flat.bytes, flat.elements)
    assert loop.memory() == flat.memory()
    assert loop.loops


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_may_be_arrays(name):
    swept = count_diffusion(name, sequences=numpy.array([1, 3]))
    for i, n in enumerate((1, 3)):
        single = count_diffusion(name, sequences=n)
        assert (swept.flops.matrix[i], swept.bytes[i]) == (single.flops.matrix, single.bytes)
        assert swept.memory().activations[i] == single.memory().activations


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_backward_matrix_flops_are_those_that_pytorch_counts_of_the_run(name):
    config = config_of(name)
    model = random_model(config)
    for weight in model.weights():
        weight.data.requires_grad_()
    batch = random_denoising(config, grid_for(config), SEQUENCES, TEXT, torch.float32)
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        loss = Reference().denoise(model, batch).sum()
        forward = counter.get_total_flops()
        loss.backward()
    trace = count_diffusion(name, lowering=UNFUSED, train=True)
    assert trace.flops.matrix == forward
    assert trace.backward().flops.matrix == counter.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_every_weight_gets_its_gradient(name, lowering):
    trace = count_diffusion(name, lowering=lowering, train=True).backward()
    written = {a.value.name for op in trace.ops for part in op.parts for a in part.writes}
    weights = {v.name for v in trace.values if v.role == "weight"}
    assert {f"{name}.grad" for name in weights} <= written
    assert trace.memory().gradients > 0


def test_the_sum_of_a_conditions_gradient_costs_an_addition_a_layer():
    trace = count_diffusion("dit", train=True).backward()
    flat = count_diffusion("dit", reading=Unrolled, train=True).backward()
    assert trace.flops.matrix == flat.flops.matrix
    sums = [sum(op.repeat for op in t.ops if op.kind == "add") for t in (trace, flat)]
    assert sums[0] == sums[1]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_profile_has_the_traces_operators_in_order(name, packed):
    config = config_of(name)
    ops = Cpu("fp32") if packed else TorchCpu(torch.float32)
    model = random_packed(config, "fp32") if packed else random_model(config)
    batch = random_denoising(config, grid_for(config), SEQUENCES, TEXT, torch.float32)
    records = ops.profile_denoising(model, batch)
    trace = count_diffusion(name, lowering=ops.lowering)
    assert [(r.name, len(r.seconds)) for r in records] == [(op.name, op.repeat) for op in trace.ops]
    assert torch.equal(ops.denoise(model, batch), model.forward(Profile(ops), batch))


# -- recorded --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("format", "attention"), [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "bf16")])
def test_operators_one_by_one_give_the_bits_of_the_recorded_step(name, format, attention):
    """Whatever the number of images and their size, in one recording."""
    config, ops = config_of(name), Cpu(attention)
    model, grid = build_packed(config, Lively(torch.float32), format), grid_for(config)
    for sequences, text, seed in ((1, 3, 0), (3, 9, 1)):
        batch = random_denoising(config, grid, sequences, text, torch.float32, seed)
        assert torch.equal(ops.denoise(model, batch), model.forward(ops, batch))
        grid = Grid(4, 2, grid.frames)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_is_the_same_among_others_and_with_any_number_of_threads(name):
    config, ops = config_of(name), Cpu("bf16")
    model, grid = random_packed(config, "bf16"), grid_for(config)
    pair = random_denoising(config, grid, 2, TEXT, torch.float32)
    second = denoising_of(config, grid, pair, 1)
    before = kernels.threads()
    try:
        for threads in (1, 2, 3):
            kernels.set_threads(threads)
            both = ops.denoise(model, pair)
            assert torch.equal(ops.denoise(model, second), both[grid.tokens :])
    finally:
        kernels.set_threads(before)


def denoising_of(config, grid, batch, number):
    """Sequence ``number`` of a batch of two by itself."""
    alone = random_denoising(config, grid, 1, TEXT, torch.float32)
    own = {}
    for field in fields(batch):
        x, of_one = getattr(batch, field.name), getattr(alone, field.name)
        if isinstance(x, torch.Tensor) and x.dtype == torch.float32:
            own[field.name] = x[number * len(of_one) :][: len(of_one)]
        elif field.name == "labels" and x is not None:
            own["labels"] = x[number : number + 1]
    return replace(alone, **own)


def test_a_step_of_other_precision_is_brought_to_float32():
    config, ops = config_of("dit"), Cpu("fp32")
    model, grid = random_packed(config, "fp32"), grid_for(config)
    batch = random_denoising(config, grid, 2, 0, torch.float32)
    wide = {f.name: x.double() for f in fields(batch) if is_floating(x := getattr(batch, f.name))}
    assert torch.equal(ops.denoise(model, replace(batch, **wide)), ops.denoise(model, batch))


def is_floating(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def test_guidance_is_two_sequences_of_the_same_size():
    one, two = (count_diffusion("dit", sequences=n) for n in (1, 2))
    assert two.flops.matrix == 2 * one.flops.matrix


def test_a_steps_input_is_what_the_model_reads():
    config = config_of("dit")
    ops = Count()
    batch = count_denoising(ops, config, Grid(2, 3), 2)
    assert batch.labels.shape == (2,)
    assert (batch.text, batch.pooled, batch.by_place) == (None, None, None)
