"""The demo model's corpus: Python source that is on every machine which can train the model.

The standard library of the running interpreter comes whole; other packages, if asked for, fill a byte
budget. A fixed list of standard library modules is held out, and a training file that repeats a stretch of
one of them is dropped, so a figure on the held-out files says how the model does on text it has not seen.

Licences: the standard library is under the PSF License Version 2; NumPy and PyTorch, the packages that are
on every machine which can train, are under BSD-3-Clause.
"""

import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import numpy as np

from ridgeline.demo.heldout import held_out, held_out_texts, read_source, standard_library
from ridgeline.errors import InputError

STANDARD_LIBRARY = "stdlib"
MAX_BYTES = 25_000_000  # of the standard library and the other packages together

# fmt: off
# Folders of other people's packages, of tests, and of files that a program wrote.
SKIPPED_FOLDERS = frozenset((
    "__pycache__", "site-packages", "dist-packages", "_vendor",
    "test", "tests", "idle_test", "testing",
    "artifacts", "generated", "serialized_patterns",
))
# fmt: on
# Tables and data in Python's syntax, relative to their package.
SKIPPED_FILES = (
    "_sysconfigdata_*.py",
    "encodings/*.py",
    "html/entities.py",
    "pydoc_data/*.py",
    "re/_casefix.py",
    "stringprep.py",
    "_numpy/_casting_dicts.py",
    "_core/_add_newdocs*.py",
    "sparse/_triton_ops_meta.py",
)

OVERLAP_TOKENS = 50  # a training file shares no run of this many tokens with a held-out file


@dataclass(frozen=True)
class SourceFile:
    """A Python file: the package it belongs to and its path inside that package."""

    package: str
    name: PurePosixPath
    text: str

    @property
    def size(self) -> int:
        """Bytes of UTF-8."""
        return len(self.text.encode())


@dataclass(frozen=True)
class Corpus:
    training: tuple[SourceFile, ...]
    held_out: tuple[SourceFile, ...]


def collect(packages: Iterable[str] = (), max_bytes: int = MAX_BYTES) -> Corpus:
    """Read the standard library, then files of `packages` while at most `max_bytes` of UTF-8 are taken.

    The same interpreter and packages give the same files in the same order: a package is read in the order
    of its files' hashed names, so a part of it is a fair sample of it. Overlap with the held-out files is
    still in; `without_overlap` removes it once there are tokens.

    Raises InputError when a package is not installed or the budget does not hold the standard library.
    """
    unseen = [SourceFile(STANDARD_LIBRARY, name, text) for name, text in held_out_texts().items()]
    training = [f for f in _read(STANDARD_LIBRARY, standard_library()) if not held_out(f.name)]
    left = max_bytes - sum(file.size for file in training)
    if left < 0:
        raise InputError(
            f"max_bytes={max_bytes} is less than the standard library's {max_bytes - left} bytes: raise it"
        )
    for package in packages:
        for file in _read(package, _folder(package)):
            if file.size <= left:
                training.append(file)
                left -= file.size
    return Corpus(tuple(training), tuple(sorted(unseen, key=_shuffled)))


def without_overlap(
    training: list[np.ndarray], held_out: list[np.ndarray], run: int = OVERLAP_TOKENS
) -> list[int]:
    """Indices of the training files [tokens] that share no run of `run` tokens with any held-out file."""
    seen = np.unique(np.concatenate([_run_hashes(tokens, run) for tokens in held_out]))
    return [i for i, tokens in enumerate(training) if not np.isin(_run_hashes(tokens, run), seen).any()]


def _run_hashes(tokens: np.ndarray, run: int) -> np.ndarray:
    """A 64-bit polynomial hash of every run of `run` tokens; empty when the file is shorter."""
    count = max(0, len(tokens) - run + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(run):
        # unsigned arithmetic wraps, which is the modulus of the hash
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + tokens[offset : offset + count].astype(np.uint64)
    return hashes


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"package {package!r} is not installed: install it or leave it out of the corpus")
    return Path(spec.submodule_search_locations[0])


def _read(package: str, folder: Path) -> list[SourceFile]:
    files = []
    for path in folder.rglob("*.py"):
        name = PurePosixPath(path.relative_to(folder).as_posix())
        if not _skipped(name):
            files.append(SourceFile(package, name, read_source(path)))
    return sorted((file for file in files if file.text), key=_shuffled)


def _skipped(name: PurePosixPath) -> bool:
    in_skipped_folder = not SKIPPED_FOLDERS.isdisjoint(name.parts[:-1])
    return in_skipped_folder or any(fnmatch(str(name), pattern) for pattern in SKIPPED_FILES)


def _shuffled(file: SourceFile) -> bytes:
    return hashlib.sha256(f"{file.package}/{file.name}".encode()).digest()
