"""Text to token ids and back, whole or token by token, around the ``tokenizers`` library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ridgeline.errors import InputError
from ridgeline.weights.files import LFS_POINTER, is_there, unreadable
from ridgeline.weights.special_tokens import role_ids, special_tokens

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """A model folder's tokenizer and the ids of its special tokens."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_ids: frozenset[int] = frozenset(),
        bos_id: int | None = None,
    ):
        # A tokenizer.json may carry the truncation and padding of its training run.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.eos_ids = eos_ids
        self.bos_id = bos_id

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json`` and the roles that the files beside it give to tokens.

        ``eos_ids`` end a generation: those of ``generation_config.json`` (``config.json`` if it has none) and
        the tokenizer's own eos token, which many fine-tuned models name only there. Which special tokens
        ``encode`` adds is up to ``tokenizer.json``; ``add_bos_token`` of ``tokenizer_config.json`` is for
        folders without that file, in transformers 5 too.

        Raises InputError if there is no ``tokenizer.json`` or a file is broken.
        """
        folder = Path(folder)
        backend = _load_backend(folder)
        named = {role: backend.token_to_id(text) for role, text in special_tokens(folder).items()}
        return cls(
            backend,
            eos_ids=frozenset({named.get("eos_token"), *role_ids(folder, "eos_token_id")} - {None}),
            bos_id=_first(named.get("bos_token"), *role_ids(folder, "bos_token_id")),
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. A model's embedding may have more rows (padding)."""
        return self._backend.get_vocab_size()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of ``text``. Raises InputError if it isn't valid Unicode (lone surrogates)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text is not valid Unicode at character {error.start}: is it UTF-8?"
            ) from None
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids. Ids without a token (a padded vocabulary) give nothing."""
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def to_json(self) -> str:
        """The tokenizer as the text of a ``tokenizer.json``, without truncation and padding."""
        return self._backend.to_str()

    def token(self, token_id: int) -> str | None:
        """The token as it stands in the vocabulary, None if the id has none."""
        return self._backend.id_to_token(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether ``decode`` leaves the token out by default."""
        return token_id in self._special_ids


class TextStream:
    """Turns token ids into text one at a time; the pieces joined are ``Tokenizer.decode`` of all the ids.

    ``push`` gives only text that no later token can change. A decoder looks at neighbours (the space before
    the first word goes, a character's bytes come in several tokens), so a window of the last tokens is
    decoded anew, never the history. Two kinds of text wait: a character whose bytes aren't complete, which
    decodes to one U+FFFD at the end, waits for the next token; a run of byte-fallback tokens waits for its
    end, since one invalid byte turns every byte of the run into U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._byte_run: list[int] = []
        self._given = 0  # characters of the window's text that push has returned

    def push(self, token_id: int) -> str:
        """The text that became final with this token, possibly empty."""
        token = self._tokenizer.token(token_id)
        if token is None or (self._skip_special_tokens and self._tokenizer.is_special(token_id)):
            return ""
        self._byte_run.append(token_id)
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._extend_window()
        final = _final_length(text)
        piece = text[self._given : final]
        self._given = final
        if len(self._window) > _WINDOW_TOKENS:
            self._window = self._window[-_CONTEXT_TOKENS:]
            self._given = _final_length(self._window_text())
        return piece

    def finish(self) -> str:
        """The text that was still waiting. Nothing may be pushed afterwards."""
        return self._extend_window()[self._given :]

    def _extend_window(self) -> str:
        self._window += self._byte_run
        self._byte_run.clear()
        return self._window_text()

    def _window_text(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=self._skip_special_tokens)


# One byte in a vocabulary with byte fallback (SentencePiece), such as <0xE2>.
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")

# A character has at most 4 bytes in UTF-8, so at most 4 tokens: a window cut to these still holds the last
# one whole, and ends in U+FFFD exactly when the uncut window does.
_CONTEXT_TOKENS = 4
_WINDOW_TOKENS = 16


def _final_length(text: str) -> int:
    return len(text) - text.endswith("\ufffd")


def _load_backend(folder: Path) -> tokenizers.Tokenizer:
    import tokenizers

    file = folder / "tokenizer.json"
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise _no_tokenizer(folder) from None
    except OSError as error:
        raise unreadable(file, error) from None
    if data.startswith(LFS_POINTER):
        raise InputError(f"{file} is a Git LFS pointer, not a tokenizer: run `git lfs pull` in {folder}")
    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception and ValueError for any fault in the file
        raise InputError(f"{file} is not a valid tokenizer ({error}): download it again") from None


def _no_tokenizer(folder: Path) -> InputError:
    if not folder.is_dir():
        return InputError(f"{folder} is not a folder: give a folder with tokenizer.json")
    others = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if is_there(folder / name)]
    found = f", only {others[0]}" if others else ""
    return InputError(
        f"{folder} has no tokenizer.json{found}: write one with AutoTokenizer.from_pretrained(...)"
        ".save_pretrained(...) of transformers"
    )


def _first(*ids: int | None) -> int | None:
    return next((token_id for token_id in ids if token_id is not None), None)
