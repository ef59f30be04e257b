"""A request's logits are the same to the last bit whatever else happens: guarantee 1 of the cpu reading."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline import kernels
from ridgeline.ops.batch import BLOCK_TOKENS, Span
from ridgeline.ops.cpu import Cpu
from tests.ops.packed_models import packed_model, some_ids

CPU = Cpu()
#: Formats of weights and cache.
FORMATS = [
    *(("fp32", "fp32"), ("bf16", "bf16"), ("int8", "bf16"), ("int8", "int8")),
    *(("int4-g32", "bf16"), ("int4-g128-zp", "int8")),
]
LENGTH = 150
BLOCKS = -(-LENGTH // BLOCK_TOKENS)


@pytest.fixture(scope="module", params=FORMATS, ids="-".join)
def setting(request):
    """A model, the spec of its cache, a prompt, and the logits of all its rows computed at once."""
    weights, cached = request.param
    model = packed_model("llama-3-8b", weights, plain="fp32" if weights == "fp32" else "bf16")
    spec = model.cache_spec(cached)
    ids = some_ids(LENGTH).tolist()
    return model, spec, ids, alone(model, spec, ids, [LENGTH])


def alone(model, spec, ids, chunks, table=tuple(range(BLOCKS))):
    """Logits of all rows of one request, computed in chunks of the given sizes."""
    cache = CPU.alloc_cache(spec, 2 * BLOCKS)
    cache.randomise()  # what no token has written must not matter
    logits, past = [], 0
    for rows in chunks:
        part = ids[past : past + rows]
        logits.append(CPU.run(model, part, [Span(rows, past, table=table)], logits="all", cache=cache))
        past += rows
    return torch.cat(logits)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_in_chunks(setting, size):
    model, spec, ids, whole = setting
    chunks = [min(size, LENGTH - past) for past in range(0, LENGTH, size)]
    assert torch.equal(alone(model, spec, ids, chunks), whole)


@settings(max_examples=5)
@given(table=st.permutations(range(2 * BLOCKS)), cut=st.integers(1, LENGTH - 1))
def test_in_scattered_blocks(setting, table, cut):
    model, spec, ids, whole = setting
    assert torch.equal(alone(model, spec, ids, [cut, LENGTH - cut], tuple(table[:BLOCKS])), whole)


@settings(max_examples=4)
@given(data=st.data())
def test_in_a_batch_of_32(setting, data):
    """The request's last rows among 31 other sequences at other places of their own."""
    model, spec, ids, whole = setting
    rows = data.draw(st.integers(1, 40))
    others = data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 60)), min_size=31, max_size=31))
    place = data.draw(st.integers(0, 31))
    sizes = [*others[:place], (rows, LENGTH - rows), *others[place:]]
    cache = CPU.alloc_cache(spec, 32 * BLOCKS)
    cache.randomise()
    tables = [tuple(range(i * BLOCKS, (i + 1) * BLOCKS)) for i in range(32)]
    first = [Span(LENGTH - rows, 0, table=tables[place])]
    CPU.run(model, ids[: LENGTH - rows], first, cache=cache)
    spans = [Span(n, past, table=table) for (n, past), table in zip(sizes, tables, strict=True)]
    starts = [sum(n for n, _ in sizes[:i]) for i in range(33)]
    batch = some_ids(starts[-1], seed=1).tolist()
    batch[starts[place] : starts[place + 1]] = ids[LENGTH - rows :]
    logits = CPU.run(model, batch, spans, logits="all", cache=cache)
    assert torch.equal(logits[starts[place] : starts[place + 1]], whole[LENGTH - rows :])


def test_with_one_thread_and_with_three(setting):
    model, spec, ids, whole = setting
    before = kernels.threads()
    try:
        for threads in (1, 2, 3):
            kernels.set_threads(threads)
            assert torch.equal(alone(model, spec, ids, [100, 1, 49]), whole)
    finally:
        kernels.set_threads(before)


@pytest.mark.parametrize("own", [False, True])
def test_in_several_threads_at_once(setting, own):
    """As two engines of one model compute, and a draft beside them in a pool of its own."""
    model, spec, ids, whole = setting
    chunks = [LENGTH - 60, *[20] * 3]

    def compute():
        if own:
            kernels.use_own_pool(1)
        return [alone(model, spec, ids, chunks) for _ in range(3)]

    with ThreadPoolExecutor(3) as threads:
        for computing in [threads.submit(compute) for _ in range(3)]:
            assert all(torch.equal(found, whole) for found in computing.result())


def test_on_another_requests_prefix(setting):
    """Blocks that another request filled, as a prefix cache hands them on."""
    model, spec, ids, whole = setting
    cache = CPU.alloc_cache(spec, 2 * BLOCKS)
    shared = 2 * BLOCK_TOKENS
    other = [*ids[:shared], *some_ids(30, seed=2).tolist()]
    CPU.run(model, other, [Span(len(other), 0, table=(0, 1, 2, 3))], cache=cache)
    table = (0, 1, *range(BLOCKS, 2 * BLOCKS - 2))
    rest = CPU.run(
        model, ids[shared:], [Span(LENGTH - shared, shared, table=table)], logits="all", cache=cache
    )
    assert torch.equal(rest, whole[shared:])


def test_a_copied_block_is_the_block(setting):
    model, spec, ids, whole = setting
    cache = CPU.alloc_cache(spec, 2 * BLOCKS)
    CPU.run(model, ids[:100], [Span(100, 0, table=(0, 1, 2, 3))], cache=cache)
    cache.copy_blocks([(3, 5)])
    span = Span(LENGTH - 100, 100, table=(0, 1, 2, 5, 6))
    assert torch.equal(CPU.run(model, ids[100:], [span], logits="all", cache=cache), whole[100:])


def test_the_logits_that_are_wanted_alone(setting):
    model, spec, ids, whole = setting
    cache = CPU.alloc_cache(spec, BLOCKS)
    span = Span(LENGTH, 0, table=tuple(range(BLOCKS)))
    wanted = [3, 70, LENGTH - 1]
    assert torch.equal(CPU.run(model, ids, [span], logits=wanted, cache=cache), whole[wanted])


def test_a_cache_of_another_block_size_is_refused(setting):
    spec = replace(setting[1], block_size=16)
    with pytest.raises(ValueError, match="block_size is 16"):
        CPU.alloc_cache(spec, 4)


def test_a_block_that_the_cache_lacks_is_refused(setting):
    model, spec, ids, _ = setting
    cache = CPU.alloc_cache(spec, 2)
    with pytest.raises(ValueError, match="block 2"):
        CPU.run(model, ids[:64], [Span(64, 0, table=(0, 2))], cache=cache)


@pytest.mark.parametrize("family", ["gemma-2-2b", "gemma-3-4b", "pythia-1.4b"])
def test_other_families_keep_their_bits_too(family):
    """In chunks, in scattered blocks, and beside another request; Pythia's pass is not recorded."""
    model = packed_model(family, "bf16", plain="bf16")
    spec, ids = model.cache_spec("bf16"), some_ids(LENGTH).tolist()
    whole = alone(model, spec, ids, [LENGTH])
    assert torch.equal(alone(model, spec, ids, [1, 63, 50, 36], (9, 2, 7, 0, 4)), whole)
    cache = CPU.alloc_cache(spec, 2 * BLOCKS)
    spans = [Span(40, table=(7, 8)), Span(LENGTH, table=tuple(range(BLOCKS)))]
    logits = CPU.run(model, [*some_ids(40, seed=1).tolist(), *ids], spans, logits="all", cache=cache)
    assert torch.equal(logits[40:], whole)
