"""What fits: against arithmetic by hand and against the document's figures."""

from __future__ import annotations

import pytest

from ridgeline.analysis.capacity import capacity
from ridgeline.analysis.setting import settle
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


def test_an_encoders_activations_are_what_grows():
    """The largest batch fits, and one more does not; nothing is kept."""
    found = capacity("bert-base", "rtx-4060", weights=[None], caches=[None, "int8"], context=512, batch=4)
    (held,) = found.holdings
    setting = settle("bert-base", "rtx-4060")
    free = 8e9 - held.weight_bytes
    assert setting.activation_bytes(512, held.largest_batch) <= free
    assert setting.activation_bytes(512, held.largest_batch + 1) > free
    assert held.tokens == 512 * held.largest_batch
    assert (held.cache, held.cache_bytes_per_token, held.longest_context) == ("", 0, 512)


def test_an_encoder_decoder_reads_its_longest_prompt_whole():
    found = capacity("t5-large", "rtx-4060", weights=[None], caches=[None], context=1024)
    (held,) = found.holdings
    assert held.cache_bytes_per_token == 24 * 16 * 64 * 2 * 4
    assert held.largest_batch == held.tokens // 1024
    setting = settle("t5-large", "rtx-4060")

    def left(n):
        return 8e9 - held.weight_bytes - setting.activation_bytes(n) - n * held.cache_bytes_per_token

    longest = held.longest_context
    assert left(longest) >= 0 > left(longest + 1)
    assert longest < held.tokens  # as many tokens of several, shorter sequences would fit


def test_growth_is_what_is_held_at_each_length():
    found = capacity("llama-3-8b", "a100", weights=[None], caches=[None], batch=2)
    (held,) = found.holdings
    assert found.lengths[-1] == 8192
    assert (
        held.growth[-1] == held.weight_bytes + held.activation_bytes + 2 * 8192 * held.cache_bytes_per_token
    )
