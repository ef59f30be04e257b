"""The placement of least time where there are too many to try each.

Operators are placed one after another, in the order of the trace. What the rest needs to know of those
before is, of every value that is still to be read or written: the device that makes it, and those that have
it. Of all partial placements that agree in that only the fastest can be part of the best, so that the search
is exact (Bellman's principle) and takes steps in proportion to the operators.

Memory is shared by all operators, so it is priced: a byte on a device costs so many seconds (Lagrange). If
the best placement fits at a price of zero, it is the best of all. Otherwise prices are raised until it does,
and single moves and exchanges then make it as fast as they can: close to the best, and not proven to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy

from ridgeline.errors import InputError

if TYPE_CHECKING:
    from ridgeline.predict.placement import Costs

#: Partial placements that are kept at once, at most.
MOST_STATES = 1 << 14
#: How often prices are changed at most.
PRICINGS = 24
#: Placements that are improved by moves, and rounds of these at most.
STARTS, MOST_ROUNDS = 6, 30


@dataclass(frozen=True)
class Searched:
    """The device of each operator; ``proven`` says that none is faster among those that fit."""

    devices: tuple[int, ...]
    proven: bool


def search(costs: Costs) -> Searched:
    """The best placement found. Raises InputError if even partial placements are too many."""
    found = fastest(costs, costs.seconds)
    if _rank(costs, found)[0] == 0:
        return Searched(found, True)
    starts = sorted(_priced(costs, found), key=lambda devices: _rank(costs, devices))[:STARTS]
    return Searched(min((_improved(costs, one) for one in starts), key=lambda d: _rank(costs, d)), False)


def _priced(costs: Costs, found: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The fastest placements as the memory of devices that are too full is priced higher and lower."""
    price = numpy.zeros(len(costs.capacity))
    step = numpy.full(len(price), costs.seconds.sum() / max(costs.held.sum(), 1.0))
    tried, fitted = [found], False
    for _ in range(PRICINGS):
        held = numpy.zeros(len(price))
        numpy.add.at(held, list(tried[-1]), costs.held[range(len(found)), list(tried[-1])])
        over = held > costs.capacity
        fitted = fitted or not over.any()
        price = numpy.maximum(price + numpy.where(over, step, -step), 0)
        step *= numpy.where(over, 0.7 if fitted else 2.0, 0.5)
        tried.append(fastest(costs, costs.seconds + price * costs.held))
    return list(dict.fromkeys(tried))


def _improved(costs: Costs, start: tuple[int, ...]) -> tuple[int, ...]:
    """The placement after the best move or exchange, again and again until none helps."""
    from ridgeline.predict.placement import evaluate

    best = start
    for _ in range(MOST_ROUNDS):
        near = _neighbours(best, len(costs.capacity))
        seconds, *_, excess = evaluate(costs, near)
        first = numpy.lexsort((seconds, excess))[0]
        if (excess[first], seconds[first]) >= _rank(costs, best):
            break
        best = tuple(near[first].tolist())
    return best


def _rank(costs: Costs, devices: Sequence[int]) -> tuple[float, float]:
    from ridgeline.predict.placement import given

    found = given(costs, devices)
    return found.excess, found.seconds


def _neighbours(devices: Sequence[int], count: int) -> numpy.ndarray:
    """Every placement with one operator, or two, elsewhere."""
    here = numpy.array(devices)
    moves = [(i, d) for i, d in product(range(len(here)), range(count)) if here[i] != d]
    first = numpy.repeat(here[None], len(moves), axis=0)
    for row, (i, d) in enumerate(moves):
        first[row, i] = d
    pairs = [(a, b) for a in range(len(moves)) for b in range(a) if moves[a][0] != moves[b][0]]
    second = numpy.repeat(here[None], len(pairs), axis=0)
    for row, pair in enumerate(pairs):
        for i, d in (moves[k] for k in pair):
            second[row, i] = d
    return numpy.concatenate([first, second])


def fastest(costs: Costs, seconds: numpy.ndarray) -> tuple[int, ...]:
    """The placement of least time with these ``seconds`` [operators, devices] and the transfers of ``costs``,
    whatever memory it takes."""
    operators, devices = seconds.shape
    #: Of every operator: the flows that it makes and reads, and those that are settled behind it.
    makes: list[list[int]] = [[] for _ in range(operators)]
    reads: list[list[int]] = [[] for _ in range(operators)]
    ends: list[list[int]] = [[] for _ in range(operators)]
    price = [flow.times * (costs.latency + flow.bytes / costs.bandwidth) for flow in costs.flows]
    for number, flow in enumerate(costs.flows):
        makes[flow.source].append(number)
        for target in flow.targets:
            reads[target].append(number)
        ends[max(flow.source, *flow.targets)].append(number)
    #: State: by open flow, who makes it (None: not known yet), and a bit for each device that reads it.
    states: dict[tuple, tuple[float, tuple | None]] = {(): (0.0, None)}
    for operator in range(operators):
        following: dict[tuple, tuple[float, tuple | None]] = {}
        for state, (spent, path) in states.items():
            for device in range(devices):
                cost = spent + float(seconds[operator, device])
                open_flows = dict(state)
                for number in makes[operator]:
                    _, readers = open_flows.get(number, (None, 0))
                    cost += price[number] * (readers & ~(1 << device)).bit_count()
                    open_flows[number] = (device, readers)
                for number in reads[operator]:
                    maker, readers = open_flows.get(number, (None, 0))
                    bit = 1 << device
                    if maker is not None and maker != device and not readers & bit:
                        cost += price[number]
                    open_flows[number] = (maker, readers | bit)
                for number in ends[operator]:
                    del open_flows[number]
                key = tuple(sorted(open_flows.items()))
                if key not in following or cost < following[key][0]:
                    following[key] = (cost, (device, path))
        if len(following) > MOST_STATES:
            raise InputError(
                f"{operators} operators on {devices} devices can be placed in too many ways: "
                "give fewer devices"
            )
        states = following
    _, path = min(states.values(), key=lambda found: found[0])
    chosen = []
    while path is not None:
        device, path = path
        chosen.append(device)
    return tuple(reversed(chosen))
