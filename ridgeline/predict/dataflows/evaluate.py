"""A dataflow on a device: the tiles that suit its on-chip memory, its traffic and its time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device
from ridgeline.ops.kernel import Flops
from ridgeline.predict.dataflows.flows import Dataflow, Launch
from ridgeline.predict.dataflows.limits import footprint, overflows
from ridgeline.predict.dataflows.shape import AttentionShape, Tiles, tiles_of


@dataclass(frozen=True)
class Chip:
    """A device as ``units`` that each work on one block, with ``on_chip`` bytes to itself and an equal
    share of the rates and of the bandwidth."""

    device: Device
    units: int
    on_chip: float

    @classmethod
    def of(cls, device: Device, *, units: int | None = None, on_chip: float | None = None) -> Chip:
        """By default the device's own units, which share its scratch memory; with fewer ``units``, each
        has more of it.

        Raises InputError for sizes that are not positive, and if the device file gives no scratch memory.
        """
        units = device.units if units is None else units
        if units < 1:
            raise InputError(f"units must be at least 1, not {units}")
        if on_chip is None:
            if device.on_chip.scratch_per_unit is None:
                raise InputError(f"{device.name} names no on-chip memory of a unit: give --on-chip BYTES")
            on_chip = device.on_chip.scratch_per_unit * device.units / units
        if not 0 < on_chip < math.inf:
            raise InputError(f"on-chip memory must be a positive, finite number of bytes, not {on_chip}")
        return cls(device, units, on_chip)


@dataclass(frozen=True)
class DataflowCost:
    """What a dataflow costs with ``tiles``. Bytes are those of main memory but for ``live``, which is
    what one block holds on the chip; ``footprint`` is what lies in main memory at most. ``bound`` is
    that of the launch that takes longest, ``busy`` the share of the units that have a block in it.
    """

    name: str
    tiles: Tiles
    live: float
    reads: float
    writes: float
    flops: Flops
    seconds: float
    bound: str
    blocks: int
    busy: float
    footprint: float

    @property
    def bytes(self) -> float:
        return self.reads + self.writes

    @property
    def intensity(self) -> float:
        """Operational intensity: FLOP a byte of main memory."""
        return self.flops.total / self.bytes


def cost(flow: Dataflow, shape: AttentionShape, tiles: Tiles, chip: Chip) -> DataflowCost:
    """The cost with these tiles, whether or not they fit."""
    launches = flow.launches(shape, tiles, chip.on_chip)
    times = [_time(launch, shape, chip) for launch in launches]
    _, bound, busy = max(times)
    return DataflowCost(
        name=flow.name,
        tiles=tiles,
        live=flow.live(shape, tiles),
        reads=sum(launch.reads for launch in launches),
        writes=sum(launch.writes for launch in launches),
        flops=sum((launch.flops for launch in launches), Flops()),
        seconds=sum(t for t, _, _ in times),
        bound=bound,
        blocks=max(launch.blocks for launch in launches),
        busy=busy,
        footprint=footprint(flow, shape, tiles),
    )


def _time(launch: Launch, shape: AttentionShape, chip: Chip) -> tuple[float, str, float]:
    """Seconds of a launch, what binds it, and the share of the units that are busy: the roofline at
    the rates of the units that have a block, wave after wave."""
    device = chip.device
    busy = launch.blocks / (tiles_of(launch.blocks, chip.units) * chip.units)
    needs = {
        "memory": launch.bytes / device.bandwidth,
        "matrix": launch.flops.matrix / device.matrix_rate(shape.format),
        "vector": launch.flops.vector / device.vector_rate(shape.format),
        "exp": launch.flops.exp / device.exp_rate,
    }
    bound = max(needs, key=needs.__getitem__)
    work = needs[bound] / busy
    return device.launch_seconds + work, "launch" if device.launch_seconds > work else bound, busy


Order = Callable[[DataflowCost], tuple[float, ...]]


def fastest(found: DataflowCost) -> tuple[float, ...]:
    return found.seconds, found.bytes, found.live


def least_traffic(found: DataflowCost) -> tuple[float, ...]:
    return found.bytes, found.live


def choices(flow: Dataflow, shape: AttentionShape, chip: Chip) -> list[DataflowCost]:
    """The cost with each of the dataflow's tiles, the least live memory first."""
    found = (cost(flow, shape, tiles, chip) for tiles in flow.candidates(shape))
    return sorted(found, key=lambda c: (c.live, c.bytes))


