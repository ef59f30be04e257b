"""What counts as a function that a model completed well."""

import ast

import pytest

from ridgeline.demo.heldout import held_out_texts
from ridgeline.weights.tokenizer import Tokenizer
from training.bodies import complete, first_function, function_heads, parses, prompt_ids, unindented
from training.tokenizer import MODEL_FOLDER

SOURCE = '''\
import os

class Reader:
    def read(self, size=-1):
        """Return some."""

        # as much as there is
        return self.data[:size]

    def close(self): pass

    def abstract(self):
        """Only said, not done."""


def twice(
    x,
):
    return 2 * x
'''


def test_heads_are_of_functions_with_a_body_of_their_own():
    reader, twice = sorted(function_heads(SOURCE), key=lambda head: len(head.before))
    assert reader.text == (
        '    def read(self, size=-1):\n        """Return some."""\n\n        # as much as there is\n       '
    )
    assert reader.before == "import os\n\nclass Reader:\n"
    assert reader.column == 4
    assert twice.text == "def twice(\n    x,\n):\n   "
    assert twice.column == 0


def test_a_file_begins_with_what_is_before_the_head_and_the_head():
    for text in held_out_texts().values():
        for head in function_heads(text):
            assert text.startswith(head.before + head.text)


def test_a_prompt_ends_where_the_tokenizer_ends_a_token():
    tokenizer = Tokenizer.from_folder(MODEL_FOLDER)
    (head,) = (head for head in function_heads(SOURCE) if head.column == 0)
    ids = prompt_ids(tokenizer, head)
    assert ids == tokenizer.encode(SOURCE)[: len(ids)]
    assert tokenizer.decode(ids) == SOURCE[: SOURCE.index(" return 2")]


@pytest.mark.parametrize("text", held_out_texts().values(), ids=map(str, held_out_texts()))
def test_functions_as_they_stand_in_files_parse(text):
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno > node.body[0].lineno >= node.lineno + 1:
            written = "".join(lines[node.lineno - 1 :])  # and all that follows in the file
            assert parses(unindented(written, node.col_offset))


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("def f():\n    a\n\nx = 2\n", "def f():\n    a\n\n"),
        ("def f():\n    a\n    b\nclass G", "def f():\n    a\n    b\n"),
        ("def f():\n    if a:\n        b\n    c\n\ndef g():\n", "def f():\n    if a:\n        b\n    c\n\n"),
        ('def f():\n    a = """\nb\n"""\n    c\nd\n', 'def f():\n    a = """\nb\n"""\n    c\n'),
        ("def f(\n    x\n):\n    a\nb", "def f(\n    x\n):\n    a\n"),
        ("def f():\n    a\n    retur", "def f():\n    a\n"),
        ("def f():\n    a = (\n    b", "def f():\n    a = (\n"),
    ],
)
def test_a_function_ends_before_the_next_statement_at_the_margin(text, function):
    assert first_function(text) == function


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("def f():\n    a\n", "def f():\n    a\n"),
        ("def f():\n    a\n    b = (1,\n        2,\n", "def f():\n    a\n"),
        ("def f():\n    a\n    if b:\n", "def f():\n    a\n"),
        ("def f():\n    a\n    try:\n        b\n", "def f():\n    a\n"),
        ("def f():\n    if a:\n        b\n    else:\n", "def f():\n    if a:\n        b\n"),
        ('def f():\n    a\n    b = """\n    c\n', "def f():\n    a\n"),
        ("def f():\n", None),
        ("def f():\n    a b\n    c\n", None),
        ("def f():\n    a\n  b\n", None),
        ("def f():\n    a = (\n    b = 2\n    c = 3\n", None),
    ],
)
def test_only_a_statement_that_is_unfinished_at_the_end_is_dropped(text, kept):
    assert complete(text) == kept


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f():\n    return 1\nx = (", True),
        ('def f():\n    """Said."""\n    return 1\n', True),
        ('def f():\n    """Said."""\n    x = (\n', False),  # nothing but the docstring is left
        ("def f():\n    return 'a\n    b\n", False),
        ("def f():\n    for x in y\n        z\n", False),
    ],
)
def test_a_function_counts_if_it_parses_and_holds_a_statement(text, expected):
    assert parses(text) is expected
