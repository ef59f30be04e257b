"""When a step on a GPU ends: its kernels one after another, as a graph replays them or as the host issues
them.

A decode step of the gpu reading is a CUDA graph: its kernels follow one another without the host. Any other
step is issued operator by operator, and a kernel begins when the one before has ended and the host has come
to it: a short kernel waits for the host, and behind a long one the host runs ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ridgeline.ops.kernel import Role
from ridgeline.ops.numbers import Number, maximum
from ridgeline.ops.trace import Trace

#: Sequences of the largest graph.
MOST_SEQUENCES = 128


def runs_as_graph(trace: Trace) -> bool:
    """Whether the gpu reading replays the step: one row of each sequence, whose keys lie in a cache. Steps
    that verify a few rows, which are graphs where they were prepared, are taken to be issued."""
    attending = [k for op in trace.ops for k in op.kernels(trace.lowering) if k.sequences]
    if not attending:
        return False
    for kernel in attending:
        in_cache = any(a.value.role is Role.CACHE for a in kernel.reads)
        many = sum(np.max(work.count) for work in kernel.sequences) > MOST_SEQUENCES
        if not in_cache or many or any(np.any(np.greater(work.rows, 1)) for work in kernel.sequences):
            return False
    return True


def exposed(trace: Trace, seconds: Sequence[Number], issue: Sequence[float], begin: float) -> Number:
    """How much longer a step takes than its kernels together if the host issues them one by one, from
    ``begin`` on. ``seconds`` and ``issue`` are those of the kernels in the trace's order."""
    host, end, worked = begin, 0.0, 0.0
    for number in _in_order(trace):
        host += issue[number]
        end = maximum(host, end) + seconds[number]
        worked = worked + seconds[number]
    return maximum(end, host) - worked


def _in_order(trace: Trace) -> Iterator[int]:
    """The kernels' numbers in the order in which they run, those of a loop as often as it does."""
    firsts, count = [], 0
    for op in trace.ops:
        firsts.append(count)
        count += len(op.kernels(trace.lowering))
    firsts.append(count)
    place = 0
    for loop in trace.loops:
        yield from range(firsts[place], firsts[loop.start])
        for _ in range(loop.count):
            yield from range(firsts[loop.start], firsts[loop.stop])
        place = loop.stop
    yield from range(firsts[place], count)
