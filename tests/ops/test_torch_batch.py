"""Packed batches: however sequences are cut, mixed and laid into blocks, each computes as if alone."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.ops.batch import CacheSpec, Span
from ridgeline.ops.records import Mask
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_batch import TorchCache, TorchSpans, make_batch, visible
from ridgeline.ops.torch_cpu import TorchCpu

TOLERANCE = 1e-5  # of the largest logit
READINGS = {"reference": Reference(), "torch-cpu": TorchCpu(torch.float32)}
VOCAB = 61
LONGEST = 24
#: One family with RoPE, grouped heads, biases and windows; one with learned positions; one with experts and
#: with latents, whose steps run expanded and absorbed.
MODELS = {
    "qwen2": (
        "Qwen2ForCausalLM",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
        },
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LONGEST},
    ),
    "deepseek": (
        "DeepseekV3ForCausalLM",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "moe_intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": 12,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 6,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_group": 2,
            "topk_group": 2,
            "first_k_dense_replace": 1,
        },
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, make_twin):
    architecture, fields = MODELS[request.param]
    return make_twin(architecture, **fields).ours


@pytest.fixture(scope="module", params=READINGS)
def ops(request):
    return READINGS[request.param]


def cuts(length: int) -> st.SearchStrategy[list[int]]:
    """Where the chunks of a sequence begin and end, from 0 to its length."""
    inner = st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set())
    return inner.map(lambda places: [0, *sorted(places), length])


SEQUENCES = st.lists(st.integers(1, LONGEST).flatmap(cuts), min_size=1, max_size=4)


@settings(max_examples=40)
@given(data=st.data(), sequences=SEQUENCES, block_size=st.sampled_from([1, 2, 3, 8, 16]))
def test_a_mixed_batch_gives_each_sequence_the_logits_it_has_alone(model, ops, data, sequences, block_size):
    """Every step packs the next chunk of some of the sequences, prefill and decode alike."""
    ids = [
        torch.randint(0, VOCAB, (places[-1],), generator=torch.Generator().manual_seed(i))
        for i, places in enumerate(sequences)
    ]
    cache, tables = paged(ops, model, [len(x) for x in ids], block_size, data)
    waiting = {i: list(pairwise(places)) for i, places in enumerate(sequences)}
    logits = {i: [] for i in waiting}
    while waiting:
        chosen = data.draw(st.lists(st.sampled_from(sorted(waiting)), min_size=1, unique=True))
        chunks = {i: waiting[i].pop(0) for i in chosen}
        spans = [Span(b - a, past=a, table=tables[i]) for i, (a, b) in chunks.items()]
        packed = torch.cat([ids[i][a:b] for i, (a, b) in chunks.items()])
        out = forward(model, ops, ops.batch(packed, spans, logits="all", cache=cache))
        for i, rows in zip(chosen, out.split([span.rows for span in spans]), strict=True):
            logits[i].append(rows)
        waiting = {i: rest for i, rest in waiting.items() if rest}
    for i, rows in logits.items():
        alone = forward(model, ops, ops.batch(ids[i], [Span(len(ids[i]))], logits="all"))
        torch.testing.assert_close(torch.cat(rows), alone, rtol=0, atol=TOLERANCE * alone.abs().max().item())


def paged(ops, model, lengths, block_size, data):
    """A cache, and for each sequence a table of blocks, in any order. Slots that nobody has
    written hold NaN, so that reading one shows."""
    needed = [-(-n // block_size) for n in lengths]
    order = data.draw(st.permutations(range(sum(needed) + 1)))
    cache = ops.alloc_cache(model.cache_spec("fp32", block_size), blocks=len(order))
    for index in range(model.config.layers):
        for stored in cache.layer(index).stored:
            stored.fill_(torch.nan)
    blocks = iter(order)
    return cache, [tuple(next(blocks) for _ in range(n)) for n in needed]


@torch.no_grad()
def forward(model, ops, batch):
    return model.forward(ops, batch)


def test_the_last_rows_logits_are_those_of_all_rows(model, ops):
    ids, spans = torch.arange(12), [Span(5), Span(1), Span(6)]
    every = forward(model, ops, ops.batch(ids, spans, logits="all"))
    last = forward(model, ops, ops.batch(ids, spans))
    torch.testing.assert_close(last, every[[4, 5, 11]])


def test_a_batch_lays_out_the_spans_one_after_another():
    batch = make_batch(range(6), [Span(3), Span(1, past=7, table=(2,)), Span(2, past=4)])
    assert batch.positions.tolist() == [0, 1, 2, 7, 4, 5]
    assert batch.logit_rows.tolist() == [2, 3, 5]
    assert batch.segments.tolist() == [0] * 6
    assert [(start, stop) for _, start, stop in batch.spans.pieces()] == [(0, 3), (3, 4), (4, 6)]


def test_slots_follow_the_table():
    spans = TorchSpans((Span(3, past=3, table=(5, 2)), Span(1, table=(7,))), torch.device("cpu"))
    assert spans.slots(4).tolist() == [5 * 4 + 3, 2 * 4, 2 * 4 + 1, 7 * 4]


@given(data=st.data(), block_size=st.integers(1, 5), past=st.integers(0, 12), rows=st.integers(1, 6))
def test_what_is_appended_is_read_back_in_order(data, block_size, past, rows):
    blocks = -(-(past + rows) // block_size)
    table = tuple(data.draw(st.permutations(range(blocks + 2)))[:blocks])
    layer = TorchCache(CacheSpec(1, 2, 4, "fp32", block_size), blocks + 2).layer(0)
    k, v = torch.randn(2, past + rows, 2, 4)
    for start, stop in ((0, past), (past, past + rows)):
        span = Span(stop - start, past=start, table=table)
        layer.append(TorchSpans((span,), torch.device("cpu")), k[start:stop], v[start:stop])
    keys, values = layer.read(span)
    assert torch.equal(keys, k.transpose(0, 1))
    assert torch.equal(values, v.transpose(0, 1))


def test_blocks_that_lie_one_after_another_are_read_without_a_copy():
    layer = TorchCache(CacheSpec(1, 2, 4, "fp32", 4), 8).layer(0)
    keys, _ = layer.read(Span(1, past=9, table=(3, 4, 5)))
    assert keys.data_ptr() == layer.stored[0][:, 12:].data_ptr()


def test_a_cache_in_another_format_holds_what_fits_it():
    layer = TorchCache(CacheSpec(1, 1, 4, "bf16", 4), 1).layer(0)
    k = torch.randn(3, 1, 4)
    span = Span(3, table=(0,))
    layer.append(TorchSpans((span,), torch.device("cpu")), k, k)
    assert torch.equal(layer.read(span)[0][0], k[:, 0].bfloat16())


@given(
    rows=st.integers(0, 7),
    keys=st.integers(0, 9),
    causal=st.booleans(),
    window=st.tuples(st.integers(-1, 4), st.integers(-1, 4)),
)
def test_a_query_sees_what_the_mask_says_from_the_bottom_right_corner(rows, keys, causal, window):
    """``Mask``'s own words, pair by pair: both ends of the window are inclusive."""
    seen = visible(Mask(causal, window), rows, keys, torch.device("cpu"))
    left, right = window
    for i in range(rows):
        for j in range(keys):
            diagonal = i + keys - rows
            expected = (
                (not causal or j <= diagonal)
                and (left < 0 or j >= diagonal - left)
                and (right < 0 or j <= diagonal + right)
            )
            assert seen[i, j].item() == expected
