"""Every family computes what transformers computes: logits at every position, and greedy tokens."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ridgeline.analysis.step import trace_step
from ridgeline.models.model import Model
from ridgeline.ops.batch import Span
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_cpu import TorchCpu
from tests.models.family_twins import BERT, DECODERS, ENCODERS, GREEDY, LLAMA, VOCAB

#: How far two computations in float32 may lie apart, relative to the largest logit.
TOLERANCE = 1e-5
TOKENS = 60
PROMPT = 10
GREEDY_STEPS = 200
READINGS = {
    "reference": Reference(),
    "cpu": Cpu(attention_format="fp32"),
    "torch-cpu": TorchCpu(torch.float32),
}


@pytest.fixture(scope="module", autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=READINGS)
def ops(request):
    return READINGS[request.param]


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, VOCAB["vocab_size"], (TOKENS,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, make_twin):
    architecture, fields = DECODERS[request.param]
    return make_twin(architecture, **fields)


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request, make_twin):
    architecture, fields = ENCODERS[request.param]
    return make_twin(architecture, **fields)


def one_pass(model: Model, ops, ids, segments=None):
    """Logits of every row of one sequence, without a cache."""
    return model.forward(ops, ops.batch(ids, [Span(len(ids))], logits="all", segments=segments))


def by_transformers(model, ids, **inputs):
    output = model(ids[None], **inputs)
    return (output.logits if hasattr(output, "logits") else output.last_hidden_state)[0]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


def test_a_decoders_logits_are_those_of_transformers(decoder, ops, ids):
    assert_close(one_pass(decoder.on(ops), ops, ids), by_transformers(decoder.theirs, ids))


def test_chunks_and_single_steps_give_the_logits_of_one_pass(decoder, ops, ids):
    cache = ops.alloc_cache(decoder.ours.cache_spec("fp32"), blocks=5)
    table = (3, 1, 4, 0)
    rows = []
    for start, stop in ((0, 20), (20, 21), (21, 50), (50, 51), (51, TOKENS)):
        span = Span(stop - start, past=start, table=table)
        rows.append(
            decoder.on(ops).forward(ops, ops.batch(ids[start:stop], [span], logits="all", cache=cache))
        )
    assert_close(torch.cat(rows), one_pass(decoder.on(ops), ops, ids))


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_tokens_are_those_of_transformers(name, make_twin, ids):
    """With these seeds transformers' two best logits never lie closer than 2e-5 of the largest,
    so that rounding, some 1e-6, cannot decide."""
    architecture, fields = DECODERS[name]
    twin = make_twin(architecture, **fields)
    expected = twin.theirs.generate(
        ids[None, :PROMPT],
        attention_mask=torch.ones(1, PROMPT),
        max_new_tokens=GREEDY_STEPS,
        do_sample=False,
    )
    for ops in READINGS.values():
        assert greedy(twin.on(ops), ops, ids[:PROMPT]) == expected[0, PROMPT:].tolist()


def greedy(model: Model, ops, prompt) -> list[int]:
    cache = ops.alloc_cache(model.cache_spec("fp32"), blocks=16)
    table = tuple(reversed(range(16)))
    tokens, new, past = [], prompt, 0
    while len(tokens) < GREEDY_STEPS:
        span = Span(len(new), past=past, table=table)
        logits = model.forward(ops, ops.batch(new, [span], cache=cache))
        tokens.append(int(logits.argmax()))
        past, new = past + len(new), tokens[-1:]
    return tokens


@pytest.fixture
def dynamic(make_twin):
    """A model with dynamic RoPE and a window of 32."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    twin = make_twin("LlamaForCausalLM", **{**LLAMA, "max_position_embeddings": 32, "rope_parameters": rope})
    # transformers keeps the frequencies of the longest pass so far, so every test gets a fresh one.
    return replace(twin, theirs=deepcopy(twin.theirs))


