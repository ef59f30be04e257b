"""From which level of the memory hierarchy each access is served.

A value is found in the nearest level that holds everything touched since it was last touched
(its reuse distance, in bytes). Weights and the cache come round once a step, so theirs is the
footprint of the whole step; what a kernel has just written is as far as that kernel's traffic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ridgeline.hardware.device import Level
from ridgeline.ops.kernel import Access, Kernel, Role
from ridgeline.ops.numbers import Number, maximum, minimum, where
from ridgeline.ops.trace import OpCost, Trace

ONCE_A_STEP = (Role.WEIGHT, Role.CACHE)


@dataclass(frozen=True)
class Touch:
    """An access and the bytes touched since its value was last touched."""

    access: Access
    distance: Number


@dataclass(frozen=True)
class PlacedKernel:
    """A kernel of the trace with the reuse distance of each of its reads and writes."""

    op: OpCost
    op_index: int
    kernel: Kernel
    touches: tuple[Touch, ...]


def footprint(trace: Trace) -> Number:
    """Bytes that one step touches at least once: weights, cache as read, peak of activations."""
    touched: dict[int, Number] = {}
    for op, kernel in trace.kernels():
        for access in (*kernel.reads, *kernel.writes):
            value = access.value
            if value.role in ONCE_A_STEP:
                so_far = touched.get(value.id, 0) + access.bytes * op.repeat
                touched[value.id] = minimum(so_far, value.nbytes * op.repeat)
    return sum(touched.values()) + trace.memory().activations


def place(trace: Trace) -> list[PlacedKernel]:
    """Every kernel of the trace in order, its accesses with their reuse distances."""
    step = footprint(trace)
    touched: dict[int, Number] = {}
    position: Number = 0
    placed = []
    for index, op, kernel in _kernels(trace):
        touches = []
        for access in kernel.reads:
            key = access.value.storage
            known = touched.get(key)
            once = access.value.role in ONCE_A_STEP or known is None
            touches.append(Touch(access, step if once else position - known))
        position = position + kernel.bytes
        for access in kernel.writes:
            touches.append(Touch(access, kernel.bytes))
        for access in (*kernel.reads, *kernel.writes):
            touched[access.value.storage] = position
        placed.append(PlacedKernel(op, index, kernel, tuple(touches)))
    return placed


def input_distances(trace: Trace) -> list[Number]:
    """For every kernel of the trace in order, the bytes touched since its inputs were written, those of the
    kernels that wrote them included: the mean over its inputs by their bytes. A table's is the footprint of
    the step, and that of a loop's input what its last iteration touched."""
    step = footprint(trace)
    kernels = list(_kernels(trace))
    first_of = {index: i for i, (index, _, _) in reversed(list(enumerate(kernels)))}
    begun: dict[int, Number] = {}
    position: Number = 0
    distances: list[Number] = [0] * len(kernels)

    def pass_over(i: int) -> None:
        nonlocal position
        _, _, kernel = kernels[i]
        total: Number = 0
        weighted: Number = 0
        for access in kernel.reads:
            since = position - begun.get(access.value.storage, position)
            far = step if access.value.role in ONCE_A_STEP else since
            vector = access.value.role is Role.WEIGHT and len(access.value.shape) < 2
            total = total + (0 if vector else access.bytes)
            weighted = weighted + (0 if vector else access.bytes * far)
        distances[i] = weighted / maximum(total, 1)
        for access in kernel.writes:
            begun[access.value.storage] = position
        position = position + kernel.bytes

    loops = {loop.start: loop for loop in trace.loops}
    index = 0
    while index < len(trace.ops):
        loop = loops.get(index)
        stop = index + 1 if loop is None else loop.stop
        for turn in range(1 if loop is None else 2):
            if turn:
                for entry, exit in zip(loop.entry, loop.exit, strict=True):
                    begun[entry.storage] = begun.get(exit.storage, position)
            for op in range(index, stop):
                if op in first_of:
                    count = len(trace.ops[op].kernels(trace.lowering))
                    for i in range(first_of[op], first_of[op] + count):
                        pass_over(i)
        index = stop
    return distances


def _kernels(trace: Trace) -> Iterator[tuple[int, OpCost, Kernel]]:
    for index, op in enumerate(trace.ops):
        for kernel in op.kernels(trace.lowering):
            yield index, op, kernel


def bandwidth_at(levels: tuple[Level, ...], distance: Number) -> Number:
    """Bytes a second of the nearest level that holds ``distance`` bytes."""
    bandwidth: Number = levels[-1].bandwidth
    for level in reversed(levels[:-1]):
        bandwidth = where(distance <= level.capacity, level.bandwidth, bandwidth)
    return bandwidth
