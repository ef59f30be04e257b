"""The profile reading holds the same operators as the trace, with times."""

import pytest
import torch

from ridgeline.analysis.step import trace_step
from ridgeline.models import read_config
from ridgeline.ops.batch import Span
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.profile import Profile
from ridgeline.weights.pack import random_packed

SMALL = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 61,
        "tie_word_embeddings": True,
    },
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 61,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 2,
    },
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 61,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 61},
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 61,
        "word_embed_proj_dim": 32,
    },
    "bert": {
        "model_type": "bert",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 61,
    },
}


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("logits", ["last", "all"])
def test_profile_and_trace_hold_the_same_operators_in_the_same_order(family, logits):
    model = random_packed(read_config(SMALL[family], family), "fp32")
    ops = Cpu()
    cache = ops.alloc_cache(model.cache_spec("fp32"), 2) if model.config.is_decoder else None
    profile = Profile(ops)
    with torch.inference_mode():
        batch = ops.batch(list(range(20)), [Span(20, table=(0, 1))], logits=logits, cache=cache)
        profiled = model.forward(profile, batch)
        plain = model.forward(ops, batch)
    trace = trace_step(model, [Span(20)], logits=logits)
    records = profile.take()
    assert [(r.name, len(r.seconds)) for r in records] == [(op.name, op.repeat) for op in trace.ops]
    assert all(s > 0 for r in records for s in r.seconds)
    assert torch.equal(profiled, plain)
    assert profile.take() == []


def test_layers_that_differ_are_recorded_apart():
    model = random_packed(read_config(SMALL["qwen2"], "qwen2"), "fp32")
    ops = Cpu()
    profile = Profile(ops)
    with torch.inference_mode():
        cache = ops.alloc_cache(model.cache_spec("fp32"), 1)
        model.forward(profile, ops.batch([1, 2, 3], [Span(3, table=(0,))], cache=cache))
    assert [len(r.seconds) for r in profile.take() if r.name == "attention"] == [2, 2]
