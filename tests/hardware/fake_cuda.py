"""A CUDA device of which only the clock is there: work takes the seconds that it says, also in graphs."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch

#: Seconds of a replay beside its calls, and of a clock that the device sleeps.
REPLAY, CLOCK = 7e-6, 1e-9


class FakeCuda:
    """``patch`` puts it in the place of ``torch.cuda``'s functions; ``work`` is a call that takes a while."""

    def __init__(self):
        self.now, self.captured, self.capturing, self.executed = 0.0, None, False, 0

    def work(self, seconds):
        def call():
            if self.capturing:
                self.captured.append(seconds)
            else:
                self.executed += 1
                self.now += seconds

        return call

    def patch(self, monkeypatch):
        cuda, fake = torch.cuda, self

        class Event:
            def __init__(self, enable_timing=False):
                assert enable_timing

            def record(self):
                assert not fake.capturing
                self.at = fake.now

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3

        class Graph:
            def capture_begin(self, pool=None, capture_error_mode="global"):
                fake.capturing, fake.captured = True, []

            def capture_end(self):
                fake.capturing, self.calls = False, fake.captured

            def replay(self):
                fake.now += REPLAY + sum(self.calls)

        @contextmanager
        def stream(given):
            yield given

        class Stream:
            def __init__(self, device=None):
                pass

            def wait_stream(self, other):
                pass

        for name, value in {
            "Event": Event,
            "CUDAGraph": Graph,
            "Stream": Stream,
            "stream": stream,
            "current_stream": Stream,
            "device": lambda device: nullcontext(),
            "synchronize": lambda device=None: None,
            "_sleep": lambda clocks: setattr(fake, "now", fake.now + clocks * CLOCK),
            "mem_get_info": lambda device=None: (100 << 30, 140 << 30),
            "memory_reserved": lambda device=None: 0,
            "empty_cache": lambda: None,
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=1000),
        }.items():
            monkeypatch.setattr(cuda, name, value, raising=False)
        return self
