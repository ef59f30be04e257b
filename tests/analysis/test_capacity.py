"""What fits: against arithmetic by hand and against the document's figures."""

from __future__ import annotations

import pytest

from ridgeline.analysis.capacity import capacity
from ridgeline.errors import InputError


def test_tokens_are_what_is_left_beside_weights_and_activations():
    found = capacity("llama-2-7b", "a100-80gb", weights=[None], caches=[None], context=4096)
    (held,) = found.holdings
    assert held.weight_bytes == 6_738_415_616 * 2
    assert held.cache_bytes_per_token == 2 * 32 * 32 * 128 * 2
    left = 80e9 - held.weight_bytes - held.activation_bytes
    assert held.tokens == int(left / held.cache_bytes_per_token)
    assert held.largest_batch == held.tokens // 4096
    assert held.longest_context == 4096


def test_the_documents_52b_model_on_one_device_with_what_four_hold():
    # 2 MiB a token in fp16; 64 layers, 8192 wide
    (held,) = capacity("documents-52b", "mi300x", weights=[None], caches=[None]).holdings
    assert held.cache_bytes_per_token == 2 * 64 * 8192 * 2


def test_formats_of_fewer_bits_leave_more_room():
    found = capacity("llama-3-8b", "rtx-4090", weights=[None, "int8", "int4-g128"], caches=[None, "int8"])
    tokens = {(h.weights, h.cache): h.tokens for h in found.holdings}
    assert tokens["bf16", "bf16"] < tokens["int8", "bf16"] < tokens["int4-g128", "bf16"]
    for weights in ("bf16", "int8", "int4-g128"):
        # one scale of 16 bits for each head's 128 elements
        assert tokens[weights, "int8"] / tokens[weights, "bf16"] == pytest.approx(256 / 130, rel=1e-3)


def test_the_longest_context_divides_the_cache_among_the_batch():
    (held,) = capacity("llama-3.1-8b", "rtx-4090", weights=[None], caches=[None], batch=3).holdings
    assert held.longest_context == held.tokens // 3 < 131_072


def test_a_model_that_does_not_fit_holds_nothing():
    (held,) = capacity("llama-3-70b", "rtx-4060", weights=[None], caches=[None]).holdings
    assert (held.tokens, held.largest_batch, held.longest_context, held.free_bytes) == (0, 0, 0, 0)


def test_the_same_formats_are_listed_once():
    assert len(capacity("llama-3-8b", "a100", weights=[None, "bf16"], caches=[None]).holdings) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 9000}, "takes 8192 tokens at most, so no context of 9000"),
        ({"context": 0}, "context must be 1 to .*, not 0"),
        ({"batch": 0}, "batch must be 1 to"),
        ({"step_tokens": 0}, "step_tokens must be 1 to"),
        ({"share": 1.5}, "share must be above 0 and at most 1"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(InputError, match=message):
        capacity("llama-3-8b", "a100", **options)


def test_an_encoder_is_refused():
    with pytest.raises(InputError, match="bert-base is an encoder: it keeps no cache"):
        capacity("bert-base", "a100")
