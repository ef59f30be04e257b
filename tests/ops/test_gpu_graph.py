"""Recorded steps of the GPU reading: their numbers, what they may hold, and how long they live.

Without a GPU nothing is recorded: the same step runs operator by operator on its fixed tensors.
"""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests import gpu as shared  # isort: skip  (it skips the module where there is no Triton)

from ridgeline.engine.engine import Engine
from ridgeline.engine.speculation.choice import choose
from ridgeline.engine.speculation.length import FixedLength
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.errors import InputError, OutOfMemory
from ridgeline.kernels import triton as kernels
from ridgeline.kernels.triton import cache as cache_module
from ridgeline.kernels.triton import latent, rows
from ridgeline.loading import load
from ridgeline.ops import gpu_graph
from ridgeline.ops.batch import Span
from ridgeline.ops.gpu import Gpu, to_gpu
from ridgeline.ops.gpu_graph import BUCKETS, DecodeStep, bucket, shape
from ridgeline.ops.gpu_numbers import StepNumbers
from tests.ops.packed_models import packed_model, some_ids

device, patched_once_a_launch = shared.device, shared.patched_once_a_launch
#: Ways through a decode step: rotated, learned positions, a window and capped scores, experts, latents.
full = pytest.mark.slow
SELDOM = ("gpt2", "gemma-2-2b", "qwen3-30b-a3b")
FAMILIES = ("llama-3-8b", "deepseek-v3", *(pytest.param(name, marks=full) for name in SELDOM))


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def on_gpu(family, device, format="fp32", **changes):
    moved = to_gpu(packed_model(family, format, **changes), device)
    return moved, Gpu(torch.float32, device, quantised=format.startswith("int"))


# -- the numbers of a step ----------------------------------------------------------------------------


@st.composite
def steps(draw_from):
    """A size and rows, and some steps of at most so many."""
    size, rows = draw_from(st.sampled_from([(1, 1), (4, 1), (2, 3), (3, 5)]))
    span = st.tuples(st.integers(1, rows), st.integers(0, 11), st.integers(0, 9))
    return size, rows, draw_from(st.lists(st.lists(span, max_size=size), min_size=1, max_size=4))


@settings(max_examples=40)
@given(steps())
def test_a_steps_numbers_are_those_of_its_spans(device, drawn):
    """As any step has them, with rows and sequences of padding behind, whatever the step before was."""
    size, rows, batches = drawn
    numbers = StepNumbers(size, rows, 6, 4, device)
    for batch in batches:
        spans = [Span(n, past, table=(3, 1, 4, 0, 5, 2)[i:]) for i, (n, past, _) in enumerate(batch)]
        spans = [s if len(s.table) * 4 >= s.keys else Span(s.rows, 0, table=s.table) for s in spans]
        count = sum(span.rows for span in spans)
        numbers.fill(list(range(1, 1 + count)), spans)
        held, want = numbers.sequences, kernels.Sequences.of(spans, device, 4)
        assert numbers.ids.tolist() == [*range(1, 1 + count), *[0] * (size * rows - count)]
        positions = [j for s in spans for j in s.positions]
        assert numbers.positions.tolist() == positions + [0] * (size * rows - count)
        assert held.slots.tolist() == want.slots.tolist() + [-1] * (size * rows - count)
        assert held.cu_rows[: len(spans) + 1].tolist() == want.cu_rows.tolist()
        assert held.lengths.tolist() == want.lengths.tolist() + [0] * (size - len(spans))
        assert (held.cu_rows.diff() >= 0).all()
        assert int(held.cu_rows[-1]) <= size * rows
        for i, span in enumerate(spans):
            assert held.tables[i, : len(span.table)].tolist() == list(span.table)


# -- a step -------------------------------------------------------------------------------------------


def prompts(ops, model, caches, tables):
    """The same two sequences in each cache, of 5 and 2 tokens; nothing else is in them."""
    for cache in caches:
        cache._data.fill_(torch.nan)
        spans = [Span(5, table=tables[0]), Span(2, table=tables[1])]
        ops.run(model, some_ids(7).tolist(), spans, cache=cache)


