"""The demo model's data: what is in the corpus, what is held out, and how text becomes batches."""

from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ridgeline.demo.heldout import HELD_OUT_MODULES, held_out
from ridgeline.errors import InputError
from training.corpus import (
    Corpus,
    SourceFile,
    collect,
    without_overlap,
)
from training.data import SEPARATOR, batch_at, tokenise
from training.tokenizer import END_OF_TEXT, MODEL_FOLDER, VOCABULARY


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return collect()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))


def source(name: str, text: str) -> SourceFile:
    return SourceFile("stdlib", PurePosixPath(name), text)


# -- the corpus -------------------------------------------------------------------------------------


def test_every_held_out_module_is_found_whole(corpus):
    found = {PurePosixPath(file.name.parts[0]).stem for file in corpus.held_out}
    assert found == HELD_OUT_MODULES
    assert {"json/decoder.py", "json/encoder.py"} <= {str(file.name) for file in corpus.held_out}


def test_no_held_out_file_is_trained_on(corpus):
    assert not {file.name for file in corpus.training} & {file.name for file in corpus.held_out}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("json/tool.py", True), ("csv.py", True), ("email/queue.py", False), ("jsonschema.py", False)],
)
def test_held_out_means_the_top_level_module(name, expected):
    assert held_out(PurePosixPath(name)) is expected


def test_tests_tables_and_installed_packages_are_left_out(corpus):
    names = [file.name for file in corpus.training]
    assert not [n for n in names if {"test", "tests", "site-packages", "__pycache__"} & set(n.parts[:-1])]
    assert not [n for n in names if n.match("encodings/cp*.py") or n.match("pydoc_data/*.py")]


def test_the_same_machine_gives_the_same_corpus(corpus):
    assert collect() == corpus


def test_another_package_stays_within_the_byte_budget(corpus):
    library = sum(file.size for file in corpus.training)
    more = collect(["numpy"], library + 100_000).training
    added = [file for file in more if file.package == "numpy"]
    assert 0 < sum(file.size for file in added) <= 100_000
    assert more[: len(corpus.training)] == corpus.training


def test_a_budget_below_the_standard_library_is_refused():
    with pytest.raises(InputError, match="max_bytes=1000 is less than"):
        collect(max_bytes=1000)


def test_a_package_that_is_not_installed_is_refused():
    with pytest.raises(InputError, match="'no_such_package' is not installed"):
        collect(["no_such_package"])


@given(
    held=st.lists(st.integers(0, 4095), min_size=60, max_size=120),
    before=st.integers(0, 40),
    start=st.integers(0, 10),
)
def test_a_file_with_fifty_tokens_of_a_held_out_file_is_dropped(held, before, start):
    held = np.array(held, np.uint16)
    own = np.full(before, 7, np.uint16)
    copies = np.concatenate([own, held[start : start + 50], own])
    assert without_overlap([copies, np.arange(200, dtype=np.uint16)[::-1].copy()], [held]) == [1]


def test_forty_nine_common_tokens_are_allowed():
    held = np.arange(100, dtype=np.uint16)
    copies = np.concatenate([held[:49], np.array([4000, 4001], np.uint16), held[49:98]])
    assert without_overlap([copies, held[:49]], [held]) == [0, 1]


# -- the tokenizer ----------------------------------------------------------------------------------


@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@given(st.text(alphabet=" \t\n\r\fdef:()é,_09", max_size=60))
def test_any_indentation_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_vocabulary_is_the_models(tokenizer):
    assert tokenizer.get_vocab_size() == VOCABULARY
    assert tokenizer.token_to_id(END_OF_TEXT) == SEPARATOR


def test_a_line_break_and_its_indentation_are_one_token(tokenizer):
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("if x:\n            return x\n").ids]
    assert pieces == ["if", " x", ":\n           ", " return", " x", "\n"]


def test_held_out_files_take_fewer_than_a_token_for_three_and_a_half_bytes(corpus, tokenizer):
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch([file.text for file in corpus.held_out]))
    assert sum(file.size for file in corpus.held_out) / tokens > 3.5


# -- tokens and batches -----------------------------------------------------------------------------


def test_tokenising_puts_a_separator_before_every_file(tokenizer, tmp_path):
    small = Corpus((source("a.py", "x = 1\n"), source("b.py", "y = 2\n")), (source("csv.py", "é = 3\n"),))
    tokens = tokenise(small, tokenizer, tmp_path)
    text = tokenizer.decode(tokens.training.tolist(), skip_special_tokens=False)
    assert text == f"{END_OF_TEXT}x = 1\n{END_OF_TEXT}y = 2\n"
    assert tokens.held_out_bytes == 7
    assert tokens.held_out[0][0] == SEPARATOR


def test_a_second_call_maps_the_tokens_of_the_first(tokenizer, tmp_path):
    small = Corpus((source("a.py", "x = 1\n"),), (source("csv.py", "y = 2\n"),))
    tokenise(small, tokenizer, tmp_path)
    (written,) = tmp_path.iterdir()
    stamp = written.stat().st_mtime_ns
    again = tokenise(small, tokenizer, tmp_path)
    assert isinstance(again.training, np.memmap)
    assert Path(again.training.filename) == written
    assert written.stat().st_mtime_ns == stamp


def test_another_text_is_tokenised_again(tokenizer, tmp_path):
    held = (source("csv.py", "y = 2\n"),)
    tokenise(Corpus((source("a.py", "x = 1\n"),), held), tokenizer, tmp_path)
    tokens = tokenise(Corpus((source("a.py", "x = 8\n"),), held), tokenizer, tmp_path)
    assert "x = 8" in tokenizer.decode(tokens.training.tolist())


@given(batch=st.integers(1, 5), length=st.integers(2, 16), seed=st.integers(0, 9), step=st.integers(0, 10**6))
def test_a_batch_depends_on_its_arguments_alone(batch, length, seed, step):
    tokens = np.arange(1000, dtype=np.uint16)
    windows = batch_at(tokens, batch, length, seed, step)
    assert windows.shape == (batch, length + 1)
    assert (np.diff(windows) == 1).all()  # each window is a stretch of the corpus
    assert (windows == batch_at(tokens, batch, length, seed, step)).all()


def test_an_epoch_visits_no_token_twice():
    tokens = np.arange(1000, dtype=np.uint16)
    windows = (len(tokens) - 1) // 8 - 1
    inputs = np.concatenate([batch_at(tokens, 1, 8, 3, step)[0, :-1] for step in range(windows)])
    assert len(set(inputs)) == len(inputs) == 8 * windows


def test_epochs_differ_in_order():
    tokens = np.arange(1000, dtype=np.uint16)
    windows = (len(tokens) - 1) // 8 - 1
    assert (batch_at(tokens, windows, 8, 3, 0) != batch_at(tokens, windows, 8, 3, 1)).any()
