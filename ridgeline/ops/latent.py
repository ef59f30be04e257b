"""Multi-head latent attention: the record that ``ops.attend_latent`` takes, and its two forms.

Keys and values of all heads are made of one latent vector a token (DeepSeek-AI 2024, arXiv:2405.04434,
section 2.1). Only that and one rotated key, which all heads share, are cached. *Expanded*, every head's keys
and values are multiplied out of the latents first. *Absorbed*, the matrix that makes keys goes into the
queries and the one that makes values behind the sum, so that all heads attend to the latents themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ridgeline.ops.numbers import Number
from ridgeline.ops.records import Norm, Weight


class Mla(StrEnum):
    """The form in which latent attention runs: ``auto`` takes fewer operations, sequence by sequence."""

    AUTO = "auto"
    EXPANDED = "expanded"
    ABSORBED = "absorbed"


@dataclass(frozen=True)
class Latent:
    """``heads`` whose keys of ``content`` elements and values of ``value`` elements are products of a latent
    vector of ``rank`` elements, after its ``norm``, with ``up`` [heads * (content + value), rank]: of each
    head first the rows of its keys, then those of its values. ``rotated`` further elements of every key,
    which carry the position, are one vector for all heads."""

    heads: int
    rank: int
    content: int
    rotated: int
    value: int
    norm: Norm
    up: Weight

    @property
    def stored(self) -> int:
        """Elements that a token keeps in a layer's cache: its latent and its rotated key."""
        return self.rank + self.rotated

    @property
    def key(self) -> int:
        """Elements of a head's query and key."""
        return self.content + self.rotated


def is_absorbed(latent: Latent, form: Mla, rows: Number, keys: Number) -> Number:
    """Whether ``rows`` queries attend to ``keys`` keys in the absorbed form; an array if one of them is.

    Expanded, every key costs a product, and every pair of query and key a short one. Absorbed, every query
    costs that product, and every pair a long one. A single row over a long context is absorbed, a prompt is
    expanded.
    """
    if form is not Mla.AUTO:
        return form is Mla.ABSORBED
    product, pairs = latent.rank * (latent.content + latent.value), rows * keys
    expanded = keys * product + pairs * (latent.key + latent.value)
    return rows * product + pairs * (latent.stored + latent.rank) < expanded
