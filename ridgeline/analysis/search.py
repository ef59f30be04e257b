"""The largest number that still fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ridgeline.analysis.arguments import MOST

#: Numbers that are tried at once.
A_ROUND = 64


def largest(fits: Callable[[Any], Any], most: int = MOST) -> int:
    """The largest of 1 to ``most`` for which ``fits`` holds, 0 if it holds for none; what fits a number fits
    all below. ``fits`` takes an array of numbers: every round tries many at once and keeps one interval."""
    import numpy

    found, over = 0, most + 1
    while over - found > 1:
        width = max(1, (over - found) // A_ROUND)
        tried = numpy.arange(found + width, over, width)
        good = numpy.broadcast_to(fits(tried), tried.shape)
        found = int(tried[good].max(initial=found))
        over = min(over, int(tried[~good].min(initial=over)))
    return found
