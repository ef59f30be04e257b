"""Small configs of every family, by their class in transformers."""

VOCAB = {"vocab_size": 101, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA = {
    **VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT2 = {**VOCAB, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256}
OPT = {
    **VOCAB,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
BERT = {
    **VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "type_vocab_size": 3,
}
#: Heads of 16, so that YaRN's ramp passes over several frequencies.
STRETCHED = {**LLAMA, "head_dim": 16}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
MSCALE = {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

LLAMAS = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama with every head its own keys": ("LlamaForCausalLM", {**LLAMA, "num_key_value_heads": 6}),
    "llama with one key head": ("LlamaForCausalLM", {**LLAMA, "num_key_value_heads": 1}),
    "llama with biases": ("LlamaForCausalLM", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama with gelu": ("LlamaForCausalLM", {**LLAMA, "hidden_act": "gelu"}),
    "llama with tanh gelu": ("LlamaForCausalLM", {**LLAMA, "hidden_act": "gelu_pytorch_tanh"}),
    "tinyllama": (
        "LlamaForCausalLM",
        {
            **LLAMA,
            "hidden_size": 64,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-5,
        },
    ),
    "smollm": (
        "LlamaForCausalLM",
        {
            **LLAMA,
            "hidden_size": 72,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
            "tie_word_embeddings": True,
        },
    ),
    "linear rope": (
        "LlamaForCausalLM",
        {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
    ),
    "llama3 rope": ("LlamaForCausalLM", {**STRETCHED, "rope_parameters": LLAMA3}),
    "yarn": ("LlamaForCausalLM", {**STRETCHED, "rope_parameters": YARN}),
    "yarn with its own factors": (
        "LlamaForCausalLM",
        {
            **STRETCHED,
            "rope_parameters": {**YARN, "attention_factor": 0.8, "beta_fast": 16.0, "beta_slow": 2.0},
        },
    ),
    "yarn with the factors of DeepSeek's": ("LlamaForCausalLM", {**STRETCHED, "rope_parameters": MSCALE}),
    "yarn with one of them, which changes nothing": (
        "LlamaForCausalLM",
        {**STRETCHED, "rope_parameters": {**YARN, "mscale": 0.7}},
    ),
    "yarn untruncated": ("LlamaForCausalLM", {**STRETCHED, "rope_parameters": {**YARN, "truncate": False}}),
    "mistral": ("MistralForCausalLM", {**LLAMA, "head_dim": 16, "sliding_window": 7}),
    "mistral without a window": ("MistralForCausalLM", {**LLAMA, "sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen2 tied": ("Qwen2ForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "qwen2 with windows": (
        "Qwen2ForCausalLM",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen2 with windows by layer": (
        "Qwen2ForCausalLM",
        {
            **LLAMA,
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("Qwen3ForCausalLM", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 with biases and windows": (
        "Qwen3ForCausalLM",
        {
            **STRETCHED,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
        },
    ),
}
PHI3 = {**LLAMA, "head_dim": 16, "original_max_position_embeddings": 256}
LLAMAS |= {
    "phi3": ("Phi3ForCausalLM", {**PHI3, "sliding_window": 9}),
    "phi3 rotating half of a head": (
        "Phi3ForCausalLM",
        {**LLAMA, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
}
#: Heads of 16 although width / heads is 8, and more layers than a period of windows.
GEMMA = {**LLAMA, "num_hidden_layers": 5, "head_dim": 16, "rms_norm_eps": 1e-5}
GEMMAS = {
    "gemma": ("GemmaForCausalLM", GEMMA),
    "gemma untied": ("GemmaForCausalLM", {**GEMMA, "tie_word_embeddings": False, "attention_bias": True}),
    # Caps that bend what they are given, unlike 50 and 30 at these sizes.
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            **GEMMA,
            "sliding_window": 7,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma2 without caps": (
        "Gemma2ForCausalLM",
        {**GEMMA, "sliding_window": 9, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            **GEMMA,
            "sliding_window": 6,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gemma3 with layers in any order": (
        "Gemma3ForCausalLM",
        {
            **GEMMA,
            "sliding_window": 8,
            "final_logit_softcapping": 4.0,
            "layer_types": [
                *("full_attention", "sliding_attention", "full_attention"),
                *("full_attention", "sliding_attention"),
            ],
        },
    ),
}
NEOX = {
    **VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
FALCON = {**{k: v for k, v in NEOX.items() if k != "intermediate_size"}, "num_attention_heads": 6}
SIDE_BY_SIDE = {
    "gpt_neox": ("GPTNeoXForCausalLM", {**NEOX, "rotary_pct": 0.5}),
    "gpt_neox one after the other": (
        "GPTNeoXForCausalLM",
        {**NEOX, "use_parallel_residual": False, "rotary_pct": 1.0, "hidden_act": "gelu_fast"},
    ),
    "gpt_neox tied": (
        "GPTNeoXForCausalLM",
        {**NEOX, "attention_bias": False, "tie_word_embeddings": True, "rotary_pct": 0.34},
    ),
    "falcon with one key head": ("FalconForCausalLM", FALCON),
    "falcon with groups": (
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False},
    ),
    "falcon with groups and one norm": (
        "FalconForCausalLM",
        {
            **FALCON,
            "new_decoder_architecture": True,
            "num_kv_heads": 3,
            "num_ln_in_parallel_attn": 1,
            "bias": True,
        },
    ),
    "falcon one after the other": (
        "FalconForCausalLM",
        {**FALCON, "multi_query": False, "parallel_attn": False, "bias": True, "ffn_hidden_size": 100},
    ),
}
MIXTURES = {
    "mixtral": ("MixtralForCausalLM", {**LLAMA, "num_local_experts": 6, "num_experts_per_tok": 2}),
    "mixtral with a window": (
        "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 9},
    ),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        {
            **LLAMA,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "decoder_sparse_step": 2,
        },
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        {
            **STRETCHED,
            "num_experts": 10,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    "qwen3-moe with ordinary layers and weights that do not add up to 1": (
        "Qwen3MoeForCausalLM",
        {
            **STRETCHED,
            "num_hidden_layers": 5,
            "num_experts": 7,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 7,
        },
    ),
}
DEEPSEEK = {
    **LLAMA,
    "num_key_value_heads": 6,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 32,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}
DEEPSEEKS = {
    "deepseek-v3": ("DeepseekV3ForCausalLM", {**DEEPSEEK, "rope_parameters": MSCALE}),
    "deepseek-v3 without a latent of queries": (
        "DeepseekV3ForCausalLM",
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "attention_bias": True,
            "rope_interleave": False,
            "norm_topk_prob": False,
            "n_group": 1,
            "topk_group": 1,
            "rms_norm_eps": 1e-3,
        },
    ),
    "deepseek-v2": ("DeepseekV2ForCausalLM", {**DEEPSEEK, "q_lora_rank": None, "rope_parameters": MSCALE}),
    "deepseek-v2 with groups": (
        "DeepseekV2ForCausalLM",
        {**DEEPSEEK, "topk_method": "group_limited_greedy", "routed_scaling_factor": 3.0},
    ),
}
LEARNED_POSITIONS = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2 untied": (
        "GPT2LMHeadModel",
        {**GPT2, "n_inner": 72, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
    "opt": ("OPTForCausalLM", OPT),
    "opt untied": (
        "OPTForCausalLM",
        {**OPT, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
}
DECODERS = {**LLAMAS, **GEMMAS, **SIDE_BY_SIDE, **MIXTURES, **DEEPSEEKS, **LEARNED_POSITIONS}
ENCODERS = {
    "bert": ("BertForMaskedLM", BERT),
    "bert untied": ("BertForMaskedLM", {**BERT, "hidden_act": "gelu_new", "tie_word_embeddings": False}),
    "bert's trunk": ("BertModel", BERT),
}
GREEDY = (
    "llama with biases",
    "smollm",
    "llama3 rope",
    "yarn",
    "mistral",
    "qwen2 with windows by layer",
    "qwen3",
    "gemma2",
    "gemma3",
    "gpt_neox",
    "falcon with groups",
    "mixtral",
    "qwen3-moe",
    "deepseek-v3",
    "gpt2 untied",
    "opt untied",
)
