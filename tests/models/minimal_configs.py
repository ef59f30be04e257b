"""The least that a config of each family must say, and how a refusal is looked at."""

import pytest

from ridgeline.errors import InputError
from ridgeline.models import read_config

SHAPE = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
}
#: The least that a config of each family must say.
MINIMAL = {
    "llama": {"model_type": "llama", **SHAPE},
    "mistral": {"model_type": "mistral", **SHAPE},
    "qwen2": {"model_type": "qwen2", **SHAPE, "num_attention_heads": 32},
    "qwen3": {"model_type": "qwen3", **SHAPE, "num_attention_heads": 32},
    "phi3": {"model_type": "phi3", **SHAPE},
    "gemma": {"model_type": "gemma", **SHAPE, "num_attention_heads": 16},
    "gemma2": {"model_type": "gemma2", **SHAPE},
    "gemma3_text": {"model_type": "gemma3_text", **SHAPE},
    "gpt_neox": {"model_type": "gpt_neox", **SHAPE},
    "falcon": {
        "model_type": "falcon",
        **{k: v for k, v in SHAPE.items() if k != "intermediate_size"},
    },
    "mixtral": {"model_type": "mixtral", **SHAPE},
    "qwen2_moe": {"model_type": "qwen2_moe", **SHAPE, "num_attention_heads": 16},
    "qwen3_moe": {"model_type": "qwen3_moe", **SHAPE},
    "deepseek_v2": {"model_type": "deepseek_v2", **SHAPE, "num_experts_per_tok": 6},
    "deepseek_v3": {"model_type": "deepseek_v3", **SHAPE, "num_attention_heads": 128},
    "gpt2": {"model_type": "gpt2", "vocab_size": 101, "n_embd": 64, "n_layer": 3, "n_head": 8},
    "opt": {
        "model_type": "opt",
        "vocab_size": 101,
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
    },
    "bert": {"model_type": "bert", **SHAPE},
}
LLAMA = MINIMAL["llama"]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": YARN,
}


def refusal(raw) -> str:
    """The message with which the config is refused: one line that begins with the config's name."""
    with pytest.raises(InputError) as caught:
        read_config(raw, "some/config.json")
    message = str(caught.value)
    assert message.startswith("some/config.json: ")
    assert "\n" not in message
    return message
