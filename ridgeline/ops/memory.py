"""Keeping the memory that activations free, instead of asking the system for it again.

glibc gives every tensor of 128 KiB and more pages of its own, at first, and takes each page's fault
anew at every step: a third of a short prefill. Kept on the heap, the same pages serve the next
operator. Large weights stay outside the heap, so they are given back when a model is dropped.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

#: mallopt's names for its parameters (glibc's malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: Bytes from which an allocation has pages of its own, and bytes that may lie free on the heap.
OWN_PAGES, KEPT_FREE = 16 << 20, 256 << 20


@cache
def keep_freed_memory() -> bool:
    """Set the process's allocator so, once; False where it is not glibc's."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, OWN_PAGES) and mallopt(M_TRIM_THRESHOLD, KEPT_FREE))
