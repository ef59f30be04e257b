"""The cpu reading computes what the reference does with the same, packed, weights."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.kernels import pack_linear
from ridgeline.kernels.linear import FORMATS
from ridgeline.models import read_config
from ridgeline.models.products import products
from ridgeline.ops.batch import CacheSpec, Span
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.formats import get_format
from ridgeline.ops.record import record
from ridgeline.ops.recording import Unrecordable
from ridgeline.ops.records import Heads, Mask, Norm, Rope, RopeScaling, Score, Weight
from ridgeline.ops.reference import Reference
from ridgeline.weights.pack import build_packed
from tests.ops.packed_models import FAMILIES, VOCAB, Lively, packed_model, some_ids

CPU, REFERENCE = Cpu(attention_format="fp32"), Reference()
T5 = {
    **{"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "dtype": "float32"},
    **{"vocab_size": VOCAB, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 2, "num_heads": 4},
    **{"relative_attention_num_buckets": 8, "relative_attention_max_distance": 9},
    **{"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0},
}
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", ["fp32", "int4-g32"])
@pytest.mark.parametrize("attention", ["fp32", "bf16"])
def test_operators_one_by_one_give_the_bits_of_the_recorded_pass(family, format, attention):
    cpu, model, ids = Cpu(attention), packed_model(family, format), some_ids(30).tolist()
    caches = [cpu.alloc_cache(model.cache_spec("bf16"), 2)] if model.config.is_decoder else []
    spans = [Span(20, table=(1,)), Span(10, table=(0,))]
    record(model, all_rows=True, cache=None, attention_format=attention)  # it can be
    for cache in (None, *caches):
        eager = model.forward(cpu, cpu.batch(ids, spans, logits="all", cache=cache))
        assert torch.equal(cpu.run(model, ids, spans, logits="all", cache=cache), eager)


@pytest.mark.parametrize("format", ["fp32", "int8"])
@pytest.mark.parametrize("attention", ["fp32", "bf16"])
@pytest.mark.parametrize("stored", [False, True], ids=["states", "caches"])
def test_an_encoder_and_its_decoder_are_recorded_to_the_bits_of_their_operators(format, attention, stored):
    """Two sequences, one of which reads fewer keys than it has rows."""
    model = build_packed(read_config(T5, "t5"), Lively(torch.float32), format)
    source, target, reading = some_ids(13).tolist(), some_ids(16, 1).tolist(), []
    for run in (Cpu, Reference):  # as recorded, and operator by operator
        cpu = Cpu(attention)
        cache = cpu.alloc_cache(model.memory_spec("bf16"), 2) if stored else None
        memory = run.encode(cpu, model, source, [Span(3, table=(1,)), Span(10, table=(0,))], cache)
        read = replace(memory, states=None if stored else memory.states)
        own = cpu.alloc_cache(model.cache_spec("bf16"), 2)
        logits = []
        for rows, past in ((7, 0), (1, 7)):
            spans = [Span(rows, past, table=(0,)), Span(rows, past, table=(1,))]
            ids = target[2 * past :][: 2 * rows]
            logits.append(run.run(cpu, model, ids, spans, logits="all", cache=own, memory=read))
        recorded = [replay for _, replay in cpu._replays.values()]
        assert len(recorded) == (2 if run is Cpu else 0)
        assert None not in recorded
        reading.append((memory.states, *logits))
    assert all(torch.equal(a, b) for a, b in zip(*reading, strict=True))


def test_a_pass_of_tokens_may_be_modulated():
    """As probes do it: by vectors that are made of each sequence's first row."""
    table = Weight("table", (VOCAB, 32), "fp32", randn(0, VOCAB, 32))
    matrices = [Weight(f"w{n}", (n, 32), "fp32", pack_linear(randn(n, n, 32), "fp32")) for n in (96, 32)]
    norm = Norm("layer", None, 1e-6, role="norm")

    class Pass:
        def forward(self, ops, batch):
            x = ops.embed(batch.ids, table)
            vectors = ops.linear(ops.take_rows(x, batch.first_rows), matrices[0])
            shift, scale, gate = ops.columns(ops.activate(vectors, "silu"), 3)
            h = ops.norm(x, norm, shift=shift, scale=scale, spans=batch.spans)
            return ops.linear(h, matrices[1], residual=x, gate=gate, spans=batch.spans)

    model, ids, spans = Pass(), some_ids(12).tolist(), [Span(5), Span(7)]
    eager = model.forward(CPU, CPU.batch(ids, spans, logits="all"))
    assert torch.equal(CPU.run(model, ids, spans, logits="all"), eager)


def test_rotations_by_request_and_by_position_of_different_sizes_meet_in_one_pass():
    by_request = Rope(8, 100.0, RopeScaling("dynamic", 4.0, 16))
    heads, score = Heads(2, 1, 16), Score(0.25)
    table = Weight("table", (VOCAB, 64), "fp32", randn(0, VOCAB, 64))

    class Pass:
        def forward(self, ops, batch):
            x = ops.embed(batch.ids, table)
            for i, rope in enumerate((by_request, Rope(16, 10_000.0), Rope(4, 10_000.0))):
                q, k, v = ops.split_heads(x, heads)
                a = ops.attend(
                    *(q, k, v), spans=batch.spans, mask=Mask(True), score=score, rope=rope,
                    cache=batch.layer_cache(i),
                )  # fmt: skip
                x = ops.join_columns(a, a)
            return x

    model, ids = Pass(), some_ids(12).tolist()
    cache = CPU.alloc_cache(CacheSpec(3, 1, 16, "fp32"), 2)
    spans = [Span(5, table=(0,), admitted=90), Span(7, table=(1,), admitted=20)]
    for kept in (None, cache):
        eager = model.forward(CPU, CPU.batch(ids, spans, logits="all", cache=kept))
        assert torch.equal(CPU.run(model, ids, spans, logits="all", cache=kept), eager)


def test_what_has_no_call_is_run_operator_by_operator():
    """Latents that are cached in fp16."""
    model, ids, spans = packed_model("deepseek-v3", "fp32"), some_ids(12).tolist(), [Span(12, table=(1,))]
    cache = CPU.alloc_cache(model.cache_spec("fp16"), 2)
    with pytest.raises(Unrecordable, match="fp16"):
        record(model, all_rows=True, cache=cache, attention_format="fp32")
    found = CPU.run(model, ids, spans, logits="all", cache=cache)
    assert relative_error(found, REFERENCE.run(model, ids, [Span(12)], logits="all")) < 0.01


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
