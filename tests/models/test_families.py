"""Every family computes what transformers computes: logits at every position, and greedy tokens."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ridgeline.analysis.step import trace_step
from ridgeline.models.model import Model
from ridgeline.ops.batch import Span
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_cpu import TorchCpu

#: How far two computations in float32 may lie apart, relative to the largest logit.
TOLERANCE = 1e-5
TOKENS = 60
PROMPT = 10
GREEDY_STEPS = 200
READINGS = {
    "reference": Reference(),
    "cpu": Cpu(attention_format="fp32"),
    "torch-cpu": TorchCpu(torch.float32),
}

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


@pytest.fixture(scope="module", autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=READINGS)
def ops(request):
    return READINGS[request.param]


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, VOCAB["vocab_size"], (TOKENS,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, make_twin):
    architecture, fields = DECODERS[request.param]
    return make_twin(architecture, **fields)


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request, make_twin):
    architecture, fields = ENCODERS[request.param]
    return make_twin(architecture, **fields)


def one_pass(model: Model, ops, ids, segments=None):
    """Logits of every row of one sequence, without a cache."""
    return model.forward(ops, ops.batch(ids, [Span(len(ids))], logits="all", segments=segments))


def by_transformers(model, ids, **inputs):
    output = model(ids[None], **inputs)
    return (output.logits if hasattr(output, "logits") else output.last_hidden_state)[0]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


def test_a_decoders_logits_are_those_of_transformers(decoder, ops, ids):
    assert_close(one_pass(decoder.on(ops), ops, ids), by_transformers(decoder.theirs, ids))


def test_chunks_and_single_steps_give_the_logits_of_one_pass(decoder, ops, ids):
    cache = ops.alloc_cache(decoder.ours.cache_spec("fp32"), blocks=5)
    table = (3, 1, 4, 0)
    rows = []
    for start, stop in ((0, 20), (20, 21), (21, 50), (50, 51), (51, TOKENS)):
        span = Span(stop - start, past=start, table=table)
        rows.append(
            decoder.on(ops).forward(ops, ops.batch(ids[start:stop], [span], logits="all", cache=cache))
        )
    assert_close(torch.cat(rows), one_pass(decoder.on(ops), ops, ids))


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_tokens_are_those_of_transformers(name, make_twin, ids):
    """With these seeds transformers' two best logits never lie closer than 2e-5 of the largest,
    so that rounding, some 1e-6, cannot decide."""
    architecture, fields = DECODERS[name]
    twin = make_twin(architecture, **fields)
    expected = twin.theirs.generate(
        ids[None, :PROMPT],
        attention_mask=torch.ones(1, PROMPT),
        max_new_tokens=GREEDY_STEPS,
        do_sample=False,
    )
    for ops in READINGS.values():
        assert greedy(twin.on(ops), ops, ids[:PROMPT]) == expected[0, PROMPT:].tolist()


def greedy(model: Model, ops, prompt) -> list[int]:
    cache = ops.alloc_cache(model.cache_spec("fp32"), blocks=16)
    table = tuple(reversed(range(16)))
    tokens, new, past = [], prompt, 0
    while len(tokens) < GREEDY_STEPS:
        span = Span(len(new), past=past, table=table)
        logits = model.forward(ops, ops.batch(new, [span], cache=cache))
        tokens.append(int(logits.argmax()))
        past, new = past + len(new), tokens[-1:]
    return tokens


@pytest.fixture
def dynamic(make_twin):
    """A model with dynamic RoPE and a window of 32."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    twin = make_twin("LlamaForCausalLM", **{**LLAMA, "max_position_embeddings": 32, "rope_parameters": rope})
    # transformers keeps the frequencies of the longest pass so far, so every test gets a fresh one.
    return replace(twin, theirs=deepcopy(twin.theirs))


