"""Naive twins of the arithmetic of thread blocks: one block after another."""

import heapq
from math import ceil


def makespan(blocks, units):
    """When the last of ``blocks`` (seconds each) ends, each taken in turn by the unit that is free first."""
    free = [0.0] * units
    for seconds in blocks:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def grid(heads, sequences):
    """Seconds of all blocks in the order of the grid: ``sequences`` are lists of seconds, a tile each."""
    return [seconds for _ in range(heads) for tiles in sequences for seconds in tiles]


def splits(blocks, tiles, slots):
    """The fewest splits of ``tiles`` tiles of keys that fill the slots nearly as well as the best number."""
    if blocks >= 0.8 * slots:
        return 1
    filled = {}
    for n in range(1, min(128, slots, tiles) + 1):
        if n == 1 or ceil(tiles / n) != ceil(tiles / (n - 1)):
            waves = blocks * n / slots
            filled[n] = waves / ceil(waves)
    best = max(filled.values())
    return next(n for n, share in filled.items() if share >= 0.85 * best)
