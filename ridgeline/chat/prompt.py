"""From messages, or from a text, to the token ids that an answer follows.

Control tokens come from the template (and, at the very beginning of a text, from the tokenizer) alone. One
that stands in a message is encoded as the plain characters that it consists of. This holds for what the
tokenizer calls special, spelled as it spells it, in two characters or more; added tokens that it does not
call special (``<think>`` in some models) stay the tokens they are. A tokenizer that puts a space before every
text puts one into such a word, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ridgeline.weights.chat import ChatTemplate
from ridgeline.weights.tokenizer import Tokenizer

#: Characters that Unicode leaves to private use; no model's template writes them.
_PRIVATE_USE = range(0xF0000, 0xFFFFE)


def chat_ids(
    messages: Sequence[Mapping[str, str]], template: ChatTemplate, tokenizer: Tokenizer
) -> tuple[int, ...]:
    """The prompt for the answer to ``messages``, each with ``role`` and ``content``.

    Raises InputError if the template refuses them, or if they are not valid Unicode.
    """
    mark = _mark_not_in("".join(message["content"] for message in messages))
    plain = [{**m, "content": _break_control_tokens(m["content"], tokenizer, mark)} for m in messages]
    return _encode(template.render(plain), tokenizer, mark, add_special_tokens=False)


def text_ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The prompt for what follows ``text``. Raises InputError if it is not valid Unicode."""
    mark = _mark_not_in(text)
    return _encode(_break_control_tokens(text, tokenizer, mark), tokenizer, mark, add_special_tokens=True)


def _mark_not_in(said: str) -> str:
    return next(char for char in map(chr, _PRIVATE_USE) if char not in said)


def _encode(text: str, tokenizer: Tokenizer, mark: str, add_special_tokens: bool) -> tuple[int, ...]:
    """The pieces between marks, each by itself."""
    first, *rest = text.split(mark)
    ids = tokenizer.encode(first, add_special_tokens=add_special_tokens)
    for piece in rest:
        ids += tokenizer.encode(piece, add_special_tokens=False)
    return tuple(ids)


def _break_control_tokens(text: str, tokenizer: Tokenizer, mark: str) -> str:
    """``text`` with ``mark`` after the first character of each control token that stands in it."""
    while True:
        token = _control_token(text.split(mark), tokenizer)
        if token is None:
            return text
        text = text.replace(token, token[0] + mark + token[1:])


def _control_token(pieces: list[str], tokenizer: Tokenizer) -> str | None:
    """A control token that one of the pieces spells out; the one for unknown characters may come of
    any other."""
    for piece in pieces:
        for token_id in tokenizer.encode(piece, add_special_tokens=False):
            token = tokenizer.token(token_id)
            if tokenizer.is_special(token_id) and len(token) > 1 and token in piece:
                return token
    return None
