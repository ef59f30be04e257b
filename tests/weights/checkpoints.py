"""Small checkpoints of every family."""

from safetensors.torch import save_file

VOCAB = {"vocab_size": 101, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SHAPE = {**VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {
    "llama": ("LlamaForCausalLM", {**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}),
    "llama tied": ("LlamaForCausalLM", {**SHAPE, "intermediate_size": 48, "tie_word_embeddings": True}),
    "qwen3": (
        "Qwen3ForCausalLM",
        {**SHAPE, "intermediate_size": 48, "head_dim": 16, "num_key_value_heads": 2},
    ),
    "gpt2": ("GPT2LMHeadModel", {**VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt": ("OPTForCausalLM", {**SHAPE, "ffn_dim": 48, "max_position_embeddings": 64}),
    "bert": ("BertForMaskedLM", {**SHAPE, "intermediate_size": 48}),
    "bert's trunk": ("BertModel", {**SHAPE, "intermediate_size": 48}),
}


def rewrite(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
