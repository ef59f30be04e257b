"""Reading a config: every field that changes the computation is read, or refused by its name."""

import json

import pytest
import transformers

from ridgeline.models import read_config
from ridgeline.ops.records import RopeScaling
from tests.models.minimal_configs import LLAMA, MINIMAL, ROPES, YARN, refusal


@pytest.fixture(params=MINIMAL)
def minimal(request):
    return MINIMAL[request.param]


def rope(**fields):
    return read_config({**LLAMA, **fields}, "x").rope


# -- what is read ---------------------------------------------------------------------------------


def test_a_field_left_out_has_the_value_that_transformers_gives_it(minimal):
    theirs = transformers.AutoConfig.for_model(**minimal)
    ours = read_config(minimal, "x")
    if ours.family.startswith("deepseek"):  # transformers calls the rotated part a head
        assert (ours.head_dim, ours.rotated) == (theirs.qk_head_dim, theirs.head_dim)
        assert (ours.q_rank, ours.rank, ours.value) == (
            theirs.q_lora_rank,
            theirs.kv_lora_rank,
            theirs.v_head_dim,
        )
        assert (ours.experts, ours.chosen) == (theirs.n_routed_experts, theirs.num_experts_per_tok)
        assert (ours.groups, ours.open_groups) == (theirs.n_group or 1, theirs.topk_group or 1)
        assert (ours.dense, ours.shared) == (theirs.first_k_dense_replace, theirs.n_shared_experts)
        assert ours.expert_intermediate == theirs.moe_intermediate_size
        assert ours.routed_scale == theirs.routed_scaling_factor
    else:
        size = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
        assert ours.head_dim == size
    shared = getattr(theirs, "multi_query", False)  # Falcon
    assert ours.kv_heads == (
        1 if shared else getattr(theirs, "num_key_value_heads", theirs.num_attention_heads)
    )
    assert ours.window == theirs.max_position_embeddings
    assert ours.tied == theirs.tie_word_embeddings
    if ours.family in ("mixtral", "qwen2_moe", "qwen3_moe"):
        experts = getattr(theirs, "num_experts", None) or theirs.num_local_experts
        assert (ours.experts, ours.chosen) == (experts, theirs.num_experts_per_tok)
        assert ours.shared == getattr(theirs, "shared_expert_intermediate_size", 0)
        assert ours.expert_intermediate == getattr(theirs, "moe_intermediate_size", theirs.intermediate_size)
        assert ours.normalised == getattr(theirs, "norm_topk_prob", True)
    if ours.family not in ("gpt2", "opt", "bert", "falcon", "gpt_neox") and "gemma" not in ours.family:
        assert ours.eps == theirs.rms_norm_eps
        assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    if ours.family in ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe"):
        sliding = getattr(theirs, "sliding_window", None)  # counts the token itself, ours does not
        assert ours.windows == (-1 if sliding is None else sliding - 1,) * 3
    if ours.family.startswith("gemma"):
        assert_is_gemma(ours, theirs)


def assert_is_gemma(ours, theirs):
    assert ours.eps == theirs.rms_norm_eps
    kinds = getattr(theirs, "layer_types", ["full_attention"] * 3)
    assert ours.windows == tuple(theirs.sliding_window - 1 if k.startswith("s") else -1 for k in kinds)
    ropes = theirs.rope_parameters
    assert [r.theta for r in ours.ropes] == [ropes.get(k, ropes)["rope_theta"] for k in kinds]
    assert ours.score_cap == (getattr(theirs, "attn_logit_softcapping", None) or 0.0)
    assert ours.logit_cap == (getattr(theirs, "final_logit_softcapping", None) or 0.0)
    assert ours.score_scale == getattr(theirs, "query_pre_attn_scalar", ours.head_dim) ** -0.5


