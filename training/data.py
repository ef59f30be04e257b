"""The corpus as tokens: tokenised once, kept in a cache folder, and cut into batches by step number."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.corpus import Corpus, without_overlap

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEPARATOR = 0  # the id of <|endoftext|>, which comes before every file


@dataclass(frozen=True)
class TokenisedCorpus:
    """training: uint16 [tokens], memory-mapped, every file after a separator, in the corpus's order.
    held_out: uint16 [tokens] a file, the separator included; held_out_bytes: their size as UTF-8 text."""

    training: np.ndarray
    held_out: tuple[np.ndarray, ...]
    held_out_bytes: int


def default_cache() -> Path:
    """`ridgeline/training` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ridgeline" / "training"


def tokenise(corpus: Corpus, tokenizer: "Tokenizer", cache: Path) -> TokenisedCorpus:
    """Tokenise `corpus`, or map what an earlier call with the same corpus and tokenizer left in `cache`.

    Training files that overlap with a held-out file are left out (`corpus.without_overlap`).
    """
    held_out = _encode(tokenizer, [file.text for file in corpus.held_out])
    path = cache / f"tokens-{_fingerprint(corpus, tokenizer)}.npy"
    if not path.exists():
        files = _encode(tokenizer, [file.text for file in corpus.training])
        kept = [_separated(files[i]) for i in without_overlap(files, held_out)]
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(kept))
        partial.rename(path)  # a run that is stopped half-way leaves no file that looks whole
    return TokenisedCorpus(
        training=np.load(path, mmap_mode="r"),
        held_out=tuple(_separated(tokens) for tokens in held_out),
        held_out_bytes=sum(file.size for file in corpus.held_out),
    )


def batch_at(tokens: np.ndarray, batch: int, length: int, seed: int, step: int) -> np.ndarray:
    """The windows of step `step`, int64 [batch, length + 1]; a window's last token is only a target.

    An epoch visits every window once, in an order and from an offset drawn from (seed, epoch). The same
    arguments give the same batch, so a resumed run reads what an uninterrupted one would have read.
    """
    windows = (len(tokens) - 1) // length - 1  # one less, so that any offset fits
    rows = []
    for index in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(index, windows)
        start = _window_starts(windows, length, seed, epoch)[place]
        rows.append(tokens[start : start + length + 1])
    return np.stack(rows).astype(np.int64)


def _window_starts(windows: int, length: int, seed: int, epoch: int) -> np.ndarray:
    random = np.random.default_rng((seed, epoch))
    return random.integers(length) + length * random.permutation(windows)


def _encode(tokenizer: "Tokenizer", texts: list[str]) -> list[np.ndarray]:
    return [np.array(encoding.ids, np.uint16) for encoding in tokenizer.encode_batch(texts)]


def _separated(tokens: np.ndarray) -> np.ndarray:
    return np.concatenate([np.array([SEPARATOR], np.uint16), tokens])


def _fingerprint(corpus: Corpus, tokenizer: "Tokenizer") -> str:
    digest = hashlib.sha256(tokenizer.to_str().encode())
    for files in (corpus.training, corpus.held_out):
        digest.update(json.dumps([(file.package, str(file.name), file.text) for file in files]).encode())
    return digest.hexdigest()[:16]
