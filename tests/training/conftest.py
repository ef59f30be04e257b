import json
from pathlib import Path

import pytest
import torch

from ridgeline.models.model import ModelConfig
from ridgeline.models.registry import build, read_config
from training.parameters import Parameters

TINY = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def tiny() -> ModelConfig:
    """A Llama that trains in milliseconds: 64 tokens, width 32."""
    return read_config(TINY, "tiny")


@pytest.fixture
def tiny_folder(tiny, tmp_path) -> Path:
    """A model folder of noise, loud enough that the layers decide which token is likeliest."""
    parameters = Parameters(seed=5)
    build(tiny, parameters)
    for matrix in parameters.matrices:
        matrix.data.detach().mul_(20)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    parameters.save(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