@pytest.mark.parametrize("tokens", [20, 32, 33, 60])
def test_dynamic_rope_is_that_of_transformers_for_one_full_pass(tokens, dynamic, ops, ids):
    batch = ops.batch(ids[:tokens], [Span(tokens, admitted=tokens)], logits="all")
    assert_close(dynamic.on(ops).forward(ops, batch), by_transformers(dynamic.theirs, ids[:tokens]))


def test_dynamic_rope_stays_as_admitted_while_the_sequence_grows(dynamic, ops, ids):
    cache = ops.alloc_cache(dynamic.ours.cache_spec("fp32"), blocks=4)
    rows = []
    for start, stop in ((0, 30), (30, 40), (40, 60)):
        span = Span(stop - start, past=start, table=(0, 1, 2, 3), admitted=60)
        rows.append(
            dynamic.on(ops).forward(ops, ops.batch(ids[start:stop], [span], logits="all", cache=cache))
        )
    assert_close(torch.cat(rows), by_transformers(dynamic.theirs, ids))


@pytest.fixture
def longrope(make_twin):
    """Phi-3 with a list of factors for requests of up to 40 tokens, and another for longer ones."""
    short, long = ([1.0 + 0.1 * scale * i for i in range(8)] for scale in (1, 7))
    rope = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    lengths = {"max_position_embeddings": 256, "original_max_position_embeddings": 40}
    heads = {"hidden_size": 96, "rope_theta": 1e4}
    return make_twin("Phi3ForCausalLM", **{**LLAMA, **lengths, **heads, "rope_scaling": rope})


@pytest.mark.parametrize("tokens", [40, 41, 60])
def test_longrope_is_that_of_transformers_on_either_side_of_the_trained_length(tokens, longrope, ops, ids):
    scaling = longrope.ours.config.rope.scaling
    assert (scaling.factor, scaling.original_length) == (6.4, 40)
    actual = ops.run(longrope.on(ops), ids[:tokens], [Span(tokens, admitted=tokens)], logits="all")
    assert_close(actual, by_transformers(longrope.theirs, ids[:tokens]))


def test_an_encoders_outputs_are_those_of_transformers(encoder, ops, ids):
    assert_close(one_pass(encoder.on(ops), ops, ids), by_transformers(encoder.theirs, ids))


def test_token_types_count_as_in_transformers(encoder, ops, ids):
    segments = torch.arange(TOKENS) // 25
    expected = by_transformers(encoder.theirs, ids, token_type_ids=segments[None])
    assert_close(one_pass(encoder.on(ops), ops, ids, segments), expected)
    assert not torch.allclose(expected, by_transformers(encoder.theirs, ids), rtol=0.01)


@pytest.mark.parametrize("name", ["bert", "bert's trunk"])
def test_an_encoders_parameters_are_those_of_transformers(name, make_twin):
    architecture, fields = ENCODERS[name]  # untied, transformers keeps a second bias that nothing reads
    twin = make_twin(architecture, **fields)
    assert twin.ours.parameter_count() == twin.theirs.num_parameters()


def test_an_encoders_matrix_products_are_those_of_transformers(encoder, ids):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        by_transformers(encoder.theirs, ids)
    counted = trace_step(encoder.ours, [Span(TOKENS)], logits="all").flops
    assert counted.matrix == counter.get_total_flops()


def test_packed_sequences_do_not_see_each_other_in_an_encoder(encoder, ops, ids):
    lengths = (7, 1, 30, 22)
    packed = encoder.on(ops).forward(ops, ops.batch(ids, [Span(n) for n in lengths], logits="all"))
    for rows, part in zip(packed.split(lengths), ids.split(lengths), strict=True):
        assert_close(rows, by_transformers(encoder.theirs, part))


def test_the_pooled_vector_of_each_packed_sequence_is_that_of_transformers(make_twin, ops, ids):
    twin = make_twin("BertModel", **BERT)
    lengths = (20, 40)
    _, pooled = twin.on(ops).encode_and_pool(ops, ops.batch(ids, [Span(n) for n in lengths]))
    expected = torch.cat([twin.theirs(part[None]).pooler_output for part in ids.split(lengths)])
    assert_close(pooled, expected)
