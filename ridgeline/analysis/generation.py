"""The mean time of a generation's steps, whose context grows by one token a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Where in a generation steps are predicted, and Simpson's weights of them: a step's time is nearly straight
#: in its context.
AT, WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0), (1 / 12, 4 / 12, 2 / 12, 4 / 12, 1 / 12)


def mean_step(seconds: Callable[[Any], Any], prompt: Any, steps: Any) -> Any:
    """The mean of ``seconds`` over the contexts ``prompt`` to ``prompt + steps - 1``, numbers or arrays.

    ``seconds`` takes an array of contexts with one more axis, along which they grow, and is a number or an
    array of that shape.
    """
    import numpy

    last = numpy.maximum(numpy.asarray(steps) - 1, 0)
    past = numpy.rint(numpy.asarray(prompt)[..., None] + last[..., None] * numpy.array(AT)).astype(int)
    return numpy.broadcast_to(seconds(past), past.shape) @ numpy.array(WEIGHTS)
