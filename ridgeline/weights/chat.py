"""Chat templates: from messages to the prompt a model was trained on.

A template is a program from wherever the model came from, so it runs in jinja2's sandbox: no attribute that
leads to Python's internals, no change of what it is given. The conventions (the names a template may use,
whitespace control) are those of transformers' ``apply_chat_template``:
https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ridgeline.errors import InputError
from ridgeline.weights.files import is_there, read_optional_json, unreadable
from ridgeline.weights.special_tokens import special_tokens

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplate:
    """A compiled chat template together with the special tokens it may write."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], origin: Path):
        """Compile ``source``, which stands in the file ``origin``. Raises InputError if it is broken."""
        from jinja2 import TemplateSyntaxError

        self.origin = origin
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except (TemplateSyntaxError, RecursionError) as error:
            line = f" at line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            raise InputError(f"{origin}: broken chat template{line} ({_one_line(error)})") from None

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """The template in ``chat_template.jinja``, else in ``tokenizer_config.json``; None if there is none.

        Of several named templates it is the one called ``default``. Raises InputError if a file is broken or
        none of the several is called so.
        """
        folder = Path(folder)
        file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
        if is_there(file):
            return cls(_read_text(file), special_tokens(folder), file)
        source = _default_template(config, read_optional_json(config).get("chat_template"))
        return None if source is None else cls(source, special_tokens(folder), config)

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **context: Any
    ) -> str:
        """The prompt for ``messages``, each a mapping with ``role`` and ``content``.

        A message's fields that are None are left out. ``context`` gives the template further variables
        (``tools``, ``enable_thinking``, ...) and goes before the special tokens. The prompt holds its special
        tokens as text: encode it with ``add_special_tokens=False``.

        Raises InputError if there is no message, if the template refuses them, or if it fails or leaves the
        sandbox.
        """
        if not messages or not all(isinstance(message, Mapping) for message in messages):
            raise InputError('a chat needs a list of messages such as {"role": "user", "content": "Hello"}')
        present = [{key: value for key, value in m.items() if value is not None} for m in messages]
        variables = {"tools": None, "documents": None, **self._special_tokens, **context}
        try:
            return self._template.render(
                messages=present, add_generation_prompt=add_generation_prompt, **variables
            )
        except Exception as error:  # a template can raise anything: it is a program that isn't ours
            raise InputError(f"{self.origin}: the chat template failed ({_one_line(error)})") from None


def _default_template(file: Path, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    try:
        named = {entry["name"]: entry["template"] for entry in value}
    except (TypeError, KeyError):
        raise InputError(f"{file}: chat_template is neither text nor a list of names and templates") from None
    if not isinstance(named.get("default"), str):
        raise InputError(
            f"{file}: no chat template is called 'default' (found {', '.join(map(str, named))}):"
            " save the one to use as chat_template.jinja"
        )
    return named["default"]


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}): download it again") from None
    except OSError as error:
        raise unreadable(file, error) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """The sandbox with the functions, the filter and the tags that chat templates rely on."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
            # jinja2's own gives an undefined value, which prints as nothing; an attempt is worth an error.
            raise SecurityError(f"attribute {attribute!r} of {type(obj).__name__!r} is out of bounds")

    class GenerationBlock(Extension):
        """``{% generation %}`` to ``{% endgeneration %}`` marks the model's words for training."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own name and type

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own escapes for HTML, which a prompt isn't.
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def make_dict(*args: Any, **fields: Any) -> dict:
        # The type itself would lend its methods, and dict.update changes what the caller passed in.
        return dict(*args, **fields)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols])
    environment.globals["dict"] = make_dict
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.filters["tojson"] = tojson
    return environment
