"""How many of a model's parameters one token uses: all but those of the experts that it does not take."""

from __future__ import annotations

from ridgeline.models.model import Model
from ridgeline.ops.count import Count
from ridgeline.ops.kernel import Role


class _OneToken(Count):
    """A count that says what share of each weight a pass uses."""

    def parameters(self) -> int:
        shared = frozenset().union(*(loop.shared for loop in self._loops))  # by the layers of a loop
        kinds: dict[int, tuple[float, int]] = {}  # of each weight's value: the share that is used, its layers
        for op in self._ops:
            for access in (a for part in op.parts for a in part.reads if a.value.role is Role.WEIGHT):
                # Of an embedding a token reads a row, but which one is open: its parameters count as used.
                used = access.elements / access.value.elements if op.kind == "experts" else 1.0
                kinds[access.value.id] = (used, 1 if access.value.id in shared else op.repeat)
        total = 0
        for weight, value in self._weights.values():
            if weight.trained and value.id in kinds:
                used, layers = kinds[value.id]
                total += round(weight.numel * used) * layers
        return total


def active_parameters(model: Model) -> int:
    """The parameters that a pass over one token uses: embedding and output matrix included, tied ones once,
    and of a mixture the experts that one token takes."""
    ops = _OneToken()
    model.whole(ops, model.smallest_batch(ops))
    return ops.parameters()
