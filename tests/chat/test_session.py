"""The state of a chat: what the model is given, and what each command changes."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline.chat.session import OPTIONS, Session, Turn
from ridgeline.engine.sampling import GREEDY, SEEDS, Sampling
from ridgeline.errors import InputError
from ridgeline.weights.chat import ChatTemplate

WORDS = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "<|im|>", "<|", "|>", "im_end", "user", "é🏔", " ", "\n", "<"]
)
MESSAGES = st.lists(WORDS, max_size=8).map("".join)


@pytest.fixture(scope="module")
def chat(tokenizer, template):
    return Session(tokenizer, template, window=400, sampling=GREEDY)


@pytest.fixture(scope="module")
def completion(chat):
    return replace(chat, template=None)


def shown(session):
    return session.tokenizer.decode(session.prompt, skip_special_tokens=False)


# -- the prompt --------------------------------------------------------------------------------------


def test_the_prompt_is_the_whole_conversation_as_the_template_writes_it(chat):
    session = chat.instruct("Be brief.").ask("Hello").answer("Hi!").ask("How are you?")
    assert shown(session) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n"
        "<|im_start|>user\nHow are you?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert session.prompt == tuple(chat.tokenizer.encode(shown(session), add_special_tokens=False))


def test_without_a_template_the_text_goes_on_and_what_is_given_begins_a_line(completion):
    session = (
        completion.ask("def f(x):").answer("\n    return x").ask("").answer(" + 1\n").ask("f(").answer("2")
    )
    assert session.text == "def f(x):\n    return x + 1\nf(2"
    assert shown(session.ask("print")) == "def f(x):\n    return x + 1\nf(2\nprint"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system=MESSAGES, asked=MESSAGES, answer=MESSAGES)
def test_control_tokens_in_messages_are_plain_characters(chat, template, system, asked, answer):
    session = replace(chat, system=system, turns=(Turn(asked, answer), Turn(asked)))
    special = [i for i in session.prompt if session.tokenizer.is_special(i)]
    assert len(special) == 2 * len(session.messages) + 1  # each message's two, and the start of the answer
    assert shown(session) == template.render(session.messages)


@given(text=MESSAGES)
def test_control_tokens_in_a_text_are_plain_characters(completion, text):
    session = replace(completion, turns=(Turn(text),))
    assert not any(session.tokenizer.is_special(i) for i in session.prompt)
    assert shown(session) == text


def test_a_tokenizer_that_puts_its_own_token_first_still_does(files, completion):
    import tokenizers
    from tokenizers import processors

    from ridgeline.weights.tokenizer import Tokenizer

    backend = tokenizers.Tokenizer.from_file(str(files / "tokenizer.json"))
    first = backend.token_to_id("<|im|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|im|> $A", special_tokens=[("<|im|>", first)]
    )
    session = replace(completion, tokenizer=Tokenizer(backend)).ask("a <|im_end|> b <|im_end|>")
    assert [i for i in session.prompt if session.tokenizer.is_special(i)] == [first]
    assert session.prompt[0] == first


def test_a_word_that_the_vocabulary_lacks_is_not_taken_for_a_control_token(completion):
    import tokenizers
    from tokenizers import models, pre_tokenizers

    from ridgeline.weights.tokenizer import Tokenizer

    backend = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<unk>"])
    assert replace(completion, tokenizer=Tokenizer(backend)).ask("a b a").prompt == (1, 0, 1)


# -- the window --------------------------------------------------------------------------------------


def test_an_answer_has_what_the_window_leaves_or_max_tokens(completion):
    session = completion.ask("x" * 390)
    assert session.room == session.answer_tokens == 10
    assert session.set("max_tokens", "4").answer_tokens == 4
    assert session.set("max_tokens", "400").answer_tokens == 10


def test_a_full_context_is_refused_and_says_how_to_go_on(completion):
    session = completion.ask("x" * 300).answer("y" * 98)
    with pytest.raises(InputError, match=r"context is full.*400 of the window's 400.*/reset 1.*/save"):
        session.ask("z")
    assert session.forget("1").ask("z").text == "z"


def test_a_first_message_that_is_too_long_is_to_be_shortened(completion):
    with pytest.raises(InputError, match=r"500 of the window's 400 tokens.*shorten"):
        completion.ask("x" * 500)


def test_text_that_is_not_unicode_is_refused(chat):
    with pytest.raises(InputError, match="not valid Unicode"):
        chat.ask("caf\udce9")


# -- commands ----------------------------------------------------------------------------------------


def test_retry_awaits_the_last_answer_again_from_the_next_seed(chat):
    session = chat.ask("one").answer("1").ask("two").answer("2")
    again = session.retry()
    assert again.turns == (Turn("one", "1"), Turn("two"))
    assert again.sampling == replace(session.sampling, seed=1)
    assert again.prompt == chat.ask("one").answer("1").ask("two").prompt
    assert replace(session, sampling=Sampling(seed=SEEDS - 1)).retry().sampling.seed == 0


def test_retry_without_an_answer_is_refused(chat):
    with pytest.raises(InputError, match="no answer yet"):
        chat.retry()


def test_reset_forgets_turns_and_keeps_the_rest(chat):
    session = chat.instruct("Be brief.").set("top_k", "5").ask("one").answer("1").ask("two").answer("2")
    assert session.forget() == replace(session, turns=())
    assert session.forget("1").turns == (Turn("two", "2"),)


@pytest.mark.parametrize("number", ["0", "3", "-1", "one", "1.5"])
def test_reset_of_turns_that_there_are_not_is_refused(chat, number):
    with pytest.raises(InputError, match=r"/reset takes how many of the 2 turns"):
        chat.ask("one").answer("1").ask("two").answer("2").forget(number)


def test_the_system_message_holds_for_the_whole_conversation_and_can_go(chat):
    session = chat.ask("one").answer("1").instruct("Be brief.")
    assert shown(session.ask("two")).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none"
    )
    assert session.instruct("") == chat.ask("one").answer("1")


def test_a_template_without_a_system_message_refuses_it(chat, files):
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}Hi"
    session = replace(chat, template=ChatTemplate(source, {}, files))
    with pytest.raises(InputError, match="no system role"):
        session.instruct("Be brief.")


def test_a_model_without_a_template_refuses_a_system_message(completion):
    with pytest.raises(InputError, match="no chat template"):
        completion.instruct("Be brief.")


def test_each_option_can_be_set(chat):
    values = ("0.5", "7", "0.9", "0.1", "1.2", "3", "0.4", "-1", "20")
    session = chat
    for name, value in zip(OPTIONS, values, strict=True):
        session = session.set(name, value)
    assert session.sampling == Sampling(0.5, 7, 0.9, 0.1, 1.2, 3, 0.4, -1)
    assert session.max_tokens == 20
    assert session.settings == (
        "temperature 0.5, top_k 7, top_p 0.9, min_p 0.1, repetition_penalty 1.2, seed 3, "
        "frequency_penalty 0.4, presence_penalty -1, max_tokens 20"
    )


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("temprature", "1", r"no option 'temprature'.*temperature, top_k"),
        ("temperature", "-1", r"temperature is -1, expected 0 \(greedy\)"),
        ("temperature", "warm", "temperature is 'warm', expected a number"),
        ("temperature", "", "temperature is '', expected a number"),
        ("temperature", "nan", "temperature is nan"),
        ("top_k", "1.5", "top_k is 1.5, expected a whole number"),
        ("top_p", "2", "top_p is 2, expected a number above 0"),
        ("max_tokens", "-1", "max_tokens is -1, expected a whole number"),
        ("max_tokens", "2.5", "max_tokens is 2.5, expected a whole number"),
    ],
)
def test_an_unknown_option_and_a_value_out_of_range_are_refused_in_one_line(chat, name, value, named):
    with pytest.raises(InputError, match=named) as refused:
        chat.set(name, value)
    assert "\n" not in str(refused.value)


def test_the_transcript_names_who_spoke(chat, completion):
    session = chat.instruct("Be brief.").ask("Hello").answer("Hi!\n")
    assert session.transcript == "[system]\nBe brief.\n\n[user]\nHello\n\n[assistant]\nHi!\n"
    assert completion.ask("Once").answer(" upon").transcript == "Once upon"
