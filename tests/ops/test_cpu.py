"""The cpu reading computes what the reference does with the same, packed, weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.kernels import pack_linear
from ridgeline.kernels.linear import FORMATS
from ridgeline.models.products import products
from ridgeline.ops.batch import Span
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.formats import get_format
from ridgeline.ops.record import Unrecordable, record
from ridgeline.ops.records import Weight
from ridgeline.ops.reference import Reference
from tests.ops.packed_models import FAMILIES, packed_model, some_ids

CPU, REFERENCE = Cpu(attention_format="fp32"), Reference()
INTEGERS = [format for format in FORMATS if get_format(format).is_quantised]
ACTIVATIONS = (None, "silu", "gelu", "gelu_tanh", "relu", "tanh", "silu_gated", "gelu_tanh_gated")


class RoundedProducts(Reference):
    """The reference with the rows of every product rounded as the kernels do: to bf16, or to int8 with a
    scale a row."""

    def linear(self, x, weight, **options):
        return super().linear(self.rounded(x, weight.format), weight, **options)

    def rounded(self, x, format):
        if not get_format(format).is_quantised:
            return x if format == "fp32" else x.bfloat16().float()
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x / scale).round() * scale


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@given(
    seed=st.integers(0, 999),
    rows=st.integers(1, 20),
    inner=st.integers(1, 40),
    outer=st.integers(1, 40),
    activation=st.sampled_from(ACTIVATIONS),
    biased=st.booleans(),
    added=st.booleans(),
)
def test_linear_with_all_that_is_fused_is_the_references(seed, rows, inner, outer, activation, biased, added):
    gated = activation is not None and activation.endswith("_gated")
    outputs = 2 * outer if gated else outer
    x, values = randn(seed, rows, inner), randn(seed + 1, outputs, inner)
    arguments = {
        "weight": Weight("w", (outputs, inner), "fp32", pack_linear(values, "fp32", gated=gated)),
        "bias": Weight("b", (outputs,), "fp32", randn(seed + 2, outputs)) if biased else None,
        "activation": activation,
        "residual": randn(seed + 3, rows, outer) if added else None,
    }
    expected = REFERENCE.linear(x, **arguments)
    magnitude = (x.abs() @ values.abs().T).max().item() + 10  # sums, and what is added to them
    tolerance = 1e-6 * magnitude**2 if gated else 1e-6 * magnitude
    torch.testing.assert_close(CPU.linear(x, **arguments), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("format", FORMATS)
def test_a_packed_table_is_looked_up_like_any_other(format):
    packed = pack_linear(randn(0, 50, 24), format)
    tied = Weight("embedding", (50, 24), format, packed)
    ids = torch.tensor([0, 7, 41, 7])
    assert torch.equal(CPU.embed(ids, tied, offset=2), REFERENCE.embed(ids, tied, offset=2))


def logits_of(ops, model, ids):
    """Of two sequences without a cache."""
    return ops.run(model, ids, [Span(20), Span(10)], logits="all")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_float32_models_logits_are_the_references(family):
    model, ids = packed_model(family, "fp32"), some_ids(30)
    assert relative_error(logits_of(CPU, model, ids), logits_of(REFERENCE, model, ids)) < 2e-6


@pytest.mark.parametrize("format", [*INTEGERS, "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_models_logits_are_those_of_the_reference_that_rounds_as_the_kernels_do(family, format):
    """The weights are the same to the bit. What float32 leaves open is on which side of a tie an element of a
    row is rounded: a step of 1 in 254 of the row's largest, or of 1 in 256 of its own."""
    model, ids = packed_model(family, format), some_ids(30)
    actual = logits_of(CPU, model, ids)
    assert relative_error(actual, logits_of(RoundedProducts(), model, ids)) < 0.015
    # Where a row of a mixture is rounded, it may take another expert.
    tolerance = 0.02 if format == "bf16" else 0.2 if hasattr(model.config, "experts") else 0.1
    assert relative_error(actual, logits_of(REFERENCE, model, ids)) < tolerance


@pytest.mark.parametrize("family", ["llama-3-8b", "gemma-2-2b", "gemma-3-4b", "gpt2", "bert-base"])
@pytest.mark.parametrize("format", ["fp32", "int4-g32"])
def test_operators_one_by_one_give_the_bits_of_the_recorded_pass(family, format):
    model, ids = packed_model(family, format), some_ids(30).tolist()
    caches = [CPU.alloc_cache(model.cache_spec("bf16"), 2)] if model.config.is_decoder else []
    spans = [Span(20, table=(1,)), Span(10, table=(0,))]
    for cache in (None, *caches):
        eager = model.forward(CPU, CPU.batch(ids, spans, logits="all", cache=cache))
        assert torch.equal(CPU.run(model, ids, spans, logits="all", cache=cache), eager)


@pytest.mark.parametrize(
    ("family", "recorded"),
    [("gemma-2-2b", True), ("gemma-3-4b", True), ("phi-4", True), ("pythia-1.4b", False)],
)
def test_what_has_no_call_is_run_operator_by_operator(family, recorded):
    """Several rotations, scaled embeddings and softcaps have calls; rotating a part of a head has none."""
    model = packed_model(family, "fp32")
    if recorded:
        record(model, all_rows=True, cache=None, attention_format="fp32")
    else:
        with pytest.raises(Unrecordable):
            record(model, all_rows=True, cache=None, attention_format="fp32")


@pytest.mark.parametrize(("cache_format", "tolerance"), [("fp32", 1e-6), ("bf16", 0.02), ("int8", 0.05)])
@pytest.mark.parametrize("family", ["llama-3-8b", "gemma-3-4b", "gpt2"])
def test_steps_over_a_cache_err_by_its_rounding(family, cache_format, tolerance):
    model, ids = packed_model(family, "fp32"), some_ids(40).tolist()
    cache = CPU.alloc_cache(model.cache_spec(cache_format), 2)
    rows = []
    for start, stop in ((0, 15), (15, 19), (19, 20), (20, 40)):
        span = Span(stop - start, past=start, table=(1, 0))
        rows.append(CPU.run(model, ids[start:stop], [span], logits="all", cache=cache))
    expected = REFERENCE.run(model, ids, [Span(40)], logits="all")
    assert relative_error(torch.cat(rows), expected) < tolerance


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_activations_are_float32_whatever_the_weights_are(format):
    model = packed_model("llama-3-8b", format, plain="bf16")
    assert CPU.run(model, some_ids(3), [Span(3)]).dtype == torch.float32


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_multiplied_is_stored_packed(format):
    model = packed_model("llama-3-8b", format)
    for weight, gated in products(model):
        assert weight.data.gated == gated
        padding = 64 * weight.data.layout.panels if format.endswith("-zp") else 0
        assert weight.nbytes <= weight.data.nbytes <= weight.nbytes + padding
