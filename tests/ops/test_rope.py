"""Rotary frequencies and the rotation they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import logging

from ridgeline.models.fields import Fields
from ridgeline.models.rotary import read_rope
from ridgeline.ops.batch import Span
from ridgeline.ops.records import Rope, RopeScaling
from ridgeline.ops.rope import inverse_frequencies
from ridgeline.ops.torch_batch import TorchSpans, rotate

logging.set_verbosity_error()  # on made-up factors it warns that they don't fit the window

FACTORS = st.floats(1, 64)
LENGTHS = st.integers(1, 1 << 17)
SCALINGS = st.one_of(
    st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": FACTORS}),
    st.fixed_dictionaries({"rope_type": st.just("dynamic"), "factor": FACTORS}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": FACTORS,
            "low_freq_factor": st.floats(0.5, 2),
            "high_freq_factor": st.floats(2.5, 8),
            "original_max_position_embeddings": LENGTHS,
        }
    ),
    st.fixed_dictionaries(
        {"rope_type": st.just("yarn"), "factor": FACTORS, "original_max_position_embeddings": LENGTHS},
        optional={
            "attention_factor": st.floats(0.1, 2),
            "beta_fast": st.floats(8, 64),
            "beta_slow": st.floats(0.1, 4),
            "truncate": st.booleans(),
        },
    ),
)


@given(
    scaling=SCALINGS,
    theta=st.floats(1e3, 1e7),
    dim=st.integers(2, 80).map(lambda half: 2 * half),
    window=LENGTHS,
    admitted=LENGTHS,
)
def test_scaled_frequencies_are_those_of_transformers(scaling, theta, dim, window, admitted):
    """To float32's precision, in which transformers computes them."""
    fields = {"max_position_embeddings": window, "rope_parameters": {**scaling, "rope_theta": theta}}
    rope = read_rope(Fields(fields, "x"), dim, window)
    config = LlamaConfig(hidden_size=dim, num_attention_heads=1, **fields)
    expected, expected_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, seq_len=admitted)
    frequencies, factor = inverse_frequencies(rope, admitted)
    torch.testing.assert_close(frequencies, expected, rtol=2e-6, atol=0)
    assert factor == pytest.approx(expected_factor)


def test_plain_frequencies_are_those_of_transformers():
    config = LlamaConfig(hidden_size=64, num_attention_heads=1, rope_theta=5e5)
    expected = LlamaRotaryEmbedding(config).inv_freq
    frequencies, factor = inverse_frequencies(Rope(64, 5e5))
    assert torch.equal(frequencies, expected)
    assert factor == 1


def test_linear_scaling_moves_every_frequency():
    plain, _ = inverse_frequencies(Rope(8, 1e4))
    scaled, _ = inverse_frequencies(Rope(8, 1e4, RopeScaling("linear", 4.0, 512)))
    torch.testing.assert_close(scaled, plain / 4)


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_fast_frequencies_stay_and_slow_ones_are_divided(kind):
    plain, _ = inverse_frequencies(Rope(128, 1e4))
    scaled, _ = inverse_frequencies(Rope(128, 1e4, RopeScaling(kind, 8.0, 1024)))
    assert scaled[0] == plain[0]
    assert scaled[-1].item() == pytest.approx(plain[-1].item() / 8)
    assert ((plain / 8.001 <= scaled) & (scaled <= plain)).all()


@given(admitted=st.integers(0, 512))
def test_dynamic_scaling_leaves_a_request_within_the_window_alone(admitted):
    scaled, _ = inverse_frequencies(Rope(16, 1e4, RopeScaling("dynamic", 4.0, 512)), admitted)
    assert torch.equal(scaled, inverse_frequencies(Rope(16, 1e4))[0])


def test_each_span_of_a_batch_rotates_by_its_own_admitted_length():
    rope = Rope(16, 1e4, RopeScaling("dynamic", 4.0, 32))
    spans = [Span(3, past=30, admitted=33), Span(2, admitted=100), Span(1, past=5, admitted=6)]
    cos, sin = TorchSpans(tuple(spans), torch.device("cpu")).rotation(rope, torch.float32)
    each = [TorchSpans((span,), torch.device("cpu")).rotation(rope, torch.float32) for span in spans]
    assert torch.equal(cos, torch.cat([c for c, _ in each]))
    assert torch.equal(sin, torch.cat([s for _, s in each]))


@given(start=st.integers(0, 100_000), distance=st.integers(0, 1_000), seed=st.integers(0, 99))
def test_a_rotated_product_depends_on_the_distance_alone(start, distance, seed):
    """In float64, so that the angle of a far position is exact enough: the ends of float32's
    precision are held by the comparison with transformers."""
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def score(position):
        query = TorchSpans((Span(1, past=position + distance),), torch.device("cpu"))
        key = TorchSpans((Span(1, past=position),), torch.device("cpu"))
        rope = Rope(16, 1e4)
        rotated = rotate(q, *query.rotation(rope, q.dtype)), rotate(k, *key.rotation(rope, q.dtype))
        return (rotated[0] * rotated[1]).sum().item()

    assert score(start) == pytest.approx(score(0), abs=1e-8)


def test_rotation_turns_the_two_halves_together_and_keeps_lengths():
    x = torch.randn(5, 3, 8)
    cos, sin = TorchSpans((Span(5),), torch.device("cpu")).rotation(Rope(8, 100.0), torch.float32)
    turned = rotate(x, cos, sin)
    pairs, turned_pairs = x.view(5, 3, 2, 4), turned.view(5, 3, 2, 4)
    torch.testing.assert_close(turned_pairs.norm(dim=2), pairs.norm(dim=2))
    assert torch.equal(turned[0], x[0])  # position 0
