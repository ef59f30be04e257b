"""Where one dataflow overtakes another: the on-chip memory from which it moves no more bytes."""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.predict.dataflows.evaluate import Chip, DataflowCost, best, choices, least_traffic
from ridgeline.predict.dataflows.flows import Dataflow
from ridgeline.predict.dataflows.shape import AttentionShape


@dataclass(frozen=True)
class Crossover:
    """From ``on_chip`` bytes of a block's memory on, ``winner`` moves ``winner_bytes`` where ``other``
    moves ``other_bytes`` (None: it does not fit there)."""

    winner: str
    other: str
    on_chip: float
    winner_bytes: float
    other_bytes: float | None


def crossover(winner: Dataflow, other: Dataflow, shape: AttentionShape, chip: Chip) -> Crossover | None:
    """The least on-chip memory at which ``winner`` moves no more than ``other``, each with the tiles that
    move least; None if there is none.

    Traffic falls in steps, at the sizes where a larger tile begins to fit, so only these are tried.
    """
    ours, theirs = choices(winner, shape, chip), choices(other, shape, chip)
    for on_chip in sorted({c.live for c in (*ours, *theirs)}):
        mine, his = (best(found, on_chip, least_traffic) for found in (ours, theirs))
        if mine is not None and (his is None or mine.bytes <= his.bytes):
            return Crossover(winner.name, other.name, on_chip, mine.bytes, None if his is None else his.bytes)
    return None


def by_on_chip(
    found: list[DataflowCost], sizes: list[float], order=least_traffic
) -> list[DataflowCost | None]:
    """The best choice at each size of on-chip memory."""
    return [best(found, size, order) for size in sizes]
