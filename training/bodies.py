"""How often a function that a model completes parses.

A model reads a file up to the end of a function's signature and docstring, and goes on. Its function ends
where a statement begins that is not indented deeper than the `def`, or with the last token allowed. In the
second case it is cut at its last complete statement: an unfinished line, an open bracket or string, and a
header without a body are dropped, and so is a `try` without its `except`. What is left has to parse and to
hold a statement.
"""

import ast
import codeop
import io
import random
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ridgeline.engine.generate import collect, run
from ridgeline.loading import Loaded
from ridgeline.weights.tokenizer import Tokenizer

FUNCTIONS = 200  # drawn from all files together
CONTEXT = 512  # tokens that the model reads
NEW_TOKENS = 128
CACHE_TOKENS = 32_768  # of the requests that run at once
STATEMENT = " pass"  # one token


@dataclass(frozen=True)
class Head:
    """A file's text `before` a function, and the function's signature and docstring as they stand in it.

    `text` ends with the body's indentation but for its last space; `column` is the indentation of the `def`.
    """

    before: str
    text: str
    column: int


@dataclass(frozen=True)
class Bodies:
    """Of `functions` completed functions, `parsed` parse."""

    functions: int
    parsed: int

    @property
    def share(self) -> float:
        return self.parsed / self.functions


def complete_bodies(loaded: Loaded, texts: Sequence[str], functions: int = FUNCTIONS) -> Bodies:
    """Complete functions of Python files, drawn with a fixed seed, by the model folder's own sampling,
    function i with seed i."""
    heads = [head for text in texts for head in function_heads(text)]
    heads = random.Random(0).sample(heads, min(functions, len(heads)))
    generator = loaded.generator(cache_tokens=CACHE_TOKENS)
    requests = [
        generator.requests.make(
            prompt_ids(loaded.tokenizer, head), max_tokens=NEW_TOKENS, sampling=loaded.sampling(seed=seed)
        )
        for seed, head in enumerate(heads)
    ]
    written = collect(run(generator.start(requests)))
    functions = [
        unindented(head.text + new.text, head.column) for head, new in zip(heads, written, strict=True)
    ]
    return Bodies(len(functions), sum(map(parses, functions)))


def function_heads(source: str) -> Iterator[Head]:
    """The head of every function in `source` whose body is more than a docstring."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        if body and body[0].lineno > node.lineno:
            before, head = lines[: node.lineno - 1], lines[node.lineno - 1 : body[0].lineno - 1]
            indentation = " " * (body[0].col_offset - 1)
            yield Head("".join(before), "".join(head) + indentation, node.col_offset)


def prompt_ids(tokenizer: Tokenizer, head: Head) -> list[int]:
    """The last tokens of the text up to the head's end, as they are where a statement follows: the tokenizer
    makes one token of a line break and its indentation, but for a last space, which is the next word's."""
    return tokenizer.encode(head.before + head.text + STATEMENT)[-CONTEXT - 1 : -1]


def unindented(text: str, column: int) -> str:
    """`text` with every line moved `column` to the left, or as far as its own indentation goes."""
    return re.sub(f"^ {{0,{column}}}", "", text, flags=re.MULTILINE)


def parses(text: str) -> bool:
    """Whether the function that `text` begins with parses and holds a statement beside its docstring."""
    function = complete(first_function(text))
    if function is None:
        return False
    node = ast.parse(function).body[0]
    return len(node.body) > (ast.get_docstring(node, clean=False) is not None)


def first_function(text: str) -> str:
    """`text` up to the first statement at the left margin after a function's body; all if there is none,
    but for an unfinished last line."""
    depth = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
            if token.type == tokenize.DEDENT and depth == 0 and token.line:
                return "".join(text.splitlines(keepends=True)[: token.start[0] - 1])
    except (tokenize.TokenError, SyntaxError):
        pass  # an open bracket or string at the end, or an error that parsing finds again
    return text[: text.rfind("\n") + 1]


def complete(text: str) -> str | None:
    """`text` without the statement that is unfinished at its end, if there is one; None if it is wrong."""
    while text:
        if _parses(text):
            return text
        if not _is_unfinished(text):
            return None
        text = text[: text.rstrip("\n").rfind("\n") + 1]
    return None


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):  # ValueError: a zero byte
        return False
    return True


def _is_unfinished(text: str) -> bool:
    """Whether more text could make `text`, which does not parse, parse."""
    try:
        return codeop.compile_command(text, symbol="exec") is None
    except (SyntaxError, ValueError, OverflowError):
        return False
