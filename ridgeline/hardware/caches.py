"""The data caches of this machine as its operating system lists them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}


@dataclass(frozen=True)
class Cache:
    """A level of cache: ``size`` bytes in each of ``instances``, which cores share or own."""

    level: int
    size: int
    instances: int

    @property
    def name(self) -> str:
        return f"L{self.level}"

    def capacity(self, threads: int) -> int:
        """Bytes that ``threads`` busy cores have together: each reaches one instance."""
        return self.size * min(self.instances, threads)


def caches_of_linux(root: Path, cpus: Iterable[int]) -> tuple[Cache, ...]:
    """The caches that these processors reach, from ``cpu*/cache/index*`` below ``root`` (the kernel's
    Documentation/ABI/testing/sysfs-devices-system-cpu); the smallest size where cores differ."""
    sizes: dict[int, dict[str, int]] = {}
    for cpu in cpus:
        for level, shared_by, size in _listed(root / f"cpu{cpu}" / "cache"):
            sizes.setdefault(level, {})[shared_by] = size
    return tuple(
        Cache(level, min(by_cores.values()), len(by_cores)) for level, by_cores in sorted(sizes.items())
    )


def _listed(folder: Path) -> Iterator[tuple[int, str, int]]:
    """Level, sharing processors and bytes of each data cache; what cannot be read is left out."""
    for index in sorted(folder.glob("index*")):
        try:
            kind, level, shared_by, size = (
                (index / name).read_text().strip() for name in ("type", "level", "shared_cpu_list", "size")
            )
            if kind != "Instruction":
                yield int(level), shared_by, _bytes(size)
        except (OSError, ValueError):
            continue


def _bytes(size: str) -> int:
    """The bytes of a size such as 512K. Raises ValueError if it is none or zero."""
    unit = UNITS.get(size[-1:], 1)
    count = int(size.rstrip("KMG")) * unit
    if count <= 0:
        raise ValueError(size)
    return count


def caches_of_mac(cores: int) -> tuple[Cache, ...]:
    """The caches of the fast cores of a Mac (``sysctl hw.perflevel0``), or of all where they are alike."""
    found = []
    for level, name in ((1, "l1dcachesize"), (2, "l2cachesize"), (3, "l3cachesize")):
        size = sysctl(f"hw.perflevel0.{name}") or sysctl(f"hw.{name}")
        shared_by = {1: 1, 2: sysctl("hw.perflevel0.cpusperl2") or 1, 3: cores}[level]
        if size:
            found.append(Cache(level, size, max(cores // shared_by, 1)))
    return tuple(found)


def sysctl(name: str, read: Callable[[str], T] = int) -> T | None:
    """A value that macOS (or a BSD) knows by that name, or None."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True, timeout=5)
        return read(done.stdout.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
