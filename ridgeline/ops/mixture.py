"""Mixtures of experts: the records that ``ops.route`` and ``ops.experts`` take, and how many are touched.

Which experts a token takes is known only when the pass runs. A count assumes that every token takes each
expert with the same chance and without regard to other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ridgeline.ops.numbers import Number
from ridgeline.ops.records import Activation, Weight


@dataclass(frozen=True)
class Router:
    """How a row chooses ``chosen`` of the experts, and with which weights their outputs are summed.

    ``weight`` [experts, width] gives a logit an expert; ``scoring`` makes scores of them. The experts of
    highest score are chosen, by score + ``bias`` if there is one. Of ``groups`` equal groups of experts
    only ``open_groups`` are open to a row: those of the highest score, which is that of their best expert
    (``max``) or the sum of their best two (``top2``). The weights are the scores of the chosen, without the
    bias, divided by their sum if ``normalised``, times ``scale``.
    """

    weight: Weight
    chosen: int
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    normalised: bool = True
    scale: float = 1.0
    bias: Weight | None = None
    groups: int = 1
    open_groups: int = 1
    group_score: Literal["max", "top2"] = "max"

    @property
    def experts(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class Experts:
    """Gated MLPs side by side: ``gate_up`` [experts, 2 intermediate, width], whose first half of outputs
    gates the second, and ``down`` [experts, width, intermediate]."""

    name: str
    gate_up: Weight
    down: Weight
    activation: Activation

    @property
    def number(self) -> int:
        return self.gate_up.shape[0]

    @property
    def intermediate(self) -> int:
        return self.down.shape[2]


def touched(experts: int, chosen: int, rows: Number) -> Number:
    """How many of ``experts`` at least one of ``rows`` tokens takes, on average, when every token takes
    ``chosen`` different ones at random: experts (1 - (1 - chosen / experts)^rows).

    A token passes over a given expert with probability 1 - chosen / experts, so that all pass over it with
    that to the power of rows; expectations add up whether or not events depend on each other. The same
    holds where experts come in groups, as long as all are equally likely.
    """
    return experts * (1 - (1 - chosen / experts) ** rows)
