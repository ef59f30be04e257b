"""What a softmax over tiles of keys costs beyond the operator's own: keeping one result for all of them.

A row's result so far belongs to the largest score so far; a later tile may raise it (Milakov and
Gimelshein 2018, https://arxiv.org/abs/1805.02867). ``visits`` count a row once for every tile.
"""

from __future__ import annotations

from ridgeline.ops.kernel import Flops
from ridgeline.ops.numbers import Number


def rescaled(visits: Number, dim: int) -> Flops:
    """The result is multiplied by exp(old maximum - new maximum); its division waits for the end."""
    return Flops(vector=dim * visits, exp=visits)


def renormalised(visits: Number, dim: int) -> Flops:
    """The same where the result is divided at every visit too, and the tile's maximum may be the lower."""
    return Flops(vector=2 * dim * visits, exp=2 * visits)


def merged(parts: Number, dim: int) -> Flops:
    """Every partial result is multiplied by its share of the sum, and added."""
    return Flops(vector=2 * dim * parts, exp=parts)
