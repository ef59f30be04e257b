"""What is not computed is refused by the name of its field, and whatever a field holds is read or refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.models import ModelConfig, read_config
from tests.models.minimal_configs import LLAMA, LLAMA3, MINIMAL, ROPES, YARN, refusal


@pytest.fixture(params=MINIMAL)
def minimal(request):
    return MINIMAL[request.param]


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