def test_gemma_3_rotates_each_kind_of_layer_by_its_own_angles_in_either_spelling():
    old = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": ROPES["linear"]}
    new = {
        "full_attention": {"rope_theta": 5e5, **ROPES["linear"]},
        "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"},
    }
    raw = {**MINIMAL["gemma3_text"], "sliding_window_pattern": 3}
    ropes = read_config({**raw, **old}, "x").ropes
    assert [(r.theta, r.scaling is None) for r in ropes] == [(2e4, True), (2e4, True), (5e5, False)]
    assert read_config({**raw, "rope_parameters": new}, "x").ropes == ropes


def test_gemmas_old_files_say_gelu_and_mean_its_tanh_form():
    raw = {**MINIMAL["gemma"], "hidden_act": "gelu"}
    assert read_config(raw, "x").activation == transformers_activation(raw) == "gelu_tanh_gated"


def transformers_activation(raw):
    return {"gelu_pytorch_tanh": "gelu_tanh_gated"}[transformers.AutoConfig.for_model(**raw).hidden_act]


def test_what_transformers_saves_is_read(minimal, tmp_path):
    transformers.AutoConfig.for_model(**minimal).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert read_config({**saved, "dtype": None}, "x") == read_config(minimal, "x")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_null_key_heads_are_as_many_as_the_query_heads(family):
    raw = {**MINIMAL[family], "num_key_value_heads": None}
    assert read_config(raw, "x").kv_heads == raw["num_attention_heads"]


def test_a_null_sliding_window_is_none_and_an_absent_one_that_of_mistral():
    assert read_config(MINIMAL["mistral"], "x").windows == (4095,) * 3
    assert read_config({**MINIMAL["mistral"], "sliding_window": None}, "x").windows == (-1,) * 3


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 0}, (-1, -1, -1)),
        ({"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}, (-1, 8, 8)),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 1}, (-1, -1, -1)),
        ({"use_sliding_window": True, "max_window_layers": 2}, (-1, -1, 4095)),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 9,
                "max_window_layers": 0,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (8, -1, 8),
        ),
    ],
)
def test_qwens_windows_go_by_layer(fields, windows):
    assert read_config({**MINIMAL["qwen2"], **fields}, "x").windows == windows


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_the_format_is_that_of_dtype_under_either_name(field):
    assert read_config({**LLAMA, field: "float16"}, "x").format == "fp16"


@pytest.mark.parametrize("kind", ROPES)
def test_rope_is_read_alike_in_the_classic_and_the_new_spelling(kind):
    fields = ROPES[kind]
    new = rope(rope_parameters={**fields, "rope_theta": 5e5})
    assert new.theta == 5e5
    assert new.scaling.kind == kind
    assert rope(rope_theta=5e5, rope_scaling=fields) == new
    oldest = {**fields, "type": kind}
    del oldest["rope_type"]
    assert rope(rope_theta=500000, rope_scaling=oldest) == new


def test_plain_rope_is_read_alike_however_it_is_said():
    plain = rope()
    assert plain.scaling is None
    assert rope(rope_scaling=None, rope_theta=10000) == plain
    assert rope(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}) == plain


def test_a_stretched_rope_takes_the_window_where_no_trained_length_is_given():
    without = {k: v for k, v in YARN.items() if k != "original_max_position_embeddings"}
    assert rope(max_position_embeddings=777, rope_scaling=without).scaling.original_length == 777


def test_the_trained_length_may_stand_outside_the_ropes_fields():
    without = {k: v for k, v in YARN.items() if k != "original_max_position_embeddings"}
    assert rope(original_max_position_embeddings=256, rope_scaling=without).scaling.original_length == 256
    raw = {**LLAMA, "original_max_position_embeddings": 256, "rope_scaling": YARN}
    assert "original_max_position_embeddings" in refusal(raw)


def test_every_field_of_yarn_is_read():
    fields = {**YARN, "beta_fast": 16, "beta_slow": 2, "attention_factor": 0.9, "truncate": False}
    assert rope(rope_scaling=fields).scaling == RopeScaling(
        "yarn", 4.0, 512, beta_fast=16.0, beta_slow=2.0, attention_factor=0.9, truncate=False
    )


