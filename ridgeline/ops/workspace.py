"""Where the matrices of a recorded pass lie in its workspace: those that don't live at once share room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Use:
    """Something that needs ``size`` units from call ``first`` to call ``last``, both included. It may lie
    where number ``over`` lay, whose last call is its first."""

    size: int
    first: int
    last: int
    over: int | None = None


def place(uses: Sequence[Use]) -> tuple[list[int], int]:
    """An offset for each of ``uses``, given in the order of their first calls, and the units needed in all.

    First fit: each goes to the lowest gap between those that still live.
    """
    offsets: list[int] = []
    for use in uses:
        if use.over is not None:
            offsets.append(offsets[use.over])
            continue
        taken = sorted(
            (offset, offset + other.size) for offset, other in zip(offsets, uses) if other.last >= use.first
        )
        offset = 0
        for begin, end in taken:
            if begin - offset >= use.size:
                break
            offset = max(offset, end)
        offsets.append(offset)
    return offsets, max((o + use.size for o, use in zip(offsets, uses)), default=0)
