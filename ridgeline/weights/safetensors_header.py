"""Reading and checking the header of a safetensors file.

The file is 8 bytes of little-endian header length N, N bytes of JSON, then the tensors' data. The JSON maps
a tensor's name to its dtype, shape and [begin, end) in the data, and ``__metadata__`` to free text. The
tensors cover the data exactly, without overlap or hole.
Format: https://huggingface.co/docs/safetensors
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ridgeline.errors import InputError
from ridgeline.weights.files import LFS_POINTER

# The format's dtype code -> (PyTorch's name, bytes an element).
DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}
ITEM_BYTES = dict(DTYPES.values())

# The limit of the safetensors library itself; a larger length means that the file is something else.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file, without its data."""

    name: str
    file: Path
    dtype: str
    """PyTorch's name of the dtype, such as ``bfloat16``."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file to the first element."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, in the order of the header.

    Raises InputError if the file is unreadable, truncated or inconsistent; then none of it is to be trusted.
    """
    header, data_bytes = _read_header_bytes(file)
    data_start = 8 + len(header)
    tensors = {}
    for name, entry in _parse_object(file, header).items():
        if name != "__metadata__":
            tensors[name] = _parse_entry(file, name, entry, data_start)
    _check_layout(file, tensors, data_start, data_bytes)
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """The free text of a safetensors file, by key; empty if there is none.

    Raises InputError if the header is unreadable, truncated or broken, or the text is not by key.
    """
    metadata = _parse_object(file, _read_header_bytes(file)[0]).get("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        raise InputError(f"{file} has a broken header (`__metadata__` is not text by key): download it again")
    return metadata


def _read_header_bytes(file: Path) -> tuple[bytes, int]:
    """The JSON header and the number of data bytes that follow it."""
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            if (prefix + stream.read(len(LFS_POINTER) - 8)).startswith(LFS_POINTER):
                raise InputError(
                    f"{file} is a Git LFS pointer, not weights: run `git lfs pull` in {file.parent}"
                )
            if size < 8:
                raise InputError(
                    f"{file} is truncated: {size} bytes, no safetensors header; download it again"
                )
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES:
                raise InputError(
                    f"{file} is not a safetensors file: it claims a header of {length} bytes,"
                    f" the limit is {MAX_HEADER_BYTES}; download it again"
                )
            if 8 + length > size:
                raise InputError(
                    f"{file} is truncated: expected a header of {length} bytes, found {size - 8};"
                    " download it again"
                )
            stream.seek(8)
            return stream.read(length), size - 8 - length
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}): check the path and its permissions"
        ) from None


def _parse_object(file: Path, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name appears twice")
        return found

    try:
        value = json.loads(header.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} has a broken header ({error}): download it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{file} has a broken header (not a JSON object): download it again")
    return value


def _parse_entry(file: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    fields = entry if isinstance(entry, dict) else {}
    code, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(code, str) and _is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2):
        raise InputError(
            f"{file}: tensor {name!r} is described wrongly in the header"
            " (expected a dtype, a shape and two data_offsets): download the file again"
        )
    if code not in DTYPES:
        raise InputError(f"{file}: tensor {name!r} has dtype {code!r}; known are {', '.join(DTYPES)}")
    info = TensorInfo(name, file, DTYPES[code][0], tuple(shape), data_start + offsets[0])
    if offsets[1] - offsets[0] != info.nbytes:
        raise InputError(
            f"{file}: tensor {name!r} of {code} {shape} needs {info.nbytes} bytes,"
            f" found data_offsets {offsets} for {offsets[1] - offsets[0]}: download the file again"
        )
    return info


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(file: Path, tensors: dict[str, TensorInfo], data_start: int, data_bytes: int) -> None:
    """Raise InputError unless the tensors follow one another and fill the data exactly."""
    ordered = sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes))
    expected = data_start
    for info in ordered:
        end = info.offset - data_start + info.nbytes
        if end > data_bytes:
            raise InputError(
                f"{file} is truncated or broken: tensor {info.name!r} ends at byte {end} of the data,"
                f" found {data_bytes} bytes of data; download it again"
            )
        if info.offset != expected:
            fault = "overlaps the tensor before it" if info.offset < expected else "leaves a hole before it"
            raise InputError(
                f"{file} has a broken header: tensor {info.name!r} {fault}"
                f" (expected byte {expected - data_start} of the data, found {info.offset - data_start}):"
                " download it again"
            )
        expected += info.nbytes
    described = expected - data_start
    if described != data_bytes:
        raise InputError(
            f"{file}: the header describes {described} bytes of data, found {data_bytes}: download it again"
        )
