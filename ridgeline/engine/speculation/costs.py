"""What drafting and verifying take, as measured in the engine's own steps."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

#: Of so many measurements of alike work the lower quartile counts: stalls leave it alone, on a busy machine,
#: too, and it follows the context.
RECENT = 9
#: Measurements after which one is forgotten, so that what it says is tried again.
STALE = 256


class Costs:
    """Seconds of work of a ``size`` for a ``batch`` of sequences, from measurements of such work; of sizes
    that were not measured, on the line through their neighbours. Where a single size was measured, twice its
    size takes ``growth`` more of its time."""

    def __init__(self, growth: float) -> None:
        self._growth = growth
        self._recent: dict[tuple[int, int], deque[float]] = {}
        self._quartiles: dict[tuple[int, int], float] = {}
        self._sizes: dict[int, list[int]] = {}
        self._turns: dict[tuple[int, int], int] = {}
        self._turn = 0

    def add(self, batch: int, size: int, seconds: float) -> None:
        key = batch, size
        if key not in self._recent:
            self._recent[key] = deque(maxlen=RECENT)
            insort(self._sizes.setdefault(batch, []), size)
        elif not self.is_fresh(batch, size):
            self._recent[key].clear()
        self._recent[key].append(seconds)
        self._quartiles.pop(key, None)
        self._turns[key] = self._turn
        self._turn += 1

    def is_fresh(self, batch: int, size: int) -> bool:
        """Whether such work was measured, and not long ago."""
        turn = self._turns.get((batch, size))
        return turn is not None and self._turn - turn <= STALE

    def samples(self, batch: int, size: int) -> int:
        """How many times such work was measured not long ago, RECENT at most."""
        return len(self._recent[batch, size]) if self.is_fresh(batch, size) else 0

    def measured(self, batch: int, size: int) -> float | None:
        """Seconds of such work, however long ago it was measured; None if it never was."""
        return self._quartile(batch, size) if (batch, size) in self._recent else None

    def fastest(self, batch: int, size: int) -> float | None:
        """The fewest seconds of such work of late, None if it never was measured."""
        return min(self._recent[batch, size]) if (batch, size) in self._recent else None

    def seconds(self, batch: int, size: int) -> float | None:
        """Seconds by what was measured not long ago, on a line that never falls beyond all sizes; None if
        there was none of that batch. A single measurement, which may have stalled, counts where there is
        nothing else."""
        fresh = [known for known in self._sizes.get(batch, ()) if self.is_fresh(batch, known)]
        sizes = [known for known in fresh if len(self._recent[batch, known]) > 1] or fresh
        if not sizes:
            return None
        if len(sizes) == 1:
            [known] = sizes
            return self._quartile(batch, known) * (1 + self._growth * (size - known) / known)
        place = min(max(bisect_left(sizes, size), 1), len(sizes) - 1)
        low, high = sizes[place - 1], sizes[place]
        at_low, at_high = self._quartile(batch, low), self._quartile(batch, high)
        slope = (at_high - at_low) / (high - low)
        return at_low + slope * (size - low) if size <= high else at_high + max(slope, 0.0) * (size - high)

    def nearest(self, batch: int) -> int | None:
        """The batch nearest to ``batch`` of which anything was measured not long ago."""
        fresh = {known for known, size in self._turns if self.is_fresh(known, size)}
        return min(fresh, key=lambda known: abs(known - batch), default=None)

    def _quartile(self, batch: int, size: int) -> float:
        key = batch, size
        if key not in self._quartiles:
            self._quartiles[key] = sorted(self._recent[key])[len(self._recent[key]) // 4]
        return self._quartiles[key]
