"""What mixtures of experts add to the record reading.

Which experts a row takes is known only when a step runs: the call sorts the rows by expert itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ridgeline import _native
from ridgeline.kernels.experts import GROUP_SCORES, SCORINGS
from ridgeline.kernels.linear import ACTIVATIONS, GATED, PackedLinear
from ridgeline.ops.mixture import Experts, Router
from ridgeline.ops.recording import Matrix, Places, Rows
from ridgeline.ops.records import Weight

if TYPE_CHECKING:
    from ridgeline.ops.profile import Fold


class RecordedExperts:
    """The operators of mixtures, noted."""

    _fold: Fold
    _tensors: list[torch.Tensor]
    _weights: dict[int, int]
    _call: Callable[..., Matrix]
    _new: Callable[[int, Rows], Matrix]
    _number: Callable[[torch.Tensor], int]
    _vector: Callable[[Weight | None], tuple[int, _native.Dtype]]

    def route(self, x: Matrix, router: Router) -> Matrix:
        """A matrix whose rows hold the numbers of their experts, as int32, and then their weights."""
        op = self._fold.note(router.weight.name)
        packed = router.weight.data
        logits, routes = self._new(router.experts, x.rows), self._new(2 * router.chosen, x.rows)
        number = self._number(packed.data)
        bias, bias_dtype = self._vector(router.bias)

        def multiply(program: _native.Program, at: Places) -> None:
            nothing = -1, _native.Dtype.fp32, _native.Activation.none
            program.linear(at.operand(x), packed.layout, number, *nothing, None, None, at.operand(logits))

        def choose(program: _native.Program, at: Places) -> None:
            groups = router.groups, router.open_groups, GROUP_SCORES[router.group_score]
            program.route(
                at.operand(logits), router.chosen, SCORINGS[router.scoring], bias, bias_dtype, *groups,
                router.normalised, router.scale, at.operand(routes),
            )  # fmt: skip

        self._call(op, (x,), logits, multiply)
        return self._call(op, (logits,), routes, choose)

    def experts(
        self, x: Matrix, routes: Matrix, experts: Experts, *, residual: Matrix | None = None
    ) -> Matrix:
        op = self._fold.note(experts.name)
        gate_up, down = experts.gate_up.data, experts.down.data
        first_gate_up, first_down = self._numbers(gate_up), self._numbers(down)
        kind = ACTIVATIONS[experts.activation.removesuffix(GATED)]
        out = self._new(down[0].columns, x.rows)

        def add(program: _native.Program, at: Places) -> None:
            program.experts(
                at.operand(x), at.operand(routes), len(gate_up), routes.columns // 2, gate_up[0].layout,
                first_gate_up, down[0].layout, first_down, kind,
                None if residual is None else at.operand(residual), at.operand(out),
            )  # fmt: skip

        inputs = (x, routes) if residual is None else (x, routes, residual)
        apart = residual is not None and residual.value != x.value
        return self._call(op, inputs, out, add, over=residual if apart else None)

    def _numbers(self, matrices: tuple[PackedLinear, ...]) -> int:
        """The number of the first of experts' matrices, whose numbers follow each other."""
        if id(matrices) not in self._weights:
            self._weights[id(matrices)] = len(self._tensors)
            self._tensors += [matrix.data for matrix in matrices]
        return self._weights[id(matrices)]
