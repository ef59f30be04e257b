"""The time of operators on a GPU: events around each, on a device that is kept busy while the host issues
them.

Operators are issued one by one, slower than the device runs most of them. So that an event is not recorded
long before its operator comes, the device sleeps at the beginning of every few operators, for longer than
the host needs to issue those. What two events take by themselves is subtracted.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from ridgeline.ops.profile import OpTime, Profile, name_of

#: Operators that are issued behind one sleep, and its clocks: about 5 ms.
TOGETHER, SLEEP_CLOCKS = 32, 10_000_000
#: Pairs of events from which follows what they take.
PAIRS = 20


class GpuProfile(Profile):
    """A profile whose seconds are the device's."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._noted: list[tuple[int, str, torch.cuda.Event, torch.cuda.Event]] = []

    def _timed(self, method: str, *args: Any, **options: Any) -> Any:
        if len(self._noted) % TOGETHER == 0:
            torch.cuda._sleep(SLEEP_CLOCKS)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = getattr(self.inner, method)(*args, **options)
        end.record()
        name = name_of(method, *args, **options)
        self._noted.append((self._fold.note(name), name, start, end))
        return result

    def take(self) -> list[OpTime]:
        torch.cuda.synchronize()
        beside = _empty_pair()
        for number, name, start, end in self._noted:
            if number == len(self.records):
                self.records.append(OpTime(name))
            self.records[number].seconds.append(max(start.elapsed_time(end) / 1e3 - beside, 0.0))
        self._noted = []
        return super().take()


def _empty_pair() -> float:
    """Seconds between two events with nothing in between."""
    torch.cuda._sleep(SLEEP_CLOCKS // 10)
    pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(PAIRS)]
    for start, end in pairs:
        start.record()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3
