"""How fast a file that is not in memory is read, in order, from the folder where caches are kept."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter

from ridgeline.hardware.timing import Probe

FIGURE = "storage_bandwidth"
#: Bytes asked for at a time.
BLOCK = 1 << 23
#: The file takes at most this share of the free space, and what is written in this time.
SHARE_OF_FREE, SECONDS_OF_WRITING = 0.25, 0.6


@contextmanager
def storage_probes(folder: Path, nbytes: int) -> Iterator[list[Probe]]:
    """Two ways to read a file of at most ``nbytes`` from the drive: through the page cache, from which
    it was dropped, and past it (O_DIRECT). No probes where that cannot be had: outside Linux, without
    room, or on a file system that keeps its files in memory.

    The file loses its name as soon as it is open, so that nothing is left behind however the process ends.
    """
    with ExitStack() as opened:
        try:
            probes = _probes(opened, folder, nbytes) if hasattr(os, "RWF_NOWAIT") else []
        except OSError:
            probes = []
        yield probes


def _probes(opened: ExitStack, folder: Path, nbytes: int) -> list[Probe]:
    folder.mkdir(parents=True, exist_ok=True)
    cached, path = tempfile.mkstemp(dir=folder)
    opened.callback(os.close, cached)
    os.unlink(path)
    room = int(shutil.disk_usage(folder).free * SHARE_OF_FREE)
    blocks = _write(cached, min(nbytes, room) // BLOCK)
    if blocks == 0 or not _can_drop(cached):
        return []
    buffer = mmap.mmap(-1, BLOCK)  # on a page boundary, as reading past the page cache demands

    def read(descriptor: int) -> None:
        for i in range(blocks):
            os.preadv(descriptor, [buffer], i * BLOCK)

    def drop() -> tuple[int]:
        _drop(cached)
        return (cached,)

    probes = [Probe(FIGURE, read, blocks * BLOCK, drop)]
    try:
        direct = os.open(f"/proc/self/fd/{cached}", os.O_RDONLY | os.O_DIRECT)
    except OSError:  # the file system has no such reads
        return probes
    opened.callback(os.close, direct)
    return [*probes, Probe(FIGURE, read, blocks * BLOCK, lambda: (direct,))]


def _write(descriptor: int, blocks: int) -> int:
    """Write random blocks through to the drive, as many as time allows; returns how many."""
    block = os.urandom(BLOCK)
    begin = perf_counter()
    for done in range(blocks):
        if perf_counter() - begin > SECONDS_OF_WRITING:
            return done
        if os.write(descriptor, block) < BLOCK:
            raise OSError("the drive is full")
        os.fdatasync(descriptor)
    return blocks


def _drop(descriptor: int) -> None:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _can_drop(descriptor: int) -> bool:
    """Whether the file leaves memory when asked to: a read that may not wait then finds nothing."""
    _drop(descriptor)
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    return False
