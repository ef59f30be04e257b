"""What a number must be to be an option."""

from __future__ import annotations

import math
from numbers import Integral, Real

from ridgeline.errors import InputError


def is_finite(value: object) -> bool:
    """Whether it is a real number, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """Whether it is an integer, and not a truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def at_least_one(option: str, value: int) -> int:
    """The value; raises InputError that names the ``option`` unless it is a whole number above 0."""
    if not is_whole(value) or value < 1:
        raise InputError(f"{option} is {value!r}, expected a whole number of at least 1")
    return value
