import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.weights.generation import GenerationDefaults


def read(folder, fields: dict) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return GenerationDefaults.from_folder(folder)


def test_without_the_file_generation_is_greedy_and_plain(tmp_path):
    assert GenerationDefaults.from_folder(tmp_path) == GenerationDefaults(do_sample=False, ignored=())


def test_a_chat_models_file_is_read(tmp_path):
    defaults = read(
        tmp_path,
        {
            "bos_token_id": 151643,
            "pad_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "repetition_penalty": 1.05,
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
            "transformers_version": "4.37.0",
        },
    )
    assert defaults == GenerationDefaults(
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
        repetition_penalty=1.05,
        eos_ids=(151645, 151643),
    )


def test_null_means_not_given(tmp_path):
    assert read(tmp_path, {"temperature": None, "top_k": None, "num_beams": None}) == GenerationDefaults()


def test_eos_ids_are_configs_where_generation_config_has_none(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert GenerationDefaults.from_folder(tmp_path).eos_ids == (2,)
    assert read(tmp_path, {"do_sample": True}).eos_ids == (2,)
    assert read(tmp_path, {"eos_token_id": [5]}).eos_ids == (5,)


def test_what_is_asked_for_and_not_done_is_listed(tmp_path):
    fields = {"num_beams": 4, "typical_p": 0.9, "max_length": 4096, "something_new": 1, "temperature": 0.5}
    defaults = read(tmp_path, fields)
    assert defaults.ignored == ("num_beams", "typical_p", "max_length", "something_new")
    assert defaults.temperature == 0.5


def test_what_does_nothing_is_not_listed(tmp_path):
    from transformers import GenerationConfig

    fields = GenerationConfig(
        num_beams=1, typical_p=1.0, length_penalty=1.0, no_repeat_ngram_size=0
    ).to_dict()
    assert read(tmp_path, fields).ignored == ()


def test_transformers_neutral_values_are_ours(tmp_path):
    from transformers import GenerationConfig

    neutral = GenerationConfig._get_default_generation_params()
    not_neutral = {"max_length", "top_k", "num_assistant_tokens", "num_assistant_tokens_schedule"}
    not_neutral |= {"assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind"}
    assert read(tmp_path, {k: v for k, v in neutral.items() if k not in not_neutral}).ignored == ()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("do_sample", 1, "true or false"),
        ("temperature", -0.1, "a number of 0 or more"),
        ("temperature", "hot", "a number of 0 or more"),
        ("temperature", float("nan"), "a number of 0 or more"),
        ("temperature", 10**400, "a number of 0 or more"),
        ("top_k", 1.5, "a whole number of 0 or more"),
        ("top_k", True, "a whole number of 0 or more"),
        ("top_p", 0, "a number above 0 and at most 1"),
        ("top_p", 1.1, "a number above 0 and at most 1"),
        ("min_p", -1, "a number from 0 to 1"),
        ("repetition_penalty", 0, "a number above 0"),
        ("max_new_tokens", 0, "a whole number above 0"),
    ],
)
def test_a_value_out_of_range_names_file_field_and_range(tmp_path, field, value, expected):
    with pytest.raises(InputError) as caught:
        read(tmp_path, {field: value})
    assert (
        str(caught.value) == f"{tmp_path}/generation_config.json: {field} is {value!r}, expected {expected}"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2),
)


@given(
    fields=st.dictionaries(
        st.sampled_from(["top_k", "top_p", "eos_token_id", "do_sample", "num_beams", "x"]), JSON
    )
)
def test_any_values_give_valid_defaults_or_an_input_error(tmp_path_factory, fields):
    try:
        defaults = read(tmp_path_factory.getbasetemp(), fields)
    except InputError:
        return
    assert 0 < defaults.top_p <= 1
    assert all(token_id >= 0 for token_id in defaults.eos_ids)
    assert set(defaults.ignored) <= {"num_beams", "x"}
