"""Which layers a pass repeats: neighbours that are identical, or a pattern of several that comes again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ridgeline.ops.layers import Layer

#: The longest pattern of layers that is looked for.
LONGEST = 16


class Run(NamedTuple):
    """Layers ``start`` to ``start + length``, which the following ones repeat: ``count`` times in all."""

    start: int
    length: int
    count: int


def runs(layers: Sequence[Layer], longest: int = LONGEST) -> list[Run]:
    """The layers as runs that together have the fewest layers to trace; of those, with the longest run first.

    Identical layers are one run of length 1. Five layers with a window before one without, ten times over,
    are one run of length 6. No pattern is longer than ``longest``.
    """
    numbers: dict[object, int] = {}
    return list(_runs(tuple(numbers.setdefault(layer.signature, len(numbers)) for layer in layers), longest))


@lru_cache
def _runs(kinds: tuple[int, ...], longest: int) -> tuple[Run, ...]:
    n = len(kinds)
    if len(set(kinds)) <= 1:
        return (Run(0, 1, n),) if n else ()
    # again[p][i]: how many layers from i on equal the one p further.
    again = [[0] * (n + 1) for _ in range(longest + 1)]
    for p in range(1, longest + 1):
        for i in range(n - p - 1, -1, -1):
            again[p][i] = again[p][i + 1] + 1 if kinds[i] == kinds[i + p] else 0
    least = [0] * (n + 1)  # layers to trace from i on
    chosen: list[Run] = [Run(i, 1, 1) for i in range(n)]
    for i in range(n - 1, -1, -1):
        least[i] = n + 1
        for p in range(1, min(longest, n - i) + 1):
            for count in range(again[p][i] // p + 1, 0, -1):
                traced = p + least[i + p * count]
                longer = count > 1 and p * count > chosen[i].length * chosen[i].count
                if traced < least[i] or (traced == least[i] and longer):
                    least[i], chosen[i] = traced, Run(i, p, count)
    found, i = [], 0
    while i < n:
        found.append(chosen[i])
        i += chosen[i].length * chosen[i].count
    return tuple(found)
