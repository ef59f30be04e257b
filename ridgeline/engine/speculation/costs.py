"""What drafting and verifying take, as measured in the engine's own steps."""

from __future__ import annotations

import statistics
from bisect import bisect_left, insort
from collections import deque

#: Of so many measurements of alike work the median counts: stalls leave it alone, and it follows the context.
RECENT = 9


class Costs:
    """Seconds of work of a ``size`` for a ``batch`` of sequences, from measurements of such work; of sizes
    that were not measured, on the line through their neighbours."""

    def __init__(self) -> None:
        self._recent: dict[tuple[int, int], deque[float]] = {}
        self._medians: dict[tuple[int, int], float] = {}
        self._sizes: dict[int, list[int]] = {}

    def add(self, batch: int, size: int, seconds: float) -> None:
        key = batch, size
        if key not in self._recent:
            self._recent[key] = deque(maxlen=RECENT)
            insort(self._sizes.setdefault(batch, []), size)
        self._recent[key].append(seconds)
        self._medians[key] = statistics.median(self._recent[key])

    def measured(self, batch: int, size: int) -> float | None:
        """Seconds of just that work, None if there has been none."""
        return self._medians.get((batch, size))

    def seconds(self, batch: int, size: int) -> float | None:
        """The same, estimated if need be; None if there has been none of that batch.

        Beyond all sizes the line goes on, but does not fall; with a single size it is flat, which is
        optimistic, so that larger ones are tried.
        """
        if (batch, size) in self._medians:
            return self._medians[batch, size]
        sizes = self._sizes.get(batch)
        if sizes is None:
            return None
        if len(sizes) == 1:
            return self._medians[batch, sizes[0]]
        place = min(max(bisect_left(sizes, size), 1), len(sizes) - 1)
        low, high = sizes[place - 1], sizes[place]
        a, b = self._medians[batch, low], self._medians[batch, high]
        slope = (b - a) / (high - low)
        return a + slope * (size - low) if size < high else b + max(slope, 0.0) * (size - high)

    def nearest(self, batch: int) -> int | None:
        """The batch nearest to ``batch`` of which anything was measured."""
        return min(self._sizes, key=lambda known: abs(known - batch), default=None)
