"""Constrained output: which tokens may follow in a text that a JSON schema or a regular expression describes.

The library llguidance compiles the description and follows it; it is imported when it is first needed.
Nothing here imports PyTorch: a mask is bytes, one a token, which the sampler puts on the logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ridgeline.engine.sequence import common_prefix
from ridgeline.errors import InputError

if TYPE_CHECKING:
    import llguidance

    from ridgeline.weights.tokenizer import Tokenizer

#: Blanks between two parts of a JSON text: without an end to them a model that repeats itself has none.
MOST_BLANKS = 40
_BLANKS = rf"[\x20\x0A\x0D\x09]{{1,{MOST_BLANKS}}}"

#: llguidance's name for where the grammar has no text left, which is no failure.
_NOTHING_FOLLOWS = "NoExtensionBias"
#: A tokenizer as llguidance sees it takes up to a second to make.
_known_tokenizers: WeakKeyDictionary[Tokenizer, llguidance.LLTokenizer] = WeakKeyDictionary()


class Grammar:
    """What an output must be, compiled for one tokenizer. ``option`` is what the caller asked for it with."""

    def __init__(self, option: str, start: llguidance.LLMatcher, for_library: llguidance.LLTokenizer) -> None:
        self.option = option
        self._start = start
        self._vocab = for_library.vocab_size
        self._ends = tuple(for_library.eos_tokens)

    @classmethod
    def from_json_schema(cls, schema: str | Mapping[str, Any], tokenizer: Tokenizer | None) -> Grammar:
        """JSON texts that ``schema``, an object or the JSON text of one, allows; at most MOST_BLANKS blanks
        follow one another between their parts.

        Raises InputError for what is no schema, for keywords that cannot be enforced, and without llguidance
        or a tokenizer.
        """
        library = _llguidance()
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            parsed = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"json_schema is not JSON ({error}): give an object, or its text") from None
        if not isinstance(parsed, dict):
            raise InputError(f"json_schema is {text.strip()[:60]}, expected an object")
        make = partial(library.LLMatcher.grammar_from_json_schema, overrides={"whitespace_pattern": _BLANKS})
        return cls._compiled("json_schema", make, parsed, tokenizer)

    @classmethod
    def from_regex(cls, regex: str, tokenizer: Tokenizer | None) -> Grammar:
        """Texts that ``regex`` matches from their beginning to their end, in the syntax of Rust's ``regex``:
        no look-around, no references to groups, and ``\\d`` is any digit that Unicode has.

        Raises InputError for what is no such expression, and without llguidance or a tokenizer.
        """
        library = _llguidance()
        if not isinstance(regex, str) or not regex:
            raise InputError(f"regex is {repr(regex)[:60]}, expected text that is not empty")
        return cls._compiled("regex", library.LLMatcher.grammar_from_regex, regex, tokenizer)

    @classmethod
    def _compiled(
        cls, option: str, make: Callable[[Any], str], wanted: Any, tokenizer: Tokenizer | None
    ) -> Grammar:
        for_library = _for_library(option, tokenizer)
        try:
            start = _llguidance().LLMatcher(for_library, make(wanted), log_level=0)
        except ValueError as error:  # a number of hundreds of digits, half a character
            raise InputError(f"{option} cannot be used: {_reason(str(error))}") from None
        if complaints := [start.get_error()] if start.is_error() else start.get_grammar_warnings():
            raise InputError(f"{option} cannot be used: {_reason(complaints[0])}")
        grammar = cls(option, start, for_library)
        if grammar.matcher().is_impossible():
            raise InputError(f"{option} cannot be used: there is no text that follows it")
        return grammar

    def matcher(self) -> Matcher:
        """What follows an output from its first token."""
        return Matcher(self.option, self._start.deep_copy(), self._vocab, self._ends)


class Matcher:
    """Answers for any output that begins as the grammar wants. What it has followed is kept, so that the
    answer for one token more, or for some fewer, costs those tokens only."""

    def __init__(self, option: str, state: llguidance.LLMatcher, vocab: int, ends: Collection[int]) -> None:
        self._option = option
        self._state = state
        self._vocab = vocab
        self._ends = ends
        self._followed: list[int] = []
        self._mask: bytes | None = None

    def allowed(self, output: list[int], stop_ids: Collection[int]) -> bytearray | None:
        """What may follow ``output``: a byte for each token of the tokenizer, 0 for those that may not.
        ``stop_ids`` may exactly where the output may end. None if the output has left the grammar, or nothing
        follows because it is complete.

        Raises InputError if nothing follows though it is not complete.
        """
        if not self._follow(output):
            return None
        mask, may_end = bytearray(self._text()), self._state.is_accepting()
        for token in stop_ids:
            if 0 <= token < len(mask):
                mask[token] = may_end
        if not _is_empty(mask):
            return mask
        if may_end:
            return None
        raise InputError(f"{self._option} wants what no token continues: change it, or stop_ids")

    def is_complete(self, output: list[int]) -> bool:
        """Whether ``output`` may end, and no text can follow.

        Raises InputError if it has left the grammar.
        """
        if not self._follow(output):
            raise InputError(f"{self._option} does not allow the token {output[-1]} at the end of the output")
        return _is_empty(self._text()) and self._state.is_accepting()

    def is_impossible(self) -> bool:
        """Whether there is no output at all."""
        self._follow([])
        return _is_empty(self._text()) and not self._state.is_accepting()

    def _text(self) -> bytes:
        """The mask of the tokens that are text and may follow."""
        if self._mask is None:
            self._refuse_failure()
            mask = bytearray(self._state.compute_logit_bias())
            if _NOTHING_FOLLOWS not in self._state.get_error():
                self._refuse_failure()
            for token in self._ends:
                mask[token] = 0
            self._mask = bytes(mask)
        return self._mask

    def _refuse_failure(self) -> None:
        if self._state.is_error():
            raise InputError(f"{self._option} is too complex: {_reason(self._state.get_error())}")

    def _follow(self, output: list[int]) -> bool:
        """Whether the grammar goes as far as ``output``, to whose end, or as far as it goes, this brings the
        state."""
        if self._followed != output:
            same = len(self._followed)
            if output[:same] != self._followed:
                same = common_prefix(self._followed, output)
                self._state.rollback(len(self._followed) - same)
            more = output[same:]
            # An id of a padded vocabulary would leave the library in an error for good.
            known = next((i for i, token in enumerate(more) if token >= self._vocab), len(more))
            taken = self._state.try_consume_tokens(more[:known])
            self._followed, self._mask = output[: same + taken], None
        return len(self._followed) == len(output)


def _is_empty(mask: bytes | bytearray) -> bool:
    return mask.count(0) == len(mask)


def _for_library(option: str, tokenizer: Tokenizer | None) -> llguidance.LLTokenizer:
    if tokenizer is None:
        raise InputError(f"{option} is about text, and the model has no tokenizer: leave it out")
    if not tokenizer.eos_ids:
        raise InputError(f"{option} needs a token that ends an output, and the tokenizer names none")
    if tokenizer not in _known_tokenizers:
        made = _llguidance().LLTokenizer(tokenizer.to_json(), eos_token=sorted(tokenizer.eos_ids))
        _known_tokenizers[tokenizer] = made
    return _known_tokenizers[tokenizer]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise InputError("constrained output needs llguidance: pip install 'ridgeline[constrain]'") from None
    return llguidance


def _reason(complaint: str) -> str:
    """The one line of a message that says what is wrong."""
    lines = complaint.strip().splitlines()
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (named or lines)[0][:200]
