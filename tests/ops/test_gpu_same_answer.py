"""A request's logits are the same to the last bit whatever else happens, on the gpu reading where it is made
invariant (interpreted where there is no GPU): the cpu's tests are in ``test_same_answer.py``."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import gpu as shared  # isort: skip  (it skips the module where there is no Triton)

from ridgeline.kernels.triton import linear_launch
from ridgeline.models.model import Model
from ridgeline.ops.batch import Span
from ridgeline.ops.gpu import Gpu, to_gpu
from ridgeline.ops.gpu_batch import GpuCache
from ridgeline.ops.gpu_graph import DecodeStep, is_recordable
from ridgeline.ops.reference import Reference
from tests.ops.packed_models import packed_model, some_ids

device, sums_by_row = shared.device, shared.sums_by_row
patched_once_a_launch = shared.patched_once_a_launch
pytestmark = pytest.mark.usefixtures("sums_by_row")
full = pytest.mark.slow
#: Family, weights, and the format of activations and cache. More keys than a split, and more rows than those
#: from which FP8 weights would meet activations in FP8.
SETTINGS = [
    ("llama-3-8b", "fp32", "fp32"),
    *(
        pytest.param(setting, marks=full)
        for setting in (
            ("llama-3-8b", "fp8", "fp32"),
            ("llama-3-8b", "bf16", "bf16"),
            ("gemma-2-2b", "int4-g32", "fp32"),
            ("mistral-7b", "int8", "bf16"),
            ("pythia-1.4b", "fp8-128x128", "fp32"),
            ("gpt2", "int4-g128-zp", "fp32"),
            ("mixtral-8x7b", "fp32", "fp32"),
            ("deepseek-v2-lite", "fp32", "fp32"),
        )
    ),
]
LENGTH, TOKENS = 68, 16
BLOCKS = -(-LENGTH // TOKENS)
TABLE = tuple(range(BLOCKS))


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@dataclass(frozen=True)
class Setting:
    """A model, its reading, a prompt, the logits of all its rows computed at once, and the cache that this
    has filled: the prompt's blocks are the first."""

    name: tuple[str, str, str]
    model: Model
    ops: Gpu
    ids: list[int]
    whole: torch.Tensor
    cache: GpuCache


@pytest.fixture(scope="module", params=SETTINGS, ids="-".join)
def setting(request, device, sums_by_row):
    family, weights, plain = request.param
    model = to_gpu(packed_model(family, weights, plain=plain), device)
    ops = Gpu(torch.bfloat16 if plain == "bf16" else torch.float32, device, invariant=True)
    ids = some_ids(LENGTH).tolist()
    cache = empty_cache(model, ops, 8 * BLOCKS)
    with torch.no_grad():
        whole = ops.run(model, ids, [Span(LENGTH, table=TABLE)], logits="all", cache=cache)
    return Setting(request.param, model, ops, ids, whole, cache)


def empty_cache(model, ops, blocks):
    cache = ops.alloc_cache(model.cache_spec(model.plain_format, block_size=TOKENS), blocks)
    cache.randomise()  # what no token has written must not matter
    return cache


def test_they_are_the_references(setting):
    family, weights, plain = setting.name
    model = packed_model(family, weights, plain=plain)
    want = Reference().run(model, setting.ids, [Span(LENGTH)], logits="all")
    error = (setting.whole.cpu().double() - want.double()).norm() / want.double().norm()
    assert error < (1e-5 if plain == "fp32" else 0.05)


@pytest.mark.parametrize(
    "chunks", [[40, 19, 1, 8], pytest.param([1] * LENGTH, marks=full), pytest.param([66, 2], marks=full)]
)
def test_in_chunks_over_scattered_blocks(setting, chunks):
    """Of few rows, whose products are summed in parallel, and of many."""
    cache, logits, past = empty_cache(setting.model, setting.ops, 2 * BLOCKS), [], 0
    for rows in chunks:
        part, span = setting.ids[past : past + rows], Span(rows, past, table=(7, 1, 8, 0, 4))
        logits.append(setting.ops.run(setting.model, part, [span], logits="all", cache=cache))
        past += rows
    assert torch.equal(torch.cat(logits), setting.whole)


@settings(max_examples=2)
@given(data=st.data())
def test_beside_other_sequences(setting, data):
    """The request's last rows among other sequences, at places of their own."""
    rows = data.draw(st.integers(1, 4))
    others = data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 60)), min_size=1, max_size=4))
    place = data.draw(st.integers(0, len(others)))
    sizes = [
        (n, past, tuple(range((i + 1) * BLOCKS, (i + 2) * BLOCKS))) for i, (n, past) in enumerate(others)
    ]
    sizes.insert(place, (rows, LENGTH - rows, TABLE))
    spans = [Span(n, past, table=table) for n, past, table in sizes]
    starts = [sum(n for n, *_ in sizes[:i]) for i in range(len(sizes) + 1)]
    batch = some_ids(starts[-1], seed=1).tolist()
    batch[starts[place] : starts[place + 1]] = setting.ids[LENGTH - rows :]
    logits = setting.ops.run(setting.model, batch, spans, logits="all", cache=setting.cache)
    assert torch.equal(logits[starts[place] : starts[place + 1]], setting.whole[LENGTH - rows :])


def test_the_logits_that_are_wanted_alone(setting):
    span = Span(6, LENGTH - 6, table=TABLE)
    given = {"logits": [2, 5], "cache": setting.cache}
    logits = setting.ops.run(setting.model, setting.ids[-6:], [span], **given)
    assert torch.equal(logits, setting.whole[[-4, -1]])


@pytest.mark.parametrize("size", [1, 4, pytest.param(32, marks=full)])
def test_in_every_bucket_of_graphs(setting, size):
    """What a graph replays, with rows of padding."""
    if not is_recordable(setting.model) or setting.name[0].startswith("deepseek"):
        pytest.skip("runs operator by operator")
    step = DecodeStep(setting.ops, setting.model, setting.cache, size, BLOCKS)
    logits = step.run(setting.ids[-1:], [Span(1, LENGTH - 1, table=TABLE)])
    assert torch.equal(logits, setting.whole[-1:])


def test_without_a_cache(setting):
    one = setting.ops.run(setting.model, setting.ids[:9], [Span(9)], logits="all")
    both = [*some_ids(12, seed=2).tolist(), *setting.ids[:9]]
    assert torch.equal(setting.ops.run(setting.model, both, [Span(12), Span(9)], logits="all")[12:], one)


def test_the_tests_meet_both_ways_of_summing(setting, monkeypatch):
    """Splits in parallel for few rows, one after another for many: what is equal above was not one call."""
    plans = set()

    def noted(call):
        plan = linear_launch.invariant(call)
        plans.add(plan.parallel)
        return plan

    monkeypatch.setattr(sys.modules["ridgeline.kernels.triton.linear"], "invariant", noted)
    for rows in (1, 33):
        span = Span(rows, LENGTH - rows, table=TABLE)
        setting.ops.run(setting.model, setting.ids[-rows:], [span], cache=setting.cache)
    assert plans == {False, True}
