"""A measured machine whose memory has moved: its kernels' times at another rate of memory.

On a virtual machine memory moves by half, in steps, from one minute to the next: neighbours come and go,
and the host puts the cores on one die or on two. What a kernel takes is then no single number: the part that
waits for memory goes by the rate of the moment, the rest does not.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from ridgeline.hardware.device import Device, Level
from ridgeline.hardware.kernels import Affine, AttendCurve, Kernels, LinearTable

#: How computing and waiting for memory overlap: seconds are (computing^p + memory^p)^(1/p).
OVERLAP = 4.0


def at_memory_rate(seconds: float, cached: float, ratio: float, most: float = inf) -> float:
    """What takes ``seconds``, and ``cached`` seconds when caches serve it, where memory is ``ratio`` times as
    fast. ``most`` is how long memory alone needs for what is read. What is no slower than from caches does
    not wait for memory."""
    if seconds <= cached:
        return seconds
    waiting = min(_less(seconds, cached), most)
    rest = _less(seconds, min(waiting, seconds))
    return (rest**OVERLAP + (waiting / ratio) ** OVERLAP) ** (1 / OVERLAP)


def _less(both: float, one: float) -> float:
    """The other of two that overlap and take ``both`` together."""
    return (both**OVERLAP - one**OVERLAP) ** (1 / OVERLAP)


def device_at(device: Device, rate: float) -> Device:
    """The measured machine as it is while its memory is read at ``rate`` bytes/s: the times of kernels that
    wait for memory, and memory's bandwidth. One whose file does not say at what rate it was measured stays as
    it is."""
    kernels = Kernels.from_dict(device.kernels)
    if not kernels.memory:
        return device
    ratio = rate / kernels.memory
    *caches, memory = device.levels
    moved = Level(memory.name, memory.capacity, memory.bandwidth * ratio)
    # What holds for memory holds for a cache in front of it.
    nearer = [Level(c.name, c.capacity, max(c.bandwidth, moved.bandwidth)) for c in caches]
    return replace(device, levels=(*nearer, moved), kernels=kernels_at(kernels, rate).to_dict())


def kernels_at(kernels: Kernels, rate: float) -> Kernels:
    """The kernels as they are while memory is read at ``rate`` bytes/s. Rows of a table, which lie anywhere,
    wait for memory's latency, not for its rate."""
    ratio = rate / kernels.memory
    return replace(
        kernels,
        memory=rate,
        linear={format: _linear(table, kernels.memory, rate) for format, table in kernels.linear.items()},
        attend={format: _attend(curve, ratio) for format, curve in kernels.attend.items()},
        simple={
            format: {
                kind: affine if kind.startswith("embed") else _affine(affine, ratio)
                for kind, affine in kinds.items()
            }
            for format, kinds in kernels.simple.items()
        },
    )


def _linear(table: LinearTable, then: float, rate: float) -> LinearTable:
    def moved(fresh: float, cached: float, nbytes: float) -> float:
        return at_memory_rate(fresh, cached, rate / then, nbytes / then)

    lines = zip(table.fresh, table.warm, strict=True)
    fresh = tuple(tuple(map(moved, line, near, table.weight_bytes)) for line, near in lines)
    return replace(table, fresh=fresh)


def _attend(curve: AttendCurve, ratio: float) -> AttendCurve:
    return replace(curve, fresh=1 / at_memory_rate(1 / curve.fresh, 1 / curve.warm, ratio))


def _affine(affine: Affine, ratio: float) -> Affine:
    """Only the farthest of the distances is memory's."""
    if not affine.far:
        return affine
    *nearer, farthest = affine.far
    moved = 1 / at_memory_rate(1 / farthest, 1 / affine.throughput, ratio)
    return replace(affine, far=(*nearer, moved))
