"""The mean time of a generation's steps, whose context grows by one token a step.

A step's time is piecewise linear in its context, so it is predicted at some contexts only, and taken as
straight between them. Every analysis takes its mean from here, so that the same request has the same TPOT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Contexts at which a long generation's steps are predicted; of one with no more steps, each is.
SAMPLES = 17


def mean_step(seconds: Callable[[Any], Any], first: Any, steps: Any) -> Any:
    """The mean of ``seconds`` over the contexts ``first`` to ``first + steps - 1``, numbers or arrays [n].

    ``seconds`` takes an array of contexts with one more axis, along which they grow, and is a number or an
    array of that shape. No steps take what the first would.
    """
    import numpy

    steps = numpy.maximum(numpy.asarray(steps), 1)
    past = positions(first, steps)
    values = numpy.broadcast_to(seconds(past), past.shape)
    sums = _between(numpy.diff(past), values[..., :-1], values[..., 1:]).sum(axis=-1)
    return (sums + values[..., -1]) / steps


def positions(first: Any, steps: Any) -> Any:
    """The contexts [n, SAMPLES] at which :func:`mean_step` asks for seconds; ``steps`` is 1 at least."""
    import numpy

    steps = numpy.asarray(steps)[..., None]
    at = numpy.rint(numpy.arange(SAMPLES) * (steps - 1) / (SAMPLES - 1)).astype(int)
    return numpy.asarray(first)[..., None] + at


def mean_of_steps(seconds: Callable[[int], float], first: int, steps: int) -> float:
    """The same for one generation, of a function of one context, without NumPy."""
    past = sorted({first + round(i * (steps - 1) / (SAMPLES - 1)) for i in range(SAMPLES)})
    values = [seconds(n) for n in past]
    pieces = zip(past, past[1:], values, values[1:], strict=False)
    return (sum(_between(m - n, a, b) for n, m, a, b in pieces) + values[-1]) / steps


def _between(steps: Any, a: Any, b: Any) -> Any:
    """The sum over so many steps, of which the first takes ``a``, on the line to the one after, ``b``."""
    return steps * (a + b) / 2 + (a - b) / 2
