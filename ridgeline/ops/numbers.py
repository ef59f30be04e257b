"""Arithmetic that works alike on Python numbers and on NumPy arrays.

A trace may sweep: any length or batch size in it may be an array, and every cost then is one
too. NumPy is imported only when an array is really there, because a single trace must not pay
for the import.
"""

from __future__ import annotations

from typing import Any

Number = Any


def is_array(x: Number) -> bool:
    return hasattr(x, "__array__") and getattr(x, "ndim", 0) > 0


def as_count(n: Number) -> Number:
    """A length or a batch size as a count works with it: Python's own integers, arrays in float64.

    FLOPs of a large training step pass 2^63, where int64 wraps around in silence; float64 is
    exact to 2^53 and right to 16 digits beyond.
    """
    if is_array(n):
        return n.astype("float64")
    return n.item() if hasattr(n, "item") else n


def minimum(a: Number, b: Number) -> Number:
    if is_array(a) or is_array(b):
        import numpy

        return numpy.minimum(a, b)
    return a if a <= b else b


def maximum(a: Number, b: Number) -> Number:
    if is_array(a) or is_array(b):
        import numpy

        return numpy.maximum(a, b)
    return a if a >= b else b


def where(condition: Number, a: Number, b: Number) -> Number:
    """``a`` where the condition holds, else ``b``, element by element."""
    if is_array(condition):
        import numpy

        return numpy.where(condition, a, b)
    return a if condition else b


def round_up(x: Number, multiple: int) -> Number:
    return -(-x // multiple) * multiple
