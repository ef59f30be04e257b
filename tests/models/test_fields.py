"""Reading a config: every field that changes the computation is read, or refused by its name."""

import json

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.models import ModelConfig, read_config
from ridgeline.ops.records import RopeScaling

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


@pytest.fixture(params=MINIMAL)
def minimal(request):
    return MINIMAL[request.param]


def refusal(raw) -> str:
    """The message with which the config is refused: one line that begins with the config's name."""
    with pytest.raises(InputError) as caught:
        read_config(raw, "some/config.json")
    message = str(caught.value)
    assert message.startswith("some/config.json: ")
    assert "\n" not in message
    return message


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


# -- what is refused ------------------------------------------------------------------------------


def test_every_field_of_a_minimal_config_is_needed(minimal):
    for field in minimal:
        rest = {k: v for k, v in minimal.items() if k != field}
        assert field in refusal(rest)


def test_an_unknown_field_is_refused_by_name(minimal):
    assert "logit_softcap" in refusal({**minimal, "logit_softcap": 30.0})


@pytest.mark.parametrize(
    "field",
    [
        {"is_decoder": True},
        {"is_encoder_decoder": True},
        {"add_cross_attention": True},
        {"quantization_config": {"bits": 4}},
        {"pruned_heads": {"0": [1]}},
    ],
    ids=lambda field: next(iter(field)),
)
def test_a_field_that_would_change_the_pass_is_refused_by_name(field, minimal):
    assert next(iter(field)) in refusal({**minimal, **field})


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("llama", "pretraining_tp", 2),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "sliding_window", 128),
        ("mistral", "attention_bias", True),
        ("qwen2", "attention_bias", True),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "reorder_and_upcast_attn", True),
        ("opt", "do_layer_norm_before", False),
        ("opt", "_remove_final_layer_norm", True),
        ("opt", "enable_bias", False),
        ("opt", "layer_norm_elementwise_affine", False),
        ("opt", "word_embed_proj_dim", 32),
        ("bert", "position_embedding_type", "relative_key"),
        ("gemma2", "use_bidirectional_attention", True),
        ("gemma2", "attn_logit_softcapping", -1.0),
        ("gemma2", "query_pre_attn_scalar", 0),
        ("gemma2", "layer_types", ["full_attention"] * 2),
        ("gemma3_text", "attn_logit_softcapping", 50.0),
        ("gemma3_text", "rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
        ("gemma", "sliding_window", 128),
        ("falcon", "alibi", True),
        ("falcon", "partial_rotary_factor", 0.5),
        ("falcon", "num_ln_in_parallel_attn", 2),
        ("phi3", "attention_bias", True),
    ],
)
def test_a_variant_that_is_not_computed_is_refused_by_name(family, field, value):
    assert field in refusal({**MINIMAL[family], field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "64"),
        ("hidden_size", 64.0),
        ("hidden_size", True),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**9),
        ("vocab_size", -5),
        ("vocab_size", 10**20),
        ("head_dim", 0),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", 10**400),
        ("tie_word_embeddings", 1),
        ("attention_bias", "no"),
        ("hidden_act", "tanhshrink"),
        ("hidden_act", ["silu"]),
        ("dtype", "int8"),
        ("dtype", ["float32"]),
        ("rope_scaling", "linear"),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [["LlamaForCausalLM"]]),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("model_type", "mamba"),
        ("model_type", ["llama"]),
        ("model_type", None),
    ],
)
def test_a_wrong_value_is_refused_by_the_fields_name(field, value):
    assert field.removesuffix("s") in refusal({**LLAMA, field: value})


@pytest.mark.parametrize(
    ("family", "fields", "names"),
    [
        ("llama", {"num_attention_heads": 7}, ("hidden_size=64", "num_attention_heads=7")),
        ("llama", {"num_key_value_heads": 3}, ("num_attention_heads=8", "num_key_value_heads=3")),
        ("llama", {"num_key_value_heads": 16}, ("num_attention_heads=8", "num_key_value_heads=16")),
        ("gpt2", {"n_head": 7}, ("n_embd=64", "n_head=7")),
        ("opt", {"num_attention_heads": 7}, ("hidden_size=64", "num_attention_heads=7")),
        ("bert", {"num_attention_heads": 7}, ("hidden_size=64", "num_attention_heads=7")),
    ],
)
def test_heads_that_do_not_divide_are_refused(family, fields, names):
    message = refusal({**MINIMAL[family], **fields})
    assert all(name in message for name in names)


