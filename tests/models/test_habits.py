"""What other analysers get wrong about a config: the size of a head, gates, fields that they stumble on."""

import pytest

from ridgeline.models import declare, load_config, read_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count

#: Configs as their authors publish them, with every field, and the parameters of the checkpoint.
PUBLISHED = {
    "Llama-3.1-8B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.42.3",
            "use_cache": True,
            "vocab_size": 128256,
        },
        8_030_261_248,
    ),
    "Qwen2.5-7B": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
            "hidden_act": "silu",
            "hidden_size": 3584,
            "initializer_range": 0.02,
            "intermediate_size": 18944,
            "max_position_embeddings": 131072,
            "max_window_layers": 28,
            "model_type": "qwen2",
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.40.1",
            "use_cache": True,
            "use_mrope": False,
            "use_sliding_window": False,
            "vocab_size": 152064,
        },
        7_615_616_512,
    ),
    "Qwen3-4B": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 2560,
            "initializer_range": 0.02,
            "intermediate_size": 9728,
            "max_position_embeddings": 40960,
            "max_window_layers": 36,
            "model_type": "qwen3",
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.51.0",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        4_022_468_096,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_ordinary_published_config_is_read_whole(name):
    raw, parameters = PUBLISHED[name]
    assert declare(read_config(raw, name)).parameter_count() == parameters


# -- the size of a head -----------------------------------------------------------------------------

#: Models whose heads are not width / heads: their size, and what the quotient would be.
EXPLICIT = {
    "gemma-3-27b": (128, 168),
    "gemma-2-9b": (256, 224),
    "qwen3-0.6b": (128, 64),
    "t5-11b": (128, 8),
    "t5-3b": (128, 32),
}


@pytest.mark.parametrize("name", EXPLICIT)
def test_heads_are_as_large_as_the_config_says_and_not_width_over_heads(name):
    model = declare(load_config(name))
    c = model.config
    size, quotient = EXPLICIT[name]
    assert (c.head_dim, c.width // c.heads) == (size, quotient)
    assert model.cache_spec("bf16").elements_per_token == 2 * c.layers * c.kv_heads * size
    ops = Count()
    trace = ops.trace(model.whole(ops, ops.batch([Span(5)], logits="all")))
    flops = {op.name: op.flops.matrix for op in trace.ops}
    assert flops["attention.out"] == 2 * 5 * c.width * c.heads * size
    assert flops["attention.qkv"] == 2 * 5 * c.width * (c.heads + 2 * c.kv_heads) * size


# -- gated MLPs -------------------------------------------------------------------------------------

#: Whether the MLP has a gate, whatever its width: 2.5 and 64 times the model's in T5, 4 and 8 in the others.
GATED = {
    "flan-t5-xxl": True,
    "t5-11b": False,
    "gemma-2-27b": True,
    "phi-4": True,
    "gpt2": False,
    "opt-1.3b": False,
}


@pytest.mark.parametrize("name", GATED)
def test_a_gate_follows_from_the_architecture_and_not_from_a_ratio_of_widths(name):
    model = declare(load_config(name))
    c = model.config
    ops = Count()
    trace = ops.trace(model.whole(ops, ops.batch([Span(5)], logits="all")))
    mlp = {op.name: op.flops.matrix for op in trace.ops if op.name.startswith("mlp.")}
    matrices = 3 if GATED[name] else 2
    assert sum(mlp.values()) == matrices * 2 * 5 * c.width * c.intermediate
