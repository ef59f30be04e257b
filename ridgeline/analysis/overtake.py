"""From which length attention takes more arithmetic than the MLP, solved on a model's own trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ridgeline.models import Model
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.numbers import Number
from ridgeline.ops.trace import MATRIX_PARTS

#: What operators of attention are called, in some part of their name.
ATTENTION_NAMES = frozenset({"attention", "cross", "joint"})
#: Lengths beyond this are not looked at.
LONGEST = 2**30


@dataclass(frozen=True)
class Overtaking:
    """``length`` is the first at which the matrix products of attention, its projections included, are
    as many as those of the MLP in a pass over a whole sequence; None if there is none below 2^30.
    ``lengths`` samples the two, in FLOPs of all layers.
    """

    model: str
    pairs: str
    length: int | None
    lengths: tuple[int, ...]
    attention: tuple[float, ...]
    mlp: tuple[float, ...]


def attention_overtakes(model: Model, *, pairs: Pairs = Pairs.VISIBLE) -> Overtaking:
    """Solve attention(s) = MLP(s) for the length s by bisection, as their difference grows with s.

    With ``pairs`` all (square), a layer of width d whose MLP has 16 s d^2 FLOPs is overtaken by
    8 s d^2 + 4 s^2 d at s = 2d; with the visible ones of a causal mask at 4d.
    """
    below, reached = 0, 1
    while reached < LONGEST and not _overtaken(model, reached, pairs):
        below, reached = reached, 2 * reached
    length = None
    if _overtaken(model, reached, pairs):
        while reached - below > 1:
            middle = (below + reached) // 2
            below, reached = (below, middle) if _overtaken(model, middle, pairs) else (middle, reached)
        length = reached
    lengths = _samples(length or model.config.window)
    counted = [matrix_flops(model, n, pairs) for n in lengths]
    return Overtaking(
        model=model.config.name,
        pairs=str(pairs),
        length=length,
        lengths=tuple(lengths),
        attention=tuple(float(a) for a, _ in counted),
        mlp=tuple(float(m) for _, m in counted),
    )


def _overtaken(model: Model, length: int, pairs: Pairs) -> bool:
    attention, mlp = matrix_flops(model, length, pairs)
    return attention >= mlp


def _samples(around: int) -> Sequence[int]:
    """Lengths from an eighth to four times of what is of interest."""
    return sorted({max(1, around * i // 8) for i in range(1, 33)})


def matrix_flops(model: Model, length: int, pairs: Pairs) -> tuple[Number, Number]:
    """FLOPs of the matrix products of one sequence, all layers: of attention with its projections, and
    of the layers' other products."""
    ops = Count(pairs=pairs)
    trace = ops.trace(model.whole(ops, ops.batch([Span(length)])))
    attention = mlp = 0
    for op in (op for run in trace.runs for op in trace.ops[run.start : run.stop]):
        work = sum(part.flops.matrix for part in op.parts if part.kind in MATRIX_PARTS) * op.repeat
        if is_attention(op.name):
            attention += work
        else:
            mlp += work
    return attention, mlp


def is_attention(op: str) -> bool:
    """Whether the operator of that name is attention's, a projection of its own included."""
    return not ATTENTION_NAMES.isdisjoint(op.split("."))