@pytest.mark.parametrize(
    ("kinds", "sliding"),
    [
        (["full_attention"] * 2, True),
        (["full_attention", "full_attention", "chunked_attention"], True),
        (["full_attention", "full_attention", ["sliding_attention"]], True),
        (["full_attention", "full_attention", "sliding_attention"], False),
    ],
)
def test_layer_types_that_cannot_be_followed_are_refused(kinds, sliding):
    raw = {**MINIMAL["qwen2"], "layer_types": kinds, "use_sliding_window": sliding}
    assert "layer_types" in refusal(raw)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_type": "proportional", "factor": 2.0}, "proportional"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 4}, "long_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 3}, "long_factor"),
        ({"rope_type": "longrope", "short_factor": [0.0] * 4, "long_factor": [2.0] * 4}, "short_factor"),
        ({"rope_type": None}, "None"),
        ({"rope_type": ["yarn"]}, "yarn"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0.5}, "factor"),
        ({"rope_type": "linear", "factor": True}, "factor"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 32}, "beta_fast"),
        ({"rope_type": "default", "rope_theta": 0}, "rope_theta"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**LLAMA3, "low_freq_factor": None}, "low_freq_factor"),
        ({**LLAMA3, "low_freq_factor": 4.0}, "low_freq_factor"),
        ({**YARN, "beta_slow": 0}, "beta_slow"),
        ({**YARN, "truncate": "no"}, "truncate"),
        ({**YARN, "mscale": "much"}, "mscale"),
    ],
)
def test_a_rope_that_is_not_computed_is_refused_by_name(fields, named):
    assert named in refusal({**LLAMA, "rope_scaling": fields})


def test_two_spellings_of_rope_that_differ_are_refused():
    raw = {**LLAMA, "rope_scaling": ROPES["linear"], "rope_parameters": ROPES["dynamic"]}
    assert "rope_scaling" in refusal(raw)


@pytest.mark.parametrize(("size", "kind"), [(7, "linear"), (2, "dynamic")])
def test_heads_that_cannot_be_rotated_are_refused(size, kind):
    assert str(size) in refusal({**LLAMA, "head_dim": size, "rope_scaling": ROPES[kind]})


# -- whatever comes in ----------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 100)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["silu", "yarn", "default", "float16", "sliding_attention", "absolute"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted(
    {field for raw in MINIMAL.values() for field in raw}
    | {
        "activation_function",
        "architectures",
        "attention_bias",
        "dtype",
        "head_dim",
        "hidden_act",
        "is_decoder",
        "layer_types",
        "max_position_embeddings",
        "max_window_layers",
        "n_inner",
        "num_key_value_heads",
        "original_max_position_embeddings",
        "position_embedding_type",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "tie_word_embeddings",
        "torch_dtype",
        "type_vocab_size",
        "use_sliding_window",
        "word_embed_proj_dim",
    }
)


def read_or_refusal(raw) -> ModelConfig | str:
    try:
        return read_config(raw, "x")
    except InputError as error:
        return str(error)


def is_config_or_one_line(result) -> bool:
    return isinstance(result, ModelConfig) or "\n" not in result


@settings(max_examples=300)
@given(
    family=st.sampled_from(sorted(MINIMAL)),
    changes=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), ANYTHING, min_size=1, max_size=3),
)
def test_a_config_is_read_or_refused_whatever_its_fields_hold(family, changes):
    assert is_config_or_one_line(read_or_refusal({**MINIMAL[family], **changes}))


@settings(max_examples=200)
@given(
    kind=st.sampled_from(sorted(ROPES)),
    field=st.sampled_from(
        ["type", "rope_type", "rope_theta", "truncate", "attention_factor", *LLAMA3, "beta_fast", "mscale"]
    ),
    value=ANYTHING,
)
def test_rope_fields_are_read_or_refused_whatever_they_hold(kind, field, value):
    raw = {**LLAMA, "rope_scaling": {**ROPES[kind], field: value}}
    assert is_config_or_one_line(read_or_refusal(raw))


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
