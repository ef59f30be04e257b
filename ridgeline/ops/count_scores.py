"""What becomes of attention's scores between their product and the softmax, counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ridgeline.ops.kernel import Flops, Kernel, Value, whole
from ridgeline.ops.numbers import Number
from ridgeline.ops.records import Score

if TYPE_CHECKING:
    from ridgeline.ops.count import Count

#: Vector operations and exponentials an element of a softcap: two multiplications and a tanh.
SOFTCAP_COST = (5, 1)


def softcap_work(elements: Number) -> Flops:
    vector, exp = SOFTCAP_COST
    return Flops(vector=vector * elements, exp=exp * elements)


def score_changes(
    ops: Count, score: Score, scores: Value, pairs: Number, rows: Number
) -> tuple[list[Kernel], Value]:
    """The parts that change ``scores`` before the softmax, ``pairs`` of all heads of them; and the result.

    A softcap is a part of its own, and a bias another, which adds to each pair what its table says of the
    distance.
    """
    parts = []
    if score.softcap > 0:
        capped = ops.scratch("scores", scores.shape, scores)
        parts.append(ops.part("softcap", (whole(scores),), (whole(capped),), softcap_work(pairs), rows))
        scores = capped
    if score.bias is not None:
        table = ops.weight(score.bias.table)
        biased = ops.scratch("scores", scores.shape, scores, table)
        reads, work = (whole(scores), whole(table)), Flops(vector=pairs)
        parts.append(ops.part("bias", reads, (whole(biased),), work, rows))
        scores = biased
    return parts, scores
