"""Guarantee 1 on the native kernels: a request's logits have the same bits in any company."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.generate import Generator, collect, run
from ridgeline.engine.prompts import Requests
from ridgeline.engine.sampling import GREEDY, Sampling
from ridgeline.models import load_config
from ridgeline.ops.batch import BLOCK_TOKENS
from ridgeline.ops.cpu import Cpu
from ridgeline.weights.pack import load_packed

VOCAB, WINDOW = 300, 256


@pytest.fixture(scope="module", params=["bf16", "fp32", "int8", "int4-g32"])
def model(request, make_twin):
    twin = make_twin(
        "LlamaForCausalLM",
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        bos_token_id=1,
        eos_token_id=0,
    )
    return load_packed(load_config(twin.folder), twin.folder, request.param)


class Recorder:
    """Runs steps, and keeps the bytes of every row of logits under the tokens that led to it."""

    def __init__(self, core):
        self.run_step = core.runner.run
        self.rows = {}
        core.runner.run = self.run

    def run(self, plan):
        logits = self.run_step(plan)
        wanted = [chunk for chunk in plan.chunks if chunk.logits]
        for chunk, row in zip(wanted, logits, strict=True):
            tokens = tuple(chunk.sequence.tokens[: chunk.past + chunk.rows])
            bits = row.numpy().tobytes()
            assert self.rows.setdefault(tokens, bits) == bits
        return logits


def served(model, requests, **options):
    """The results of the requests together, the bits of their logits, and the scheduler."""
    core = Generator(model, Cpu(), Requests(model.config), **options).start(requests)
    recorder = Recorder(core)
    return collect(run(core)), recorder.rows, core.scheduler


def some_prompt(length, seed):
    """Prompts of one seed begin alike."""
    return [(31 * i * i + 7 * i + 11 * seed) % (VOCAB - 2) + 2 for i in range(length)]


wishes = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.builds(some_prompt, st.integers(1, 150), st.integers(0, 1)),
            "max_tokens": st.integers(1, 50),
            "n": st.sampled_from([1, 1, 3]),
            "sampling": st.builds(
                replace,
                st.sampled_from([GREEDY, Sampling(), Sampling(0.7, top_k=9)]),
                seed=st.integers(0, 4),
            ),
        }
    ),
    min_size=2,
    max_size=5,
)


@settings(max_examples=12)
@given(wishes, st.integers(3, 200), st.integers(0, 5), st.integers(2, 8), st.booleans())
def test_logits_and_tokens_have_the_same_bits_alone_and_together(
    model, wished, budget, spare, sequences, prefix_cache
):
    requests = [Requests(model.config).make(**wish) for wish in wished]
    longest = max(request.blocks_at_most(BLOCK_TOKENS) for request in requests) + spare
    options = {"token_budget": budget, "sequences": sequences, "prefix_cache": prefix_cache}
    together, rows, _ = served(model, requests, cache_tokens=longest * BLOCK_TOKENS, **options)
    alone, expected = [], {}
    for request in requests:
        results, bits, _ = served(model, [request], prefix_cache=False)
        alone += results
        expected |= bits
    assert [result.ids for result in together] == [result.ids for result in alone]
    assert rows == expected


def test_a_preempted_and_a_cached_request_have_the_bits_of_an_undisturbed_one(model):
    """The case that the test above draws only now and then."""
    make = Requests(model.config).make
    requests = [make(some_prompt(40, seed), max_tokens=60) for seed in (0, 0, 1, 1)]
    free, expected, _ = served(model, requests, prefix_cache=False)
    tight, rows, scheduler = served(model, requests, cache_tokens=11 * BLOCK_TOKENS, token_budget=40)
    assert scheduler.preemptions > 0
    assert any(result.cached_tokens for result in tight)
    assert [result.ids for result in tight] == [result.ids for result in free]
    assert rows == expected
