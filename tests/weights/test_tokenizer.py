import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from ridgeline.errors import InputError
from ridgeline.weights.tokenizer import TextStream, Tokenizer

CORPUS = ["def add(a, b):\n    return a + b\n", "naïve café 你好世界 🙂🙃 ", "the theatre then there"] * 3


def byte_level() -> Backend:
    """A BPE over bytes, trained here: characters of several bytes are split over tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("� ok", special=False)])
    return backend


def byte_fallback() -> Backend:
    """The decoder of Llama 2: ▁ for a space, bytes for what the vocabulary lacks, the first space goes."""
    pieces = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "re", "é", "�", "▁▁"]
    backend = Backend(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def metaspace() -> Backend:
    pieces = ["<unk>", "▁", "▁the", "re", "▁▁", "é"]
    backend = Backend(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    return backend


def word_piece() -> Backend:
    pieces = ["[UNK]", "[SEP]", "the", "##re", ",", "do", "n't", "##é"]
    backend = Backend(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.add_special_tokens(["[SEP]"])
    backend.decoder = decoders.WordPiece()
    return backend


def no_decoder() -> Backend:
    return Backend(models.WordLevel({"the": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))


TOKENIZERS = {
    make.__name__: Tokenizer(make())
    for make in (byte_level, byte_fallback, metaspace, word_piece, no_decoder)
}


def write_folder(folder, backend: Backend | None = None, **files: dict):
    (backend or byte_level()).save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def stream(tokenizer: Tokenizer, ids, skip_special_tokens: bool = True) -> tuple[list[str], str]:
    text_stream = TextStream(tokenizer, skip_special_tokens)
    return [text_stream.push(token_id) for token_id in ids], text_stream.finish()


# Encoding and decoding


@given(text=st.text())
def test_byte_level_encoding_is_undone_by_decoding(text):
    tokenizer = TOKENIZERS["byte_level"]
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_special_tokens_are_found_in_text_and_left_out_of_decoded_text():
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode("<s>the</s>")
    assert (ids[0], ids[-1]) == (0, 1)
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>the</s>"
    assert tokenizer.is_special(0)
    assert not tokenizer.is_special(ids[1])


def test_an_id_outside_the_vocabulary_decodes_to_nothing():
    tokenizer = TOKENIZERS["byte_level"]
    assert tokenizer.token(tokenizer.vocab_size) is None
    assert tokenizer.decode([tokenizer.vocab_size, *tokenizer.encode("then")]) == "then"


def test_text_that_is_not_unicode_is_refused():
    with pytest.raises(InputError, match="not valid Unicode at character 3"):
        TOKENIZERS["byte_level"].encode("caf\udce9")


# Reading a folder


def test_eos_ids_are_those_of_generation_config_and_of_the_tokenizer(tmp_path):
    write_folder(
        tmp_path,
        generation_config={"eos_token_id": [2, 7]},
        config={"eos_token_id": 9},
        tokenizer_config={"eos_token": {"content": "</s>", "lstrip": False}, "bos_token": "<s>"},
        special_tokens_map={"eos_token": "<pad>", "pad_token": {"content": "<pad>"}},
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.eos_ids == {1, 2, 7}
    assert tokenizer.bos_id == 0


def test_ids_come_from_config_where_nothing_else_names_them(tmp_path):
    write_folder(tmp_path, config={"eos_token_id": 9, "bos_token_id": 8})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.eos_ids, tokenizer.bos_id) == ({9}, 8)


def test_a_folder_with_nothing_but_tokenizer_json_has_no_special_ids(tmp_path):
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path))
    assert (tokenizer.eos_ids, tokenizer.bos_id) == (frozenset(), None)


def test_truncation_and_padding_of_the_training_run_are_off(tmp_path):
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, backend))
    assert tokenizer.decode(tokenizer.encode("the theatre then")) == "the theatre then"
    assert len(tokenizer.encode("the")) < 16


@pytest.mark.parametrize(
    "flags",
    [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}],
)
def test_special_tokens_are_added_as_transformers_adds_them(tmp_path, flags):
    from transformers import PreTrainedTokenizerFast

    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    write_folder(tmp_path, backend, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", **flags})
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    for text in ("the café", ""):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("other", ["tokenizer.model", "vocab.json"])
def test_another_format_is_refused_with_the_way_out(tmp_path, other):
    (tmp_path / other).write_bytes(b"")
    with pytest.raises(InputError, match=rf"no tokenizer\.json, only {other}: write one with AutoTokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_a_missing_tokenizer_or_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"has no tokenizer\.json: write one"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(InputError, match="nowhere is not a folder"):
        Tokenizer.from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"\xff\xfe",
        b'{"model": {"type": "BPE"}}',
        b"version https://git-lfs.github.com/spec/v1",
    ],
)
def test_a_broken_tokenizer_is_one_clear_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(
        InputError, match=r"tokenizer\.json is (a Git LFS pointer|not a valid tokenizer)[^\n]*$"
    ):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"generation_config": {"eos_token_id": "two"}},
        {"config": {"eos_token_id": [True]}},
        {"tokenizer_config": {"eos_token": 2}},
    ],
)
def test_a_role_of_the_wrong_type_names_its_file(tmp_path, files):
    write_folder(tmp_path, **files)
    with pytest.raises(InputError, match=f"{next(iter(files))}.json: eos_token"):
        Tokenizer.from_folder(tmp_path)


# Streaming


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("skip_special_tokens", [True, False])
@given(data=st.data())
def test_the_streamed_pieces_are_the_decoded_text(name, skip_special_tokens, data):
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=60))
    pieces, rest = stream(tokenizer, ids, skip_special_tokens)
    assert "".join(pieces) + rest == tokenizer.decode(ids, skip_special_tokens)


@given(text=st.text(max_size=40) | st.lists(st.sampled_from("🙂é世 a\n"), max_size=40).map("".join))
def test_encoded_text_streams_back_without_a_broken_character(text):
    tokenizer = TOKENIZERS["byte_level"]
    pieces, rest = stream(
        tokenizer, tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False
    )
    assert "".join(pieces) + rest == text
    for piece in pieces:
        assert piece in text  # a broken character would bring in a U+FFFD of its own


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback", "metaspace", "word_piece"])
def test_whole_words_are_not_held_back(name):
    tokenizer = TOKENIZERS[name]
    text_stream, shown, ids = TextStream(tokenizer), "", []
    the, re = (
        tokenizer._backend.token_to_id(token)
        for token in {"byte_level": ("the", "re"), "word_piece": ("the", "##re")}.get(name, ("▁the", "re"))
    )
    for token_id in [the, re, the, re, re] * 10:
        ids.append(token_id)
        shown += text_stream.push(token_id)
        assert shown == tokenizer.decode(ids)


def test_a_character_of_several_tokens_appears_when_it_is_complete():
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode("𝄞!")
    pieces, rest = stream(tokenizer, ids)
    assert len(ids) == 5
    assert (pieces, rest) == (["", "", "", "𝄞", "!"], "")


def test_an_incomplete_character_is_shown_at_the_end():
    tokenizer = TOKENIZERS["byte_level"]
    assert stream(tokenizer, tokenizer.encode("𝄞")[:2]) == (["", ""], "\ufffd")


def test_the_cost_of_a_token_does_not_grow_with_the_text(monkeypatch):
    tokenizer = TOKENIZERS["byte_level"]
    decoded, decode = [], Tokenizer.decode
    monkeypatch.setattr(
        Tokenizer, "decode", lambda self, ids, **kw: decoded.append(len(ids)) or decode(self, ids, **kw)
    )
    broken = tokenizer.encode("𝄞")[1]  # a lone continuation byte, U+FFFD each time
    stream(tokenizer, [*tokenizer.encode(CORPUS[1]), *[broken] * 50] * 20)
    assert max(decoded) < 20
