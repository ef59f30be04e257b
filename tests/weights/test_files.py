import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.weights.files import is_there, read_json, read_optional_json


def test_reads_an_object(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 64, "name": "né"}', encoding="utf-8")
    assert read_json(tmp_path / "config.json") == {"hidden_size": 64, "name": "né"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": 1,\n "b": }', "line 2, column 7"),
        (b"", "line 1, column 1"),
        (b"[1, 2]", "holds a JSON array"),
        (b"null", "holds a JSON null"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ],
)
def test_a_broken_file_is_named_with_the_place_and_the_way_out(tmp_path, content, problem):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(file)
    message = str(caught.value)
    assert str(file) in message
    assert problem in message
    assert "\n" not in message


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InputError, match=r"config\.json cannot be read \(Is a directory\)"):
        read_json(tmp_path / "config.json")


def test_an_optional_file_that_is_missing_is_empty_but_a_broken_one_is_not(tmp_path):
    file = tmp_path / "tokenizer_config.json"
    assert read_optional_json(file) == {}
    file.write_text("{")
    with pytest.raises(InputError, match="broken JSON"):
        read_optional_json(file)


@given(content=st.binary(max_size=40) | st.text(alphabet='{}[]":,0e-tfn\\u ', max_size=20).map(str.encode))
def test_any_bytes_give_an_object_or_one_clear_line(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(content)
    try:
        value = read_json(file)
    except InputError:
        return
    assert value == json.loads(content)


def test_a_path_through_a_file_or_to_nothing_is_not_there(tmp_path):
    (tmp_path / "file").write_text("{}")
    assert is_there(tmp_path / "file")
    assert is_there(tmp_path)
    assert not is_there(tmp_path / "file" / "config.json")
    assert not is_there(tmp_path / "other")


def test_a_folder_that_may_not_be_searched_is_named(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)  # root may search any folder
    with pytest.raises(InputError, match=r"config\.json cannot be read \(Permission denied\)"):
        read_optional_json(tmp_path / "config.json")
