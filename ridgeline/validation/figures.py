"""A published figure, what Ridgeline computes in its place, and whether the two agree.

They agree when they differ by at most half a unit of the last digit that was printed. A figure
is therefore held as the text that was printed, and its digits say its precision: "0.95" is known
to 0.005, "3e3" (about 3K) to 500. A figure that was measured, or that its source gives as an
estimate, may state a relative tolerance instead; its note says why.

Where the source errs, the figure also holds the right value. Then Ridgeline must agree with that
one and disagree with what was printed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

#: A value halfway between two printed ones agrees with both, whatever the last bits of the difference are.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Figure:
    """One published number: ``published`` in ``unit``, as printed in ``section`` of ``source``.

    ``compute`` returns Ridgeline's value in the same unit. ``right`` is the true value where the
    source errs. ``tolerance``, relative, replaces the rule of the printed digits.
    """

    source: str
    section: str
    item: str
    unit: str
    published: str
    compute: Callable[[], float]
    note: str = ""
    right: str | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class Result:
    """A figure and what came out. ``error`` is computed / published - 1, also for an erratum."""

    source: str
    section: str
    item: str
    unit: str
    published: float
    computed: float
    error: float
    right: float | None
    note: str
    ok: bool


def compare(figure: Figure) -> Result:
    """Compute the figure and judge it by the rule at the top of this file."""
    computed = float(figure.compute())
    published = float(figure.published)
    ok = _agrees(computed, figure.published, figure.tolerance)
    if figure.right is not None:
        ok = not ok and _agrees(computed, figure.right, figure.tolerance)
    return Result(
        source=figure.source,
        section=figure.section,
        item=figure.item,
        unit=figure.unit,
        published=published,
        computed=computed,
        error=computed / published - 1,
        right=None if figure.right is None else float(figure.right),
        note=figure.note,
        ok=ok,
    )


def _agrees(computed: float, printed: str, tolerance: float | None) -> bool:
    expected = float(printed)
    allowed = half_unit(printed) if tolerance is None else tolerance * abs(expected)
    return abs(computed - expected) <= allowed * (1 + ROUNDING)


def half_unit(printed: str) -> float:
    """Half a unit of the last printed digit: 0.005 of "0.95", 0.5 of "208", 500 of "3e3"."""
    return 0.5 * 10.0 ** Decimal(printed).as_tuple().exponent
