"""Latent attention: its two forms compute the same and cost what they cost, over one cache of latents."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ridgeline.models import declare, load_config
from ridgeline.models.model import Declared
from ridgeline.models.registry import build
from ridgeline.ops.batch import BLOCK_TOKENS, CacheSpec, Span
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.kernel import Role
from ridgeline.ops.latent import Latent, Mla, is_absorbed
from ridgeline.ops.lowering import FUSED, UNFUSED
from ridgeline.ops.records import Norm, Weight
from ridgeline.ops.reference import Reference
from ridgeline.weights.load import RandomMaker
from tests.ops.packed_models import packed_model, some_ids
from tests.ops.small_models import LOWERINGS, count, small

V3 = declare(load_config("deepseek-v3"))
FORMS = (Mla.EXPANDED, Mla.ABSORBED)
CPU = Cpu()


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def lowered(form, lowering=FUSED):
    return replace(lowering, mla=form)


@cache
def random_model(family="deepseek-v3"):
    return build(small(family, layers=2).config, RandomMaker(torch.float64))


# -- the cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["deepseek-v3", "deepseek-v2-lite"])
def test_a_token_keeps_576_elements_a_layer(model):
    """Not 2 x 128 x 192 or 128 x (192 + 128) as with keys and values of every head, nor 224 as with two
    grouped heads of 56."""
    built = declare(load_config(model))
    spec = built.cache_spec("bf16")
    assert spec.elements_per_token == 576 * built.config.layers
    assert spec.bytes_per_token == 2 * 576 * built.config.layers
    for form in FORMS:
        memory = count(built, Span(1, 1023), cached=True, lowering=lowered(form)).memory()
        assert memory.cache == 1024 * 576 * 2 * built.config.layers


def test_a_cache_of_keys_and_values_is_described_as_before():
    spec = CacheSpec(layers=3, kv_heads=2, head_dim=8, format="int8")
    assert (spec.sizes, spec.is_latent, spec.elements_per_token) == ((8, 8), False, 96)
    assert spec.bytes_per_token == 3 * 2 * 2 * (8 + 4)  # a float32 scale for each head's key and value
    assert replace(spec, value_dim=4).elements_per_token == 3 * 2 * 12


# -- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("past", [0, 6])
def test_the_matrix_products_are_those_that_run(form, past):
    model, reference = random_model(), Reference(torch.float64, mla=form)
    spans = [Span(5, past, table=(0,)), Span(1, past, table=(1,))]
    latents = reference.alloc_cache(model.cache_spec("fp64"), 2)
    latents.randomise()
    with FlopCounterMode(display=False) as counter:
        reference.run(model, some_ids(6), spans, logits="all", cache=latents)
    trace = count(model, *spans, cached=True, lowering=lowered(form, UNFUSED), pairs=Pairs.SQUARE)
    assert trace.flops.matrix == counter.get_total_flops()


def attention(model, span, form, lowering=FUSED):
    trace = count(model, span, cached=True, lowering=lowered(form, lowering))
    return next(op for op in trace.ops if op.kind == "attend_latent"), trace


def test_an_absorbed_step_reads_the_latents_once_for_all_heads():
    op, trace = attention(V3, Span(1, 1023), Mla.ABSORBED)
    kernels = {kernel.kind: kernel for kernel in op.kernels(trace.lowering)}
    (cached,) = [a for a in kernels["attend_latent"].reads if a.value.role is Role.CACHE]
    assert cached.elements == 1024 * 576
    c = V3.config
    assert kernels["attend_latent"].flops.matrix == 2 * 1024 * c.heads * (576 + 512)
    assert kernels["absorb"].flops.matrix == kernels["project"].flops.matrix == 2 * c.heads * 128 * 512


def test_an_expanded_step_makes_the_keys_and_values_of_every_token():
    op, trace = attention(V3, Span(1, 1023), Mla.EXPANDED)
    kernels = {kernel.kind: kernel for kernel in op.kernels(trace.lowering)}
    c = V3.config
    assert kernels["expand"].flops.matrix == 2 * 1024 * 512 * c.heads * (128 + 128)
    assert sum(a.elements for a in kernels["expand"].writes) == 1024 * c.heads * 256
    assert kernels["attend_latent"].flops.matrix == 2 * 1024 * c.heads * (192 + 128)


def test_prompts_are_expanded_and_single_tokens_absorbed():
    statements = {
        rows: count(V3, Span(rows, past), cached=True).assumptions for rows, past in ((512, 0), (1, 512))
    }
    assert "latent attention runs expanded" in statements[512]
    assert "latent attention runs absorbed" in statements[1]
    mixed = count(V3, Span(512), Span(1, 512), cached=True)
    assert {"latent attention runs expanded", "latent attention runs absorbed"} <= set(mixed.assumptions)


LATENT = Latent(
    16, 32, 8, 4, 8, Norm("rms", Weight("n", (32,), "bf16"), 1e-6), Weight("up", (256, 32), "bf16")
)


@given(rows=st.integers(1, 400), past=st.integers(0, 5000))
def test_auto_takes_the_form_of_fewer_operations(rows, past):
    chosen = Mla.ABSORBED if is_absorbed(LATENT, Mla.AUTO, rows, rows + past) else Mla.EXPANDED
    span = Span(rows, past)
    model = small("deepseek-v3", layers=1)
    model = build(replace(model.config, rank=32, content=8, rotated=4, value=8), Declared("bf16"))
    flops = {
        form: count(model, span, cached=True, lowering=lowered(form), pairs=Pairs.SQUARE).flops.matrix
        for form in FORMS
    }
    assert flops[chosen] == min(flops.values())


@settings(max_examples=20)
@given(st.sampled_from(LOWERINGS), st.booleans())
def test_a_sweep_costs_what_its_points_cost(lowering, is_long):
    past = np.array([100, 700, 3000]) if is_long else np.array([10, 11, 12])
    swept = count(V3, Span(1, past, count=3), cached=True, lowering=lowering)
    single = [count(V3, Span(1, int(n), count=3), cached=True, lowering=lowering) for n in past]
    assert swept.flops.matrix == pytest.approx([t.flops.matrix for t in single])
    assert swept.bytes == pytest.approx([t.bytes for t in single])


def test_a_sweep_over_both_forms_takes_each_where_it_is_the_better():
    rows = np.array([1, 600])
    swept = count(V3, Span(rows, 4000), cached=True)
    single = [count(V3, Span(int(n), 4000), cached=True).flops.matrix for n in rows]
    assert swept.flops.matrix == pytest.approx(single)


# -- what is computed -----------------------------------------------------------------------------


@given(cut=st.integers(1, 39), other=st.integers(1, 9))
@settings(max_examples=15)
@pytest.mark.parametrize("family", ["deepseek-v3", "deepseek-v2-lite"])
def test_both_forms_give_the_same_logits(family, cut, other):
    model, ids = random_model(family), some_ids(40 + other)
    spec = model.cache_spec("fp64", block_size=8)
    logits = []
    for form in (*FORMS, Mla.AUTO):
        reference = Reference(torch.float64, mla=form)
        latents = reference.alloc_cache(spec, 8)
        spans = [Span(cut, table=(5, 0, 3, 1, 6)), Span(other, table=(2, 4))]
        first = torch.cat((ids[:cut], ids[40:]))
        reference.run(model, first, spans, cache=latents)
        rest = Span(40 - cut, cut, table=(5, 0, 3, 1, 6))
        logits.append(reference.run(model, ids[cut:40], [rest], logits="all", cache=latents))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(logits[0], logits[2], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("format", ["fp32", "bf16", "int4-g32"])
@pytest.mark.parametrize("family", ["deepseek-v3", "deepseek-v2-lite"])
def test_a_requests_logits_are_the_same_bits_in_any_chunks_and_any_batch(family, format):
    plain = "fp32" if format == "fp32" else "bf16"
    model = packed_model(family, format, plain=plain)
    ids, length, blocks = some_ids(75).tolist(), 75, -(-75 // BLOCK_TOKENS)

    def logits(chunks, others=()):
        latents = CPU.alloc_cache(model.cache_spec(plain), blocks * (1 + len(others)))
        latents.randomise()
        tables = [tuple(range(i * blocks, (i + 1) * blocks))[::-1] for i in range(1 + len(others))]
        rows, past = [], 0
        for n in chunks:
            spans = [*(Span(m, 0, table=t) for m, t in zip(others, tables)), Span(n, past, table=tables[-1])]
            batch = [*some_ids(sum(others), seed=past).tolist(), *ids[past : past + n]]
            rows.append(CPU.run(model, batch, spans, logits="all", cache=latents)[sum(others) :])
            past += n
        return torch.cat(rows)

    whole = logits([length])
    assert torch.equal(logits([30, 1, 44]), whole)
    assert torch.equal(logits([1] * 5 + [70], others=(7, 1, 19)), whole)


def test_a_copied_block_of_latents_is_the_block():
    model, ids = packed_model("deepseek-v3", "fp32"), some_ids(60).tolist()
    latents = CPU.alloc_cache(model.cache_spec("fp32"), 4)
    whole = CPU.run(model, ids, [Span(60, table=(0, 1))], logits="all", cache=latents)
    latents.copy_blocks([(0, 3)])
    rest = CPU.run(model, ids[32:], [Span(28, 32, table=(3, 2))], logits="all", cache=latents)
    assert torch.equal(rest, whole[32:])


def test_a_quantised_cache_of_latents_is_refused():
    with pytest.raises(ValueError, match="can't be kept as int8: choose one of"):
        CPU.alloc_cache(V3.cache_spec("int8"), 1)
