"""Shared by the tests of weights."""

import pytest
import torch

from tests.weights.checkpoints import rewrite


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """A tied Llama of 26 million parameters in bf16, with a copy of the embedding as its head."""
    import transformers

    folder = tmp_path_factory.mktemp("large")
    config = transformers.LlamaConfig(
        vocab_size=16_000,
        hidden_size=512,
        intermediate_size=1_536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    tensors = {name: torch.rand(p.shape).bfloat16() for name, p in model.named_parameters()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    rewrite(folder, tensors)
    return folder
