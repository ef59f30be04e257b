"""Context parallelism counted: all ranks together against one, and what they exchange against the papers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.analysis.step import trace_step
from ridgeline.errors import InputError
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count_context import Context, ContextKind, _share_of_rows
from ridgeline.ops.count_pairs import visible_pairs
from ridgeline.ops.records import Mask

MODEL = declare(load_config("llama-3.1-8b"))
CONFIG = MODEL.config
LENGTH, RANKS = 8192, 4
KV = 2 * CONFIG.kv_heads * CONFIG.head_dim * 2  # bytes of a token's keys and values in a layer


def prefill(kind, ranks=RANKS, length=LENGTH):
    return trace_step(MODEL, [Span(length)], context=Context(ranks, kind, divides_rows=True))


def decode(kind, ranks=RANKS, keys=LENGTH, sequences=2):
    span = Span(1, keys - 1, sequences)
    return trace_step(MODEL, [span], context=Context(ranks, kind, divides_rows=False))


def comms(trace):
    found = [p.comm for op in trace.ops if op.repeat > 1 for p in op.parts if p.comm is not None]
    assert all(comm.axis == "context" and comm.ranks == RANKS for comm in found)
    return found


def of_kind(trace, kind):
    return sum(op.flops.matrix * op.repeat for op in trace.ops if op.kind == kind and op.name != "head")


@pytest.mark.parametrize("kind", ContextKind)
@pytest.mark.parametrize("operators", ["linear", "attend"])
def test_ranks_together_do_what_one_does(kind, operators):
    one = of_kind(trace_step(MODEL, [Span(LENGTH)]), operators)
    assert RANKS * of_kind(prefill(kind), operators) == pytest.approx(one)


@pytest.mark.parametrize("kind", ContextKind)
def test_in_a_decode_step_ranks_share_attention_and_repeat_the_rest(kind):
    one, ours = trace_step(MODEL, [Span(1, LENGTH - 1, 2)]), decode(kind)
    assert RANKS * of_kind(ours, "attend") == pytest.approx(of_kind(one, "attend"))
    assert of_kind(ours, "linear") == of_kind(one, "linear")


@given(
    ranks=st.integers(1, 8),
    blocks=st.integers(1, 200),
    past=st.integers(0, 500),
)
def test_a_causal_share_has_as_many_pairs_as_alternating_chunks(ranks, blocks, past):
    """By brute force: each rank has one chunk of rows from the front and one from the end."""
    rows = 2 * ranks * blocks
    seen = [past + i + 1 for i in range(rows)]
    shares = []
    for rank in range(ranks):
        mirrored = 2 * ranks - 1 - rank
        mine = [
            *range(rank * blocks, (rank + 1) * blocks),
            *range(mirrored * blocks, (mirrored + 1) * blocks),
        ]
        shares.append(sum(seen[i] for i in mine))
    assert len(set(shares)) == 1  # balanced
    span = _share_of_rows(Span(rows, past), ranks, causal=True)
    assert span.rows == rows / ranks
    # A fraction of a pair is dropped where half a token remains.
    assert visible_pairs(span, Mask(causal=True)) == pytest.approx(shares[0], abs=2)


def test_a_ring_passes_every_other_ranks_keys_and_values_once():
    (sends,) = comms(prefill(ContextKind.RING))
    assert (sends.collective, sends.times, sends.overlaps) == ("send_recv", RANKS - 1, True)
    assert sends.bytes * sends.times == KV * LENGTH * (RANKS - 1) / RANKS


def test_an_all_gather_moves_all_keys_and_values():
    (gather,) = comms(prefill(ContextKind.ALLGATHER))
    assert (gather.collective, gather.bytes, gather.overlaps) == ("all_gather", KV * LENGTH, False)


def test_ulysses_exchanges_queries_keys_values_and_results():
    """DeepSpeed-Ulysses (Jacobs et al., 2023): 4 N h / P a rank where all heads are alike; here keys and
    values have fewer heads."""
    scatter, collect = comms(prefill(ContextKind.ULYSSES))
    rows, width = LENGTH // RANKS, CONFIG.heads * CONFIG.head_dim
    assert scatter.collective == collect.collective == "all_to_all"
    assert scatter.bytes == rows * (2 * width + KV)
    assert collect.bytes == rows * 2 * width

    alike = declare(load_config("gpt2"))
    trace = trace_step(alike, [Span(1024)], context=Context(4, ContextKind.ULYSSES, divides_rows=True))
    sent = sum(p.comm.bytes for op in trace.ops if op.repeat > 1 for p in op.parts if p.comm is not None)
    assert sent == 4 * 1024 * alike.config.width / 4 * 2


@pytest.mark.parametrize("kind", [ContextKind.RING, ContextKind.ALLGATHER])
def test_partial_results_of_a_decode_step_are_gathered_and_merged(kind):
    trace = decode(kind)
    (gather,) = comms(trace)
    rows, heads, dim = 2, CONFIG.heads, CONFIG.head_dim
    assert (gather.collective, gather.bytes) == ("all_gather", RANKS * rows * heads * (dim + 1) * 4)
    assert any(op.name == "attention.merge" for op in trace.ops)


@given(ranks=st.sampled_from([1, 2, 4, 8]), kind=st.sampled_from(ContextKind))
@settings(max_examples=10, deadline=None)
def test_the_cache_is_read_once_by_all_ranks_together(ranks, kind):
    def read(trace):
        return sum(
            s.cache_bytes for op in trace.ops for p in op.parts if p.kind == "scores" for s in p.sequences
        )

    one = read(trace_step(MODEL, [Span(1, LENGTH - 1, 2)]))
    assert ranks * read(decode(kind, ranks)) == pytest.approx(one, rel=0.01)


def test_ulysses_needs_heads_for_all_ranks():
    with pytest.raises(InputError, match=r"5 ranks can't share 32 heads .* choose ring or allgather"):
        prefill(ContextKind.ULYSSES, ranks=5)
