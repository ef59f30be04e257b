"""Kernels between the products against PyTorch in float64, the unfused twins, and the CPU's kernels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ridgeline import kernels
from ridgeline.errors import InputError
from ridgeline.kernels import triton as gpu
from ridgeline.kernels.triton import naive
from ridgeline.kernels.triton.runtime import is_interpreted
from ridgeline.kernels.triton.sample import running_sums
from ridgeline.ops.batch import Span
from tests.kernels import attention_twin as twin
from tests.kernels.triton.drawing import DTYPES, TOLERANCE, assert_near, draw

PLAIN = ("silu", "gelu", "gelu_tanh", "relu", "tanh")
OF = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 37), (2, 3, 20), (0, 8)])
@pytest.mark.parametrize("layer", [False, True])
def test_norms_are_their_formulas(device, shape, dtype, layer):
    x = 3 * draw(0, *shape, dtype=dtype) + 1
    weight, bias = draw(1, shape[-1]), draw(2, shape[-1])
    if layer:
        got = gpu.layer_norm(x.to(device), weight.to(device), bias.to(device), 1e-5)
        want = F.layer_norm(x.double(), shape[-1:], weight.double(), bias.double(), 1e-5)
    else:
        got = gpu.rms_norm(x.to(device), weight.to(device), 1e-5)
        want = F.rms_norm(x.double(), shape[-1:], weight.double(), 1e-5)
    assert got.dtype == dtype
    assert_near(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [False, True])
def test_a_fused_sum_and_norm_have_the_bits_of_the_two(device, dtype, layer):
    x, residual = draw(3, 4, 50, dtype=dtype, device=device), draw(4, 4, 50, dtype=dtype, device=device)
    weight, bias = draw(5, 50, device=device), draw(6, 50, device=device)
    twice, summed = residual.clone(), residual + x
    if layer:
        got, want = (
            gpu.add_layer_norm(x, twice, weight, bias, 1e-6),
            gpu.layer_norm(summed, weight, bias, 1e-6),
        )
    else:
        got, want = gpu.add_rms_norm(x, twice, weight, 1e-6), gpu.rms_norm(summed, weight, 1e-6)
    if not (is_interpreted() and dtype == torch.bfloat16):  # the interpreter cuts off instead of rounding
        assert torch.equal(got, want)
        assert torch.equal(twice, summed)
    given = {"residual": residual.float(), "bias": bias if layer else None}
    unfused = naive.norm(x.float(), weight, 1e-6, layer=layer, **given)
    assert_near(got, unfused.cpu(), 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("activation", [*PLAIN, *(name + "_gated" for name in PLAIN)])
def test_activations_are_pytorchs(device, activation):
    x = 4 * draw(7, 3, 70)
    got = gpu.activate(x.to(device), activation)
    if activation.endswith("_gated"):
        gate, value = x.double().chunk(2, dim=1)
        want = OF[activation.removesuffix("_gated")](gate) * value
    else:
        want = OF[activation](x.double())
    assert_near(got, want, 1e-6)
    assert_near(naive.activate(x, activation), want, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotations_turn_both_halves(device, dtype):
    x = draw(8, 4, 3, 20, dtype=dtype)
    angle = draw(9, 9, 10).repeat(1, 2)
    cos, sin = angle.cos(), angle.sin()
    positions = torch.tensor([0, 8, 3, 3])
    got = gpu.rotate(x.to(device), cos.to(device), sin.to(device), positions)
    want = twin.rotate(x, cos[positions], sin[positions])
    assert_near(got, want, TOLERANCE[dtype])
    assert_near(naive.rotate(x, cos[positions], sin[positions]), want, TOLERANCE[dtype])
    own = gpu.rotate(x.to(device), cos.to(device), sin.to(device))
    assert_near(own, twin.rotate(x, cos[:4], sin[:4]), TOLERANCE[dtype])


def test_rows_of_tables_are_looked_up_and_added(device):
    table, ids = draw(10, 9, 6, device=device), torch.tensor([3, 0, 6], device=device)
    assert torch.equal(gpu.embed(ids, table, offset=2), table[ids + 2])
    assert torch.equal(gpu.take_rows(table, ids), table[ids])
    assert torch.equal(gpu.add(table, table), 2 * table)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_steps_append_rotate_and_attend(device, rotated, dtype):
    """Two steps of two sequences whose blocks lie anywhere, against attention over all that was given."""
    format = "fp32" if dtype == torch.float32 else "fp16"
    cache = gpu.KVCache.empty(4, 2, 16, format, device=device, tokens=4)
    cache.keys.fill_(torch.nan), cache.values.fill_(torch.nan)
    angle = draw(11, 20, 8).repeat(1, 2)
    tables, seen = [(2, 0), (3, 1)], [[], []]
    for step, counts in enumerate([(5, 2), (1, 3)]):
        q, k, v = (draw(12 + 3 * step + i, sum(counts), n, 16, dtype=dtype) for i, n in enumerate((4, 2, 2)))
        past = [sum(len(x[1]) for x in s) for s in seen]
        spans = [Span(n, p, table=t) for n, p, t in zip(counts, past, tables)]
        positions = torch.cat([torch.arange(s.past, s.keys) for s in spans])
        turn = {"cos": angle.cos().to(device), "sin": angle.sin().to(device), "positions": positions}
        out = gpu.attend(
            *(x.to(device) for x in (q, k, v)),
            cache,
            gpu.Sequences.of(spans, device, tokens=4),
            **(turn if rotated else {}),
        )
        if rotated:
            q, k = (twin.rotate(x, angle[positions].cos(), angle[positions].sin()) for x in (q, k))
        wants = []
        for s, *new in zip(seen, *(x.split(list(counts)) for x in (q, k, v))):
            s.append(new)
            keys, values = (torch.cat([x[i] for x in s]) for i in (1, 2))
            wants.append(twin.attention(new[0], keys, values, causal=True)[0])
        assert_near(out, torch.cat(wants), 2 * TOLERANCE[dtype])
    keys, values = cache.read(torch.tensor(tables[0], device=device), 6)
    assert_near(keys, torch.cat([x[1] for x in seen[0]]), TOLERANCE[dtype])
    assert torch.equal(values.cpu(), torch.cat([x[2] for x in seen[0]]))


def test_padding_rows_are_not_stored(device):
    cache = gpu.KVCache.empty(1, 1, 16, "fp32", device=device, tokens=4)
    cache.keys.fill_(7), cache.values.fill_(7)
    one = torch.ones(2, 1, 16, device=device)
    sequences = gpu.Sequences(
        *(torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 1, 2], [1, 0], [[0], [0]])),
        torch.tensor([0, -1], device=device), 1, 4,
    )  # fmt: skip
    out = gpu.attend(one, one, one, cache, sequences)
    assert bool((cache.keys[0, 0] == 1).all() and (cache.keys[0, 1:] == 7).all())
    assert bool((out[0] == 1).all() and (out[1] == 0).all())
    pages = torch.zeros(1, 4, 1, 16)
    naive.append(one.cpu(), sequences.slots.cpu(), pages)
    assert pages.sum().item() == 16


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.8}]
)
def test_tokens_are_those_of_the_cpus_sampler(device, options):
    logits = 3 * draw(20, 12, 150)
    logits[3, 5:] = -torch.inf
    logits[4, 7] = logits[4, 90] = 50.0
    temperatures = [0.0 if i % 4 == 0 else 0.3 * i for i in range(12)]
    seeds, positions = list(range(-3, 9)), [i * i for i in range(12)]
    want = kernels.sample(logits, temperatures, seeds, positions, **options)
    got = gpu.sample(logits.to(device), temperatures, seeds, positions, **options)
    assert torch.equal(got.cpu(), want)


def test_running_sums_of_a_row_do_not_depend_on_the_others(device):
    x = draw(6, 9, 300, device=device).double().exp()
    sums = running_sums(x)
    assert_near(sums, x.cpu().cumsum(-1), 1e-14)
    for row in range(9):
        assert torch.equal(running_sums(x[row : row + 1])[0], sums[row])


def test_log_probabilities_are_pytorchs(device):
    logits, tokens = draw(21, 4, 33), torch.tensor([0, 5, 32, 9])
    want = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert_near(gpu.log_probabilities(logits.to(device), tokens.to(device)), want, 1e-6)


def test_bad_arguments_are_named(device):
    x = torch.zeros(2, 8, device=device)
    for call, named in [
        (lambda: gpu.rms_norm(x, x[0, :4], 1e-5), "weight"),
        (lambda: gpu.rms_norm(x, x[0], -1.0), "eps"),
        (lambda: gpu.activate(x, "swish"), "activation"),
        (lambda: gpu.rotate(x[:, None], x[:1], x[:1]), "cos has 1 rows"),
        (lambda: gpu.sample(x * torch.nan, 1.0, 0, 0), "NaN"),
        (lambda: gpu.sample(x, -1.0, 0, 0), "temperature"),
        (lambda: gpu.KVCache.empty(1, 1, 8, "int3", device=device), "format"),
    ]:
        with pytest.raises(InputError, match=named):
            call()
