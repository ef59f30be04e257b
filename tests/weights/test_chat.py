import json
from datetime import datetime

import pytest

from ridgeline.errors import InputError
from ridgeline.weights.chat import ChatTemplate

CHATML = """\
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {% if message.tool_calls is defined %}
{{- message.tool_calls | tojson(indent=2) }}
    {% endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message.get('content', '') | trim + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if tools %}Tools: {{ tools | tojson }}{% endif %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}
{% endif %}
"""

LLAMA = """\
{{ bos_token }}{% set ns = namespace(turn=0) %}
{% for message in messages %}
  {% if message.role == 'user' %}
    {% if ns.turn % 2 %}{{ raise_exception('roles must alternate') }}{% endif %}
    {% set ns.turn = ns.turn + 1 %}
[INST] {{ message.content.strip() }} [/INST]
  {%- elif message.role == 'assistant' %}
    {% set ns.turn = ns.turn + 1 %}
    {% generation %}
 {{ message.content | default('(a call)') }}{{ eos_token }}
    {% endgeneration %}
  {% else %}{% continue %}
  {% endif %}
{% endfor %}
{{ unk_token }}{{ pad_token | default('no pad') }}{{ strftime_now('%Y') }}
"""

CONVERSATIONS = {
    "one question": [{"role": "user", "content": "  Hello <b>&amp; 'you' \n"}],
    "system": [{"role": "system", "content": "Speak French."}, {"role": "user", "content": "Ça va ? 你好"}],
    "turns": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And {{ bos_token }}?"},
    ],
    "tool call": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "météo", "arguments": {"b": "<"}}]},
    ],
}  # fmt: skip


def write_folder(folder, template=None, jinja: str | None = None):
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": None}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    return folder


def render(folder, source: str, messages=CONVERSATIONS["one question"], **context) -> str:
    return ChatTemplate.from_folder(write_folder(folder, source)).render(messages, **context)


@pytest.fixture(scope="module")
def transformers_tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", [CHATML, LLAMA], ids=["ChatML", "Llama"])
@pytest.mark.parametrize(
    "context",
    [
        {},
        {"add_generation_prompt": False},
        {"enable_thinking": False},
        {"tools": [{"type": "function", "function": {"name": "météo", "parameters": {}}}]},
        {"bos_token": "<other>"},
    ],
    ids=lambda context: "".join(context) or "plain",
)
def test_renders_what_transformers_renders(tmp_path, transformers_tokenizer, template, conversation, context):
    messages = CONVERSATIONS[conversation]
    theirs = transformers_tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, **{"add_generation_prompt": True, **context}
    )
    assert render(tmp_path, template, messages, **context) == theirs
    assert theirs.strip()


def test_a_template_sees_the_special_tokens_and_the_date(tmp_path):
    assert render(tmp_path, "{{ bos_token }}{{ eos_token }}{{ unk_token }}|") == "<s></s>|"
    assert render(tmp_path, "{{ strftime_now('%Y') }}") == f"{datetime.now():%Y}"


def test_json_is_written_for_a_prompt_not_for_html(tmp_path):
    assert render(tmp_path, "{{ x | tojson }}", x={"b": "<é>", "a": 1}) == '{"b": "<é>", "a": 1}'
    assert render(
        tmp_path, "{{ x | tojson(sort_keys=true, separators=(',', ':')) }}", x={"b": 2, "a": 1}
    ) == ('{"a":1,"b":2}')


def test_a_variable_set_in_a_generation_block_stays_there(tmp_path):
    source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    assert render(tmp_path, source) == "21"


# Where the template comes from


def test_a_folder_without_a_template_gives_none(tmp_path):
    assert ChatTemplate.from_folder(tmp_path) is None
    assert ChatTemplate.from_folder(write_folder(tmp_path)) is None


def test_the_jinja_file_goes_before_the_config(tmp_path):
    template = ChatTemplate.from_folder(write_folder(tmp_path, "config", jinja="file {{ bos_token }}"))
    assert template.render(CONVERSATIONS["one question"]) == "file <s>"
    assert template.origin == tmp_path / "chat_template.jinja"


def test_of_several_templates_the_default_is_taken(tmp_path):
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert render(tmp_path, several) == "plain"


def test_several_templates_without_a_default_are_listed(tmp_path):
    write_folder(tmp_path, [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}])
    with pytest.raises(
        InputError, match=r"tokenizer_config\.json: no chat template is called 'default' \(found rag, tool"
    ):
        ChatTemplate.from_folder(tmp_path)


@pytest.mark.parametrize("value", [3, True, {"default": "x"}, ["x"], [{"name": "default"}]])
def test_a_template_of_another_type_names_the_file(tmp_path, value):
    with pytest.raises(InputError, match=r"tokenizer_config\.json: chat_template is neither text nor"):
        ChatTemplate.from_folder(write_folder(tmp_path, value))


def test_a_jinja_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"chat_template\.jinja is not UTF-8"):
        ChatTemplate.from_folder(tmp_path)


# Bad templates and bad messages


def test_a_syntax_error_names_file_and_line(tmp_path):
    with pytest.raises(InputError, match=r"chat_template\.jinja: broken chat template at line 2"):
        ChatTemplate.from_folder(write_folder(tmp_path, jinja="\n{% if %}"))


def test_what_the_template_refuses_is_passed_on(tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(InputError, match=r"the chat template failed \(roles must alternate\)"):
        render(tmp_path, LLAMA, messages)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ raise_exception.__init__.__builtins__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ messages | attr('__class__') }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ messages.append({}) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].clear() }}",
        "{{ dict.update(messages[0], role='system') }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_leaving_the_sandbox_is_refused(tmp_path, source):
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(InputError, match=r"tokenizer_config\.json: the chat template failed \([^\n]+\)$"):
        render(tmp_path, source, messages)
    assert messages == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "source",
    ["{{ 1 / 0 }}", "{{ messages[9].role }}", "{{ 'a' + 1 }}", "{{ {} | tojson(indent='x', separators=3) }}",
     "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ nothing() }}"],
)  # fmt: skip
def test_a_template_that_fails_is_one_clear_line(tmp_path, source):
    with pytest.raises(InputError, match=r"the chat template failed \([^\n]+\)$"):
        render(tmp_path, source)


@pytest.mark.parametrize("messages", [[], ["Hello"], [{"role": "user", "content": "x"}, None]])
def test_messages_of_another_form_are_refused(tmp_path, messages):
    with pytest.raises(InputError, match="a chat needs a list of messages"):
        render(tmp_path, CHATML, messages)
