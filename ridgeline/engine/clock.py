"""Time as the engine sees it: this machine's, or simulated."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since some moment of its own."""

    def now(self) -> float: ...

    def sleep_until(self, moment: float) -> None:
        """Return when it is ``moment``; at once if that has passed."""


class RealClock:
    """This machine's monotonic clock."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        time.sleep(max(0.0, moment - self.now()))


class SimulatedClock:
    """A clock that starts at 0 and moves only by being slept on."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def sleep_until(self, moment: float) -> None:
        self._now = max(self._now, moment)
