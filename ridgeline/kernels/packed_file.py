"""Packed weights in a file that is mapped into memory: it opens at once, and processes share its pages.

The file is safetensors. Each weight is a tensor of bytes under its own name, at a multiple of 64 bytes, as
the kernels read it in place. ``__metadata__`` says under ``ridgeline.packed`` which version of the layout
that is and what each weight's bytes stand for; beside it is what the caller gave.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ridgeline.errors import InputError
from ridgeline.kernels.linear import PackedLinear
from ridgeline.weights.checkpoint import Checkpoint
from ridgeline.weights.safetensors_header import read_header, read_metadata

#: Of ``csrc/linear/layout.h``: raised with every change to where a packed weight keeps its numbers.
LAYOUT_VERSION = 1
#: A cache line. Every layout's bytes are a multiple, so weights lie on lines one after another.
ALIGNMENT = 64

_KEY = "ridgeline.packed"


@dataclass(frozen=True, eq=False)
class PackedFile(Mapping[str, PackedLinear]):
    """The weights of a packed file by name, each a view of the mapped file, and the caller's metadata."""

    path: Path
    weights: Mapping[str, PackedLinear]
    metadata: Mapping[str, str]

    def __getitem__(self, name: str) -> PackedLinear:
        return self.weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def save_packed(
    path: Path | str, weights: Mapping[str, PackedLinear], metadata: Mapping[str, str] | None = None
) -> None:
    """Write packed weights and ``metadata`` (text by key) to ``path``, which is replaced when all is written.

    Raises InputError for what is no packed weight or no text, for a reserved name, and where the system
    refuses to write.
    """
    path = Path(path)
    header = _header(weights, metadata or {})
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(unfinished, "wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            for packed in weights.values():
                stream.write(memoryview(packed.data.numpy()))
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another place") from None


def open_packed(path: Path | str) -> PackedFile:
    """The weights of a file that :func:`save_packed` wrote, mapped into memory.

    No weight is read before it is used, and none takes anonymous memory; the file must not change while its
    weights are in use.

    Raises InputError if the file is unreadable, truncated, not of packed weights, of another version of
    the layout, or inconsistent.
    """
    path = Path(path)
    tensors = read_header(path)
    metadata = read_metadata(path)
    described = _described(path, metadata.pop(_KEY, None))
    if described.keys() != tensors.keys():
        odd = sorted(described.keys() ^ tensors.keys())[0]
        raise InputError(f"{path} has no bytes or no description of {odd!r}: pack the model again")
    checkpoint = Checkpoint(path, tensors)
    weights = {name: _weight(checkpoint, name, described[name]) for name in tensors}
    return PackedFile(path, weights, metadata)


def _header(weights: Mapping[str, PackedLinear], metadata: Mapping[str, str]) -> bytes:
    """The safetensors header, padded so that the data after it begins at a multiple of the alignment."""
    for key, text in metadata.items():
        if not (isinstance(key, str) and isinstance(text, str)) or key == _KEY:
            raise InputError(f"metadata has {key!r}: {text!r}; give text by key, and not {_KEY!r}")
    described, entries, end = {}, {}, 0
    for name, packed in weights.items():
        if not isinstance(packed, PackedLinear) or not isinstance(name, str) or name == "__metadata__":
            raise InputError(f"weights has {name!r}: {type(packed).__name__}; give packed weights by name")
        described[name] = {"shape": packed.shape, "format": packed.format, "gated": packed.gated}
        begin, end = end, end + packed.nbytes
        entries[name] = {"dtype": "U8", "shape": [packed.nbytes], "data_offsets": [begin, end]}
    table = json.dumps({"version": LAYOUT_VERSION, "weights": described})
    header = json.dumps({"__metadata__": {**metadata, _KEY: table}, **entries}).encode()
    return header + b" " * (-(8 + len(header)) % ALIGNMENT)


def _described(path: Path, table: str | None) -> dict[str, Any]:
    """What the weights' bytes stand for, by name, as far as it is of this version."""
    if table is None:
        raise InputError(f"{path} holds no packed weights; give a file that save_packed wrote")
    try:
        read = json.loads(table)
        version, weights = read["version"], read["weights"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"{path} has a broken table of packed weights: pack the model again") from None
    if version != LAYOUT_VERSION:
        raise InputError(
            f"{path} was packed in version {version!r} of the layout, and this is version {LAYOUT_VERSION}: "
            "pack the model again"
        )
    if not isinstance(weights, dict):
        raise InputError(f"{path} has a broken table of packed weights: pack the model again")
    return weights


def _weight(checkpoint: Checkpoint, name: str, described: Any) -> PackedLinear:
    where = f"{checkpoint.source}: weight {name!r}"
    info = checkpoint.info(name)
    match described:
        # No format takes less than half a byte a number, and C++ could not hold sizes beyond all measure.
        case {"shape": [int(out), int(inputs)], "format": str(format), "gated": bool(gated)} if (
            out * inputs <= 2 * info.nbytes
        ):
            pass
        case _:
            raise InputError(f"{where} is described wrongly (expected shape, format, gated): pack it again")
    if info.offset % ALIGNMENT:
        raise InputError(f"{where} begins at no multiple of {ALIGNMENT} bytes: write it with save_packed")
    try:
        return PackedLinear(checkpoint.tensor(name), (out, inputs), format, gated)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
