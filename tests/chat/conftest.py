"""A byte-level tokenizer with ChatML's control tokens, its template, and a tiny model that has both."""

import json
import shutil

import pytest

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
CONTROL = ["<|im_start|>", "<|im_end|>", "<|im|>"]
WINDOW = 4096


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with the tokenizer, of 259 tokens, and the template."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("chatml")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(CONTROL)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


@pytest.fixture(scope="session")
def tokenizer(files):
    from ridgeline.weights.tokenizer import Tokenizer

    return Tokenizer.from_folder(files)


@pytest.fixture(scope="session")
def template(files):
    from ridgeline.weights.chat import ChatTemplate

    return ChatTemplate.from_folder(files)


@pytest.fixture
def model(files, make_twin, tmp_path):
    """A folder with a random model of two layers that never ends an answer by itself, tokenizer, template."""
    twin = make_twin(
        "LlamaForCausalLM",
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
    )
    folder = tmp_path / "tiny"
    shutil.copytree(twin.folder, folder)
    shutil.copytree(files, folder, dirs_exist_ok=True)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text("{}")
    return folder
