"""How ``benchmarks.gpu`` times a call: events on a busy device, and inputs that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

#: Events of one contestant in one case, and the seconds that they may take together.
SAMPLES, SECONDS = 50, 0.6
#: Tensors of a ring are at least this many times the L2 cache; there are so many at most, of so many bytes.
RING, MOST_INPUTS, MOST_BYTES = 3, 31, 16 << 30
#: For how many clocks the device is kept busy while the host launches: about a millisecond.
BUSY_CLOCKS = 2_000_000


def ring_of(
    inputs: Callable[[torch.Generator], tuple[Any, ...]], device: torch.device
) -> list[tuple[Any, ...]]:
    """So many inputs that together they do not fit the L2 cache."""
    generator = torch.Generator(device).manual_seed(1)
    first = inputs(generator)
    held = max(sum(x.nbytes for x in first if hasattr(x, "nbytes")), 1)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    more = min(MOST_INPUTS, RING * cache // held, MOST_BYTES // held)
    return [first] + [inputs(generator) for _ in range(more)]


def seconds_a_call(call: Callable[..., Any], ring: list[tuple[Any, ...]]) -> float:
    """The median over events around each call, after warming up."""
    for inputs in (*ring, *ring[:2]):  # a peer may make something of its inputs once
        call(*inputs)
    torch.cuda.synchronize()
    begin, samples = time.perf_counter(), []
    while len(samples) < SAMPLES and (time.perf_counter() - begin < SECONDS or len(samples) < 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The device is kept busy while the host launches, so that launches are not in the time.
        torch.cuda._sleep(BUSY_CLOCKS)
        start.record()
        call(*ring[len(samples) % len(ring)])
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1e3)
    return statistics.median(samples)


def step_seconds(step: Callable[[], Any], steps: int = 30) -> float:
    """The median of whole steps by the host's clock, each waited for, after warming up."""
    samples = []
    for i in range(steps + 5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        step()
        torch.cuda.synchronize()
        if i >= 5:
            samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copying a few gigabytes."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_a_call(target.copy_, [(source,)])