@pytest.mark.parametrize("tokens", [20, 32, 33, 60])
def test_dynamic_rope_is_that_of_transformers_for_one_full_pass(tokens, dynamic, ops, ids):
    batch = ops.batch(ids[:tokens], [Span(tokens, admitted=tokens)], logits="all")
    assert_close(dynamic.on(ops).forward(ops, batch), by_transformers(dynamic.theirs, ids[:tokens]))


def test_dynamic_rope_stays_as_admitted_while_the_sequence_grows(dynamic, ops, ids):
    cache = ops.alloc_cache(dynamic.ours.cache_spec("fp32"), blocks=4)
    rows = []
    for start, stop in ((0, 30), (30, 40), (40, 60)):
        span = Span(stop - start, past=start, table=(0, 1, 2, 3), admitted=60)
        rows.append(
            dynamic.on(ops).forward(ops, ops.batch(ids[start:stop], [span], logits="all", cache=cache))
        )
    assert_close(torch.cat(rows), by_transformers(dynamic.theirs, ids))


@pytest.fixture
def longrope(make_twin):
    """Phi-3 with a list of factors for requests of up to 40 tokens, and another for longer ones."""
    short, long = ([1.0 + 0.1 * scale * i for i in range(8)] for scale in (1, 7))
    rope = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    lengths = {"max_position_embeddings": 256, "original_max_position_embeddings": 40}
    heads = {"hidden_size": 96, "rope_theta": 1e4}
    return make_twin("Phi3ForCausalLM", **{**LLAMA, **lengths, **heads, "rope_scaling": rope})


@pytest.mark.parametrize("tokens", [40, 41, 60])
def test_longrope_is_that_of_transformers_on_either_side_of_the_trained_length(tokens, longrope, ops, ids):
    scaling = longrope.ours.config.rope.scaling
    assert (scaling.factor, scaling.original_length) == (6.4, 40)
    actual = ops.run(longrope.on(ops), ids[:tokens], [Span(tokens, admitted=tokens)], logits="all")
    assert_close(actual, by_transformers(longrope.theirs, ids[:tokens]))


def test_an_encoders_outputs_are_those_of_transformers(encoder, ops, ids):
    assert_close(one_pass(encoder.on(ops), ops, ids), by_transformers(encoder.theirs, ids))


def test_token_types_count_as_in_transformers(encoder, ops, ids):
    segments = torch.arange(TOKENS) // 25
    expected = by_transformers(encoder.theirs, ids, token_type_ids=segments[None])
    assert_close(one_pass(encoder.on(ops), ops, ids, segments), expected)
    assert not torch.allclose(expected, by_transformers(encoder.theirs, ids), rtol=0.01)


@pytest.mark.parametrize("name", ["bert", "bert's trunk"])
def test_an_encoders_parameters_are_those_of_transformers(name, make_twin):
    architecture, fields = ENCODERS[name]  # untied, transformers keeps a second bias that nothing reads
    twin = make_twin(architecture, **fields)
    assert twin.ours.parameter_count() == twin.theirs.num_parameters()


def test_an_encoders_matrix_products_are_those_of_transformers(encoder, ids):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        by_transformers(encoder.theirs, ids)
    counted = trace_step(encoder.ours, [Span(TOKENS)], logits="all").flops
    assert counted.matrix == counter.get_total_flops()


def test_packed_sequences_do_not_see_each_other_in_an_encoder(encoder, ops, ids):
    lengths = (7, 1, 30, 22)
    packed = encoder.on(ops).forward(ops, ops.batch(ids, [Span(n) for n in lengths], logits="all"))
    for rows, part in zip(packed.split(lengths), ids.split(lengths), strict=True):
        assert_close(rows, by_transformers(encoder.theirs, part))


def test_the_pooled_vector_of_each_packed_sequence_is_that_of_transformers(make_twin, ops, ids):
    twin = make_twin("BertModel", **BERT)
    lengths = (20, 40)
    _, pooled = twin.on(ops).encode_and_pool(ops, ops.batch(ids, [Span(n) for n in lengths]))
    expected = torch.cat([twin.theirs(part[None]).pooler_output for part in ids.split(lengths)])
    assert_close(pooled, expected)
