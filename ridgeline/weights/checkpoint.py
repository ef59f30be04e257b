"""The weights of a model folder: which tensors there are, and each as a view of the memory-mapped file."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from ridgeline.errors import InputError
from ridgeline.weights.files import is_there, read_json, unreadable
from ridgeline.weights.safetensors_header import ITEM_BYTES, TensorInfo, read_header

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
#: The same of a model of diffusers.
DIFFUSION_PREFIX = "diffusion_pytorch_"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

_ADVICE = "do config.json and the weights belong to the same model?"

# The pages of a private writable mapping count as memory the process may come to need, and Linux refuses a
# mapping larger than memory and swap together. Weights are hardly ever written, so don't reserve: a file
# larger than memory must map. Python's mmap names this flag only from 3.13 on; the value is Linux's
# (asm-generic/mman-common.h).
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder's ``model.safetensors``, or of the shards its index names; diffusers' files
    have a prefix to these names."""

    source: Path
    """``model.safetensors`` or ``model.safetensors.index.json``."""
    tensors: dict[str, TensorInfo]
    _mappings: dict[Path, mmap.mmap] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers of the weights in ``folder``; no data is read yet.

        In a sharded checkpoint the index decides: a tensor that a shard holds without being listed is left
        out. Raises InputError if there are no safetensors weights, or if a file is missing, truncated,
        inconsistent, or lacks a tensor that the index says it holds.
        """
        folder = Path(folder)
        for prefix in ("", DIFFUSION_PREFIX):
            single, index = (folder / f"{prefix}{file}" for file in (SINGLE_FILE, INDEX_FILE))
            if is_there(single):
                return cls(single, read_header(single))
            if is_there(index):
                return cls(index, _read_shards(index))
        raise _no_weights(folder)

    def names(self) -> tuple[str, ...]:
        """The names of all tensors, in file order."""
        return tuple(self.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def info(self, name: str) -> TensorInfo:
        """File, dtype and shape of a tensor. Raises InputError if the checkpoint lacks it."""
        if name not in self.tensors:
            raise InputError(f"{self._missing(name)}: {_ADVICE}")
        return self.tensors[name]

    def expect(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        """The tensor's info. Raises InputError if the checkpoint lacks it or its shape is another."""
        if name not in self.tensors:
            raise InputError(f"{self._missing(name)}, expected one of shape {list(shape)}: {_ADVICE}")
        info = self.tensors[name]
        if info.shape != tuple(shape):
            raise InputError(
                f"{info.file}: tensor {name!r}: expected shape {list(shape)}, found {list(info.shape)}:"
                f" {_ADVICE}"
            )
        return info

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as stored: a view of the mapped file, in its own shape and dtype, on the CPU.

        Takes no anonymous memory: pages are read from the file when touched and can be dropped again. Writing
        to the tensor copies the pages written, privately; the file never changes. Data that does not lie at a
        multiple of its element's size (old files) is copied, because kernels rely on it.

        Raises InputError if the checkpoint lacks the tensor or the file has shrunk since it was opened.
        """
        import torch

        info = self.info(name)
        dtype = getattr(torch, info.dtype)
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        mapping = self._mapping(info.file)
        if info.offset + info.nbytes > len(mapping):
            raise InputError(
                f"{info.file} has changed since it was opened: tensor {name!r} ends at byte"
                f" {info.offset + info.nbytes}, found {len(mapping)} bytes; load the model again"
            )
        data = torch.frombuffer(mapping, dtype=torch.uint8, count=info.nbytes, offset=info.offset)
        if info.offset % ITEM_BYTES[info.dtype]:
            data = data.clone()
        return data.view(dtype).view(info.shape)

    def _mapping(self, file: Path) -> mmap.mmap:
        if file not in self._mappings:
            try:
                with open(file, "rb") as stream:
                    self._mappings[file] = mmap.mmap(
                        stream.fileno(),
                        0,
                        flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                        prot=mmap.PROT_READ | mmap.PROT_WRITE,
                    )
            except (OSError, ValueError) as error:  # ValueError: the file is empty by now
                raise InputError(
                    f"{file} cannot be mapped into memory ({error}): load the model again"
                ) from None
        return self._mappings[file]

    def _missing(self, name: str) -> str:
        files = list(dict.fromkeys(info.file.name for info in self.tensors.values()))
        if self.source.name == INDEX_FILE:
            where = f"{self.source} ({_shorten(files)})"
        else:
            where = str(self.source)
        close = get_close_matches(name, self.tensors, n=1)
        return f"{where}: no tensor {name!r}" + (f" (closest: {close[0]!r})" if close else "")


def _read_shards(index: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{index} has no `weight_map` from tensor to file name: download it again")
    shards = {}
    for shard in dict.fromkeys(weight_map.values()):
        file = index.parent / shard
        if Path(shard).name != shard:
            raise InputError(f"{index} names the shard {shard!r}, expected a file name without a folder")
        if not is_there(file):
            raise InputError(
                f"{index} names the shard {shard}, which is missing from {index.parent}: download it"
            )
        shards[shard] = read_header(file)
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise InputError(
                f"{index.parent / shard}: no tensor {name!r}, which {index.name} says is there:"
                " download both again"
            )
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def _no_weights(folder: Path) -> InputError:
    if not folder.is_dir():
        return InputError(f"{folder} is not a folder: give a folder with {SINGLE_FILE}")
    try:
        found = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return unreadable(folder, error)
    pickles = [name for name in found if name.endswith(PICKLE_SUFFIXES)]
    others = [name for name in found if name.endswith(".safetensors")]
    if others:
        return InputError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}, only {_shorten(others)}:"
            " is it a whole model?"
        )
    if pickles:
        return InputError(
            f"{folder} has its weights only as pickle ({_shorten(pickles)}), which can run any code when"
            " read and is refused: convert it to safetensors (save_pretrained of transformers writes it)"
        )
    return InputError(f"{folder} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is there")


def _shorten(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])
