"""Which of several unlike devices runs which operator: the placement of least time, transfers counted.

Operators run one after another, each on one device, the same one in every layer. A value that another device
needs is sent there once. Where they are few, all placements are tried, so the best is the best; where a model
has many kinds of layers, :mod:`ridgeline.predict.placement_search` finds it without trying each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy

from ridgeline.ops.kernel import Role
from ridgeline.ops.trace import Trace

#: The most placements that are all tried.
MOST_PLACEMENTS = 1 << 16


@dataclass(frozen=True)
class Flow:
    """A value that the operator ``source`` makes and ``targets`` read, ``times`` over, of so many bytes."""

    source: int
    targets: tuple[int, ...]
    bytes: float
    times: int


@dataclass(frozen=True)
class Costs:
    """``seconds`` and ``held`` (bytes of weights and cache) are [operators, devices], those of all layers;
    ``capacity`` bytes [devices]; ``latency`` and ``bandwidth`` are those of a transfer."""

    seconds: numpy.ndarray
    held: numpy.ndarray
    flows: tuple[Flow, ...]
    capacity: numpy.ndarray
    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Placement:
    """The device of each operator; ``transfers`` are sends, ``excess`` bytes beyond the devices' memory.
    ``proven`` says of the best that no other that fits is faster."""

    devices: tuple[int, ...]
    seconds: float
    transfer_seconds: float
    transfers: int
    transferred_bytes: float
    excess: float
    proven: bool = True


def flows(trace: Trace) -> list[Flow]:
    """What operators hand to each other: activations, also from one layer to the next."""
    source = {
        access.value.storage: index
        for index, op in enumerate(trace.ops)
        for part in op.parts
        for access in part.writes
    }
    readers: dict[int, list[int]] = {}
    size: dict[int, float] = {}
    for index, op in enumerate(trace.ops):
        for part in op.parts:
            for access in part.reads:
                storage = access.value.storage
                if access.value.role is Role.ACTIVATION and source[storage] != index:
                    readers.setdefault(storage, []).append(index)
                    size[storage] = max(size.get(storage, 0.0), float(trace.values[storage].nbytes))
    found = []
    for storage, targets in readers.items():
        found += _flows_of(trace, source[storage], tuple(dict.fromkeys(targets)), size[storage])
    for loop in trace.loops:
        for entry, exit in zip(loop.entry, loop.exit, strict=True):
            first = tuple(i for i in readers.get(entry.storage, ()) if loop.start <= i < loop.stop)
            if first:
                targets = tuple(dict.fromkeys(first))
                found.append(Flow(source[exit.storage], targets, float(exit.nbytes), loop.count - 1))
    return found


def _flows_of(trace: Trace, source: int, targets: tuple[int, ...], nbytes: float) -> Iterator[Flow]:
    """Within a loop a value is made in every iteration; what crosses its border is sent once."""
    loop = next((loop for loop in trace.loops if loop.start <= source < loop.stop), None)
    within = tuple(t for t in targets if loop is not None and loop.start <= t < loop.stop)
    beyond = tuple(t for t in targets if t not in within)
    if within:
        yield Flow(source, within, nbytes, loop.count)
    if beyond:
        yield Flow(source, beyond, nbytes, 1)


def evaluate(costs: Costs, placements: numpy.ndarray) -> tuple[numpy.ndarray, ...]:
    """Of placements [n, operators]: seconds, seconds of transfers, transfers, bytes sent, bytes in excess,
    each [n]."""
    count, operators = placements.shape
    devices = costs.seconds.shape[1]
    seconds = numpy.zeros(count)
    held = numpy.zeros((count, devices))
    for operator in range(operators):
        chosen = placements[:, operator]
        seconds += costs.seconds[operator, chosen]
        for device in range(devices):
            held[:, device] += numpy.where(chosen == device, costs.held[operator, device], 0)
    transfers, moved = numpy.zeros(count), numpy.zeros(count)
    for flow in costs.flows:
        here = placements[:, flow.source]
        for device in range(devices):
            wanted = (placements[:, flow.targets] == device).any(axis=1) & (here != device)
            transfers += wanted * flow.times
            moved += wanted * flow.times * flow.bytes
    sending = transfers * costs.latency + moved / costs.bandwidth
    excess = numpy.maximum(held - costs.capacity, 0).sum(axis=1)
    return seconds + sending, sending, transfers, moved, excess


def given(costs: Costs, devices: Sequence[int]) -> Placement:
    """What a placement takes."""
    found = evaluate(costs, numpy.array([devices]))
    seconds, sending, transfers, moved, excess = (float(values[0]) for values in found)
    return Placement(tuple(devices), seconds, sending, int(transfers), moved, excess)


def best(costs: Costs) -> Placement:
    """The placement of least time among those that fit; of least excess where none does.

    Raises InputError where even partial placements are too many.
    """
    operators, devices = costs.seconds.shape
    if devices**operators > MOST_PLACEMENTS:
        from ridgeline.predict.placement_search import search

        found = search(costs)
        return replace(given(costs, found.devices), proven=found.proven)
    numbers = numpy.arange(devices**operators)
    placements = numbers[:, None] // devices ** numpy.arange(operators) % devices
    seconds, *_, excess = evaluate(costs, placements)
    order = numpy.lexsort((seconds, excess))
    return given(costs, placements[order[0]].tolist())