@pytest.mark.parametrize("family", ["llama-3-8b", pytest.param("deepseek-v3", marks=full), *FAMILIES[2:]])
def test_steps_that_verify_proposals_are_the_steps(device, family):
    """Sequences of up to 3 rows: one with a full proposal, one with a short one."""
    model, ops = on_gpu(family, device)
    caches = [ops.alloc_cache(model.cache_spec("fp32", block_size=4), 8) for _ in "ab"]
    tables = (2, 6, 5), (1, 0)
    prompts(ops, model, caches, tables)
    step = DecodeStep(ops, model, caches[0], 4, 3, rows=3)
    spans, ids = [Span(3, 5, table=tables[0]), Span(2, 2, table=tables[1])], some_ids(5, seed=9).tolist()
    want = ops.run(model, ids, spans, logits="all", cache=caches[1])
    torch.testing.assert_close(step.run(ids, spans), want, rtol=1e-5, atol=1e-5)
    both = [cache._data for cache in caches]
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5, equal_nan=True)  # nothing else was written to


class OnTheDevice(TorchDispatchMode):
    """Refuses what a recorded step must not do: look at a result, take numbers from the host, or have shapes
    that follow from what is computed."""

    FORBIDDEN = (
        *("item", "_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "_unique2"),
        *("is_nonzero", "equal", "lift_fresh", "lift", "scalar_tensor", "_efficientzerotensor", "pin_memory"),
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"a recorded step calls aten::{name}"
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, "a recorded step indexes with a mask"
        if name == "repeat_interleave":
            assert not isinstance(args[-1], torch.Tensor), "a recorded step repeats by numbers on the GPU"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def launches_are_free(monkeypatch):
    """What the interpreter does for a launch is no part of a step, nor are checks of what lies on a CPU."""
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__

    def call(self, *args, **options):
        with _disable_current_modes():
            return launch(self, *args, **options)

    monkeypatch.setattr(GridExecutor, "__call__", call)
    for module in (rows, cache_module, latent):
        monkeypatch.setattr(module, "check_angles", lambda cos, sin, positions, *_: positions)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there a recording itself shows it")
@pytest.mark.parametrize("format", ["fp32", pytest.param("int4-g32", marks=full)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_recorded_step_stays_on_the_device(device, family, format, launches_are_free):
    model, ops = on_gpu(family, device, format)
    held = ops.alloc_cache(model.cache_spec("fp32", block_size=4), 8)
    held.randomise()
    step = DecodeStep(ops, model, held, 2, 3, rows=3)
    step.compute()  # what is made once
    with OnTheDevice():
        step.compute()


def test_what_a_recorded_step_must_not_do_is_noticed():
    x = torch.arange(3.0)
    for wrong in (
        lambda: x.sum().item(),
        lambda: torch.tensor([1, 2]),
        lambda: x[x > 1],
        lambda: torch.bincount(x.long()),
        lambda: x.repeat_interleave(x.long()),
        lambda: bool(x.any()),
    ):
        with pytest.raises(AssertionError, match="a recorded step"), OnTheDevice():
            wrong()


# -- which steps are recorded -------------------------------------------------------------------------


@pytest.fixture
def graphs(device):
    """Of a small model, as if there were a GPU to record on."""
    model, ops = on_gpu("llama-3-8b", device)
    ops._graphs.enabled = True
    return model, ops, ops.alloc_cache(model.cache_spec("fp32", block_size=4), 8)


def test_buckets_hold_every_number_of_sequences_and_rows():
    assert [bucket(n) for n in (1, 3, 9, 64, 65, BUCKETS[-1])] == [1, 4, 16, 64, 96, BUCKETS[-1]]
    assert [shape(3, rows) for rows in (1, 2, 3, 4, 9)] == [(4, 1), (4, 3), (4, 3), (4, 5), (4, 9)]


def test_steps_of_several_rows_are_recorded_beforehand_or_not_at_all(graphs):
    model, ops, cache = graphs
    can = ops._graphs.can_run
    assert can(model, [Span(1, 3)], "last", cache)
    verifying = [Span(3, 3), Span(1, 2)]
    assert not can(model, verifying, "all", cache)
    ops.prepare(model, cache, 3, rows=4)
    recorded = {(size, rows) for size in (1, 2, 4) for rows in (1, 3, 5)}
    assert set(ops._graphs._held[id(model), id(cache)].steps) == recorded
    assert can(model, verifying, "all", cache)
    assert can(model, verifying, range(4), cache)
    assert not can(model, verifying, "last", cache)  # logits that nobody wants
    assert not can(model, verifying, [0, 1], cache)
    assert not can(model, [Span(6, 1)], "all", cache)
    assert not can(model, [Span(40, 1)], "all", cache)


def test_only_passes_that_follow_from_positions_are_recorded():
    config = {"is_decoder": True, "is_encoder_decoder": False}
    by_request, fixed = (SimpleNamespace(by_request=x) for x in (True, False))
    for rope, recordable in ((by_request, False), (fixed, True), (None, True)):
        assert (
            gpu_graph.is_recordable(SimpleNamespace(config=SimpleNamespace(**config, rope=rope)))
            is recordable
        )
    encoder = SimpleNamespace(**{**config, "is_decoder": False}, rope=None)
    assert not gpu_graph.is_recordable(SimpleNamespace(config=encoder))


# -- how long they live -------------------------------------------------------------------------------


def test_latents_are_not_recorded_where_they_are_always_expanded(device):
    """A recorded step attends to them absorbed."""
    for invariant in (False, True):
        ops = Gpu(torch.float32, device, invariant=invariant)
        ops._graphs.enabled = True
        for family, recorded in (("llama-3-8b", True), ("deepseek-v2-lite", not invariant)):
            model = packed_model(family, "fp32")
            cache = ops.alloc_cache(model.cache_spec("fp32", block_size=4), 2)
            assert ops._graphs.can_run(model, [Span(1, table=(0,))], "last", cache) == recorded


def test_steps_go_with_their_cache(graphs):
    """Released, or held by nobody; and a cache that comes to lie in the same place has none of them."""
    model, ops, cache = graphs
    for release in (True, False):
        ops.prepare(model, cache, 2)
        step = weakref.ref(ops._graphs._held[id(model), id(cache)].steps[1, 1])
        memory = weakref.ref(cache)
        if release:
            ops.release(cache)
        else:
            del cache
            gc.collect()
            assert memory() is None
        assert not ops._graphs._held
        gc.collect()
        assert step() is None
        cache = ops.alloc_cache(model.cache_spec("fp32", block_size=4), 8)


def test_two_caches_have_steps_of_their_own(graphs):
    model, ops, cache = graphs
    other = ops.alloc_cache(cache.spec, 8)
    ops.prepare(model, cache, 1)
    ops.prepare(model, other, 1)
    ops.release(other)
    assert list(ops._graphs._held) == [(id(model), id(cache))]


@pytest.fixture
def tiny(make_twin):
    fields = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return load(make_twin("LlamaForCausalLM", **fields).folder, device="cuda")


def test_a_closed_engine_lets_go_of_its_steps_and_its_cache(tiny):
    tiny.ops._graphs.enabled = True
    caches = []
    allocate = tiny.ops.alloc_cache
    tiny.ops.alloc_cache = lambda *sizes: caches.append(weakref.ref(cache := allocate(*sizes))) or cache
    with Engine(tiny, sequences=2, cache_tokens=128) as engine:
        engine.generate([[1, 2, 3]], max_tokens=2, stop_ids=())
        assert len(tiny.ops._graphs._held) == 1
    assert not tiny.ops._graphs._held
    gc.collect()
    assert [cache() for cache in caches] == [None]
    assert not engine.is_alive
    assert engine.status().blocks == 4  # what it did may still be asked for
    tiny.generate([[1, 2]], max_tokens=2, stop_ids=())
    gc.collect()
    assert [cache() for cache in caches] == [None, None]


# -- memory that runs short -----------------------------------------------------------------------------


def exhausted(*_, **__):
    raise torch.OutOfMemoryError


def test_recording_that_takes_too_much_is_said_with_its_size(graphs, monkeypatch):
    model, ops, cache = graphs
    monkeypatch.setattr(gpu_graph, "DecodeStep", exhausted)
    with pytest.raises(OutOfMemory, match=r"GB free .*steps of 4 sequences take more: lower cache_tokens"):
        ops.prepare(model, cache, 3)
    assert not ops._graphs._held


def test_a_step_that_takes_too_much_is_said_with_its_size(device, monkeypatch):
    model, ops = on_gpu("llama-3-8b", device)
    monkeypatch.setattr(type(model), "forward", exhausted)
    with pytest.raises(OutOfMemory, match=r"GB free, and a step of 7 tokens takes more: lower token_budget"):
        ops.run(model, some_ids(7).tolist(), [Span(7)])


def test_weights_that_run_short_on_their_way_are_said_with_their_size(device, monkeypatch):
    model = packed_model("gpt2", "int8")
    monkeypatch.setattr("ridgeline.ops.gpu._moved", exhausted)
    with pytest.raises(OutOfMemory, match=r"the weights take 0\.0 GB and the GPU has"):
        to_gpu(model, device)


def test_a_prompt_that_takes_too_much_fails_alone(tiny):
    """One that decodes beside it goes on, and so does the engine."""
    run = tiny.ops.run

    def short(model, ids, spans, **options):
        if any(span.rows > 30 for span in spans):
            raise OutOfMemory("the GPU has 0.0 GB free, and a step of 40 tokens takes more")
        return run(model, ids, spans, **options)

    options = {"max_tokens": 6, "stop_ids": ()}
    want = tiny.generate([[1, 2, 3]], **options)[0].ids
    tiny.ops.run = short
    with Engine(tiny, sequences=2, cache_tokens=256) as engine:
        tokens = engine.tokens([[1, 2, 3]], **options)
        first = next(tokens)
        with pytest.raises(InputError, match="a step of 40 tokens takes more"):
            engine.generate([[5] * 40], **options)
        assert (first.id, *(token.id for token in tokens)) == want
        assert engine.generate([[1, 2, 3]], **options)[0].ids == want


# -- a draft beside its target --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_of_draft", "threads"), [(None, None), pytest.param("cpu", 1, marks=full), ("cuda", 1)]
)
def test_a_draft_runs_where_it_is_asked_to_and_leaves_the_output_as_it_is(
    tiny, device_of_draft, threads, make_twin
):
    """By default where its target does. Its steps and its cache go when it is closed."""
    options = {"max_tokens": 5, "stop_ids": ()}
    want = tiny.generate([[1, 2, 3]], **options)[0].ids
    speculator = choose(f"draft:{tiny.folder}", tiny, draft_device=device_of_draft, draft_threads=threads)
    speculator = Speculator(speculator.proposer, length=FixedLength(2))
    draft = speculator.proposer if threads is None else speculator.proposer.proposer
    on_gpu = device_of_draft != "cpu"
    assert isinstance(draft._model.ops, Gpu) is on_gpu
    if on_gpu:
        draft._model.ops._graphs.enabled = True
        draft._warm_up()
        assert draft._model.ops._graphs._held
    with Engine(tiny, sequences=1, cache_tokens=64, speculator=speculator) as engine:
        found = engine.generate([[1, 2, 3]], **options)[0].ids
        assert engine.speculation.accepted > 0
    assert found == want
    assert draft._model.cache is None
    assert not (on_gpu and draft._model.ops._graphs._held)