def best(found: Sequence[DataflowCost], on_chip: float, order: Order = fastest) -> DataflowCost | None:
    """The first by ``order`` of those that fit ``on_chip`` bytes; None where nothing does."""
    fitting = [c for c in found if c.live <= on_chip]
    return min(fitting, key=order) if fitting else None


@dataclass(frozen=True)
class Outcome:
    """A dataflow on a chip: its cost, if any of its tiles fit, and every limit it meets, in words.

    ``least_live`` is the on-chip memory of its smallest tiles, ``longest`` the most queries of a
    sequence that still fit the chip and main memory (None: there is no end below 2^40), and
    ``ended_by`` which of the two ends it. ``overflows_from`` is the least number of queries at which a
    32-bit index or a grid overflows with tiles of 128 (None: none does).
    """

    name: str
    cost: DataflowCost | None
    least_live: float
    longest: int | None
    ended_by: str | None
    overflows_from: int | None
    notes: tuple[str, ...]


#: Lengths beyond this are not looked at.
MOST_QUERIES = 2**40
#: What a GPU's kernels are usually tiled by, in rows and keys, and splits enough to fill one.
ORDINARY_TILES = Tiles(128, 128, 8)


def outcome(flow: Dataflow, shape: AttentionShape, chip: Chip, tiles: Tiles | None = None) -> Outcome:
    """The dataflow with ``tiles``, or with its fastest that fit."""
    least = flow.live(shape, smallest(flow, shape))
    if tiles is None:
        found = best(choices(flow, shape, chip), chip.on_chip)
    else:
        found = cost(flow, shape, tiles, chip)
        least = found.live
        found = found if found.live <= chip.on_chip else None
    longest, ended_by = longest_queries(flow, shape, chip)
    notes = list(_notes(flow, shape, chip, found, least))
    overflowing = overflows_from(flow, shape, chip)
    return Outcome(flow.name, found, least, longest, ended_by, overflowing, tuple(notes))


def smallest(flow: Dataflow, shape: AttentionShape) -> Tiles:
    """The tiles that hold least on the chip, and of those the ones that keep least in main memory."""
    return min(flow.candidates(shape), key=lambda t: (flow.live(shape, t), flow.stored_bytes(shape, t)))


def _notes(
    flow: Dataflow, shape: AttentionShape, chip: Chip, found: DataflowCost | None, least: float
) -> Iterator[str]:
    if found is None:
        yield f"stops fitting: a block needs {least:,.0f} bytes on the chip, which has {chip.on_chip:,.0f}"
        return
    if found.footprint > chip.device.memory_bytes:
        yield (
            f"needs {found.footprint:,.0f} bytes of main memory, where {chip.device.name} has "
            f"{chip.device.memory_bytes:,.0f}"
        )
    yield from overflows(flow, shape, found.tiles, chip.on_chip)


def longest_queries(flow: Dataflow, shape: AttentionShape, chip: Chip) -> tuple[int | None, str | None]:
    """The most queries whose smallest tiles fit the chip and whose tensors fit main memory, and which of
    the two ends it; (0, ...) where not even one does."""

    def ended(queries: int) -> str | None:
        longer = shape.at_length(queries)
        tiles = smallest(flow, longer)
        if flow.live(longer, tiles) > chip.on_chip:
            return "on-chip memory"
        return "main memory" if footprint(flow, longer, tiles) > chip.device.memory_bytes else None

    over = _first(lambda queries: ended(queries) is not None)
    return (None, None) if over is None else (over - 1, ended(over))


def overflows_from(flow: Dataflow, shape: AttentionShape, chip: Chip) -> int | None:
    """The least number of queries at which something overflows with tiles of 128; None for none below
    2^40."""

    def overflown(queries: int) -> bool:
        return any(overflows(flow, shape.at_length(queries), ORDINARY_TILES, chip.on_chip))

    return _first(overflown)


def _first(holds: Callable[[int], bool]) -> int | None:
    """The least number of queries for which it holds, as for all larger ones; None for none below 2^40."""
    without, least = 0, 1
    while not holds(least):
        without, least = least, 2 * least
        if least > MOST_QUERIES:
            return None
    while least - without > 1:
        middle = (without + least) // 2
        without, least = (without, middle) if holds(middle) else (middle, least)
    return least
