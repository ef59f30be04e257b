"""Tile sizes, warps and pipeline stages of the kernels, stored for each generation of GPUs.

``configurations.toml`` has a table a generation, by compute capability, and ``default`` for all others, small
enough for the shared memory of any GPU that Triton supports. ``ridgeline tune`` writes entries of one device
to ``<cache>/ridgeline/gpu/NAME.toml``, which go before the package's. Nothing is tuned while a model runs.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.triton.runtime import OPTIONS, is_interpreted

#: Keys of a split: the same for every head size and device, since it fixes the order of a row's sums. The
#: interpreter is slow, so that its splits are short.
SPLIT = 64 if is_interpreted() else 512


@dataclass(frozen=True)
class Tiles:
    """A kernel's tile: ``m`` rows, ``n`` columns (keys, or outputs), ``k`` inner elements where it has them;
    and its warps and pipeline stages.

    ``bulk`` is 1 where keys and values are copied by tensor descriptors. ``resident`` is how many programs of
    a grid of one size a multiprocessor gets.
    """

    m: int
    n: int
    warps: int
    stages: int
    k: int = 0
    bulk: int = 0
    resident: int = 2

    def options(self, *, fused: bool = True) -> dict[str, int]:
        """Those of a launch. ``fused``: a multiplication and an addition may become one instruction."""
        return {**OPTIONS, "num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": fused}


#: What the interpreter runs: small, so that short inputs make several tiles.
INTERPRETED = Tiles(16, 32, 1, 1, 32)
_INTERPRETED_PROCESSORS = 4


def tiles(kernel: str, size: int, itemsize: int, device: torch.device) -> Tiles:
    """The tile of ``kernel`` for heads (or rows) of ``size`` elements of ``itemsize`` bytes.

    A table's entries are named KERNEL-BYTES-SIZE, for sizes up to that one; the first that is not smaller
    is taken.
    """
    if tried := _lookup(_trying, kernel, size, itemsize):
        return tried
    if is_interpreted():
        return INTERPRETED
    name, capability = _device(device.index or 0)
    found = _lookup(_tuned(name), kernel, size, itemsize)
    stored = _stored()
    found = found or _lookup(stored.get(_generation(capability), {}), kernel, size, itemsize)
    found = found or _lookup(stored["default"], kernel, size, itemsize)
    if found is None:
        raise InputError(f"no configuration of {kernel} for heads of {size} elements of {itemsize} bytes")
    return found


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; a few where it is interpreted."""
    return _INTERPRETED_PROCESSORS if is_interpreted() else _processors(device.index or 0)


def programs(tile: Tiles, device: torch.device) -> int:
    """Programs of a grid that is of one size whatever there is to do."""
    return 3 if is_interpreted() else tile.resident * processors(device)


#: What is being tried out, by entry.
_trying: dict[str, Tiles] = {}


@contextmanager
def trying(entry: str, tile: Tiles) -> Iterator[None]:
    """Inside, ``tile`` serves the calls of that entry, like attention-2-128, whatever is stored."""
    _trying[entry] = tile
    try:
        yield
    finally:
        del _trying[entry]


def tuned_path(name: str) -> Path:
    """Where what was tuned for the GPU of that name is kept."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ridgeline" / "gpu" / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".toml")


def parse(table: dict[str, Any]) -> dict[str, Tiles]:
    """Configurations by name. Raises InputError that names an entry that is none."""
    known = {f.name for f in fields(Tiles)}
    found = {}
    for name, entry in table.items():
        try:
            if not set(entry) <= known or not all(isinstance(x, int) for x in entry.values()):
                raise TypeError
            found[name] = Tiles(**entry)
        except TypeError:
            raise InputError(f"configuration {name} is {entry!r}; give m, n, warps and stages") from None
    return found


def _lookup(table: dict[str, Tiles], kernel: str, size: int, itemsize: int) -> Tiles | None:
    prefix = f"{kernel}-{itemsize}-"
    sizes = sorted(int(name.removeprefix(prefix)) for name in table if name.startswith(prefix))
    fitting = [s for s in sizes if s >= size]
    return table[f"{prefix}{fitting[0]}"] if fitting else None


def _generation(capability: tuple[int, int]) -> str:
    if capability in ((8, 6), (8, 9)):
        return "ada"
    return {8: "ampere", 9: "hopper", 10: "blackwell"}.get(capability[0], "default")


@cache
def _device(index: int) -> tuple[str, tuple[int, int]]:
    return torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)


@cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@cache
def _stored() -> dict[str, dict[str, Tiles]]:
    text = files("ridgeline.kernels.triton").joinpath("configurations.toml").read_text(encoding="utf-8")
    return {generation: parse(table) for generation, table in tomllib.loads(text).items()}


@cache
def _tuned(name: str) -> dict[str, Tiles]:
    path = tuned_path(name)
    if not path.exists():
        return {}
    try:
        return parse(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}; delete it, or run ridgeline tune again") from None