def test_fields_that_do_not_touch_the_pass_are_passed_over(minimal):
    harmless = {
        "bos_token_id": 1,
        "initializer_range": 0.1,
        "transformers_version": "4.40.0",
        "use_cache": False,
        "is_decoder": False,
        "pruned_heads": {},
        "never_heard_of": None,
        "nor_of_this": False,
    }
    assert read_config({**minimal, **harmless}, "x") == read_config(minimal, "x")


# -- mixtures and latents -------------------------------------------------------------------------

MIXTRAL, QWEN3_MOE = MINIMAL["mixtral"], MINIMAL["qwen3_moe"]
V2, V3 = MINIMAL["deepseek_v2"], MINIMAL["deepseek_v3"]
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3", "activation_scheme": "dynamic"}


def test_which_layers_have_experts():
    def sparse(**fields):
        return read_config({**QWEN3_MOE, **fields}, "x").sparse

    assert sparse() == (True, True, True)
    assert sparse(decoder_sparse_step=2) == (False, True, False)
    assert sparse(mlp_only_layers=[0, 2]) == (False, True, False)
    assert read_config({**V3, "first_k_dense_replace": 2}, "x").dense == 2


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({**MIXTRAL, "num_experts_per_tok": 9}, "9 experts of only 8"),
        ({**MIXTRAL, "num_local_experts": 0}, "num_local_experts"),
        ({**MIXTRAL, "mlp_bias": True}, "mlp_bias"),
        ({**MIXTRAL, "shared_experts": 2}, "shared_experts"),
        ({**MINIMAL["qwen2_moe"], "use_sliding_window": True}, "use_sliding_window"),
        ({**MINIMAL["qwen2_moe"], "layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({**QWEN3_MOE, "mlp_only_layers": [3]}, "mlp_only_layers"),
        ({**QWEN3_MOE, "mlp_only_layers": ["x"]}, "mlp_only_layers"),
        ({**V3, "scoring_func": "softmax"}, "scoring_func"),
        ({**V3, "topk_method": "greedy"}, "topk_method"),
        ({**V3, "moe_layer_freq": 2}, "moe_layer_freq"),
        ({**V3, "num_key_value_heads": 8}, "num_key_value_heads"),
        ({**V3, "n_group": 7}, "7 groups"),
        ({**V3, "n_group": 4, "topk_group": 5}, "topk_group"),
        ({**V3, "n_routed_experts": 8, "n_group": 8}, "8 groups"),
        ({**V3, "n_routed_experts": 16, "topk_group": 3}, "takes 8 experts"),
        ({**V3, "qk_rope_head_dim": 7}, "7 elements"),
        ({**V3, "quantization_config": {**FP8, "weight_block_size": [1, 128]}}, "quantization_config"),
        ({**V3, "quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({**V3, "quantization_config": {**FP8, "fmt": "e5m2"}}, "fmt"),
        ({**MIXTRAL, "quantization_config": FP8}, "quantization_config"),
        ({**V2, "topk_method": "noaux_tc"}, "topk_method"),
        ({**V2, "norm_topk_prob": True}, "norm_topk_prob"),
        ({**V2, "num_experts_per_tok": None}, "num_experts_per_tok"),
    ],
)
def test_a_mixture_that_is_not_computed_is_refused_by_name(raw, named):
    assert named in refusal(raw)


def test_weights_that_are_published_in_blocks_of_fp8_count_so():
    plain, quantised = (read_config({**V3, **q}, "x") for q in ({}, {"quantization_config": FP8}))
    assert (plain.stored_format, quantised.stored_format) == ("bf16", "fp8-128x128")
    assert quantised.format == "bf16"


def test_scores_grow_with_the_stretch_of_positions():
    """DeepSeek-AI's own code: softmax_scale * mscale * mscale, mscale = 0.1 mscale_all_dim ln(factor) + 1."""
    yarn = {**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    config = read_config({**V3, "rope_scaling": yarn}, "x")
    assert config.scale == pytest.approx(192**-0.5 * 1.3688879454113936**2)
    assert config.rope.scaling.attention_factor == 1.0
    assert read_config(V3, "x").scale == 192**-0.5
