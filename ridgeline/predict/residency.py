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
from ridgeline.ops.numbers import Number, minimum, where
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
