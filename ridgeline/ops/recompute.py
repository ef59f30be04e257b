"""What a backward pass computes again instead of keeping: copies of forward operators on fresh values.

``selective`` recomputes attention's scores and weights, ``full`` every layer from its input (Korthikanti
et al. 2022, https://arxiv.org/abs/2205.05198). A fused kernel recomputes its scores in any case, so that
selective changes nothing there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum

from ridgeline.errors import InputError
from ridgeline.ops.kernel import Access, Kernel, Role, Value
from ridgeline.ops.trace import Loop, OpCost, Trace

#: What the name of an operator that is computed again ends with.
AGAIN = ".recompute"


class Recompute(StrEnum):
    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


def policy_of(name: str) -> Recompute:
    """The policy of that name; InputError lists them."""
    try:
        return Recompute(name)
    except ValueError:
        raise InputError(f"recompute is {name!r}; choose one of: {', '.join(Recompute)}") from None


#: Attention's parts between its two products.
SCORE_PARTS = ("softcap", "bias", "softmax", "dropout")


class _Copies:
    """Appends a copy of each value that is computed again to ``values``, and reads it in its place."""

    def __init__(self, values: list[Value], parts: Iterable[Kernel]) -> None:
        self.values = values
        self.made = {a.value.storage for part in parts for a in part.writes}
        self.copies: dict[int, Value] = {}

    def of(self, value: Value) -> Value:
        """The copy of a value that is made again, or lies in one that is; any other itself."""
        if value.id not in self.copies:
            if value.storage not in self.made or value.role is Role.WEIGHT:
                return value
            base = None if value.base is None else self.of(self.values[value.base]).id
            copy = replace(value, id=len(self.values), base=base)
            self.values.append(copy)
            self.copies[value.id] = copy
        return self.copies[value.id]

    def part(self, part: Kernel) -> Kernel:
        reads, writes = (tuple(self._access(a) for a in side) for side in (part.reads, part.writes))
        return replace(part, reads=reads, writes=writes)

    def _access(self, access: Access) -> Access:
        return Access(self.of(access.value), access.elements)


def copy_of_run(values: list[Value], forward: Trace, run: Loop) -> tuple[list[OpCost], tuple[Value, ...]]:
    """The operators of a run's layer once more, and the values that take the place of its exit."""
    ops = forward.ops[run.start : run.stop]
    copies = _Copies(values, (part for op in ops for part in op.parts))
    again = [replace(op, name=op.name + AGAIN, parts=tuple(map(copies.part, op.parts))) for op in ops]
    return again, tuple(copies.of(value) for value in run.exit)


def attention_again(values: list[Value], op: OpCost) -> tuple[OpCost, OpCost]:
    """The operator that makes attention's weights again, and attention as if these had been kept."""
    between = [part for part in op.parts if part.kind in ("scores", *SCORE_PARTS)]
    copies = _Copies(values, between)
    again = [copies.part(part) for part in between]
    last = op.parts[-1]
    reads = tuple(Access(copies.of(a.value), a.elements) for a in last.reads)
    kept = (*again, replace(last, reads=reads))
    return OpCost(op.name + AGAIN, op.kind, tuple(again), op.repeat), replace(op, parts=kept)
