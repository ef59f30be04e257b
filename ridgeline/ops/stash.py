"""Activations that are kept for the backward pass in few bits.

Dynamic Stashing Quantization (Yang et al. 2023, https://arxiv.org/abs/2303.05295) rounds what the
backward pass will read when it is written, and goes on with the exact values. So each such activation is
written once more, in the stash's format, and the backward pass reads that instead; the exact one lives
only as long as the forward pass needs it.
"""

from __future__ import annotations

from dataclasses import replace

from ridgeline.errors import InputError
from ridgeline.ops.formats import INDEX_FORMATS, storage_format
from ridgeline.ops.kernel import Access, Flops, Kernel, Role, Value
from ridgeline.ops.trace import LSE, Loop, OpCost, Trace

#: Vector operations to round an element: its group's maximum, a multiplication, a rounding.
STASH_COST = 3


def stash(trace: Trace, format: str) -> Trace:
    """The trace of a forward and a backward pass with everything that the one keeps for the other in
    ``format``: activations in the format of the pass, not ids, masks, or a row's log-sum-exp.

    Raises InputError for a format that nothing is stored in, and for a trace without a backward pass.
    """
    if trace.forward is None:
        raise InputError("nothing is kept without a backward pass: extend the trace first")
    return _Stash(trace, storage_format(format)).run()


class _Stash:
    def __init__(self, trace: Trace, format: str) -> None:
        self.trace = trace
        self.format = format
        self.values = list(trace.values)
        self.split = len(trace.forward.ops)
        self.stashes: dict[int, Value] = {}  # by the id of the value

    def run(self) -> Trace:
        for id in sorted(self._kept()):
            self._new(self.trace.values[id])
            # What only the backward pass wanted from memory stays on the chip again.
            self.values[id] = replace(self.values[id], role=self.trace.forward.values[id].role)
        forward = tuple(self._writing(op) for op in self.trace.ops[: self.split])
        backward = tuple(self._reading(op) for op in self.trace.ops[self.split :])
        return replace(
            self.trace,
            ops=forward + backward,
            values=tuple(self.values),
            loops=tuple(self._loop(loop) for loop in self.trace.loops),
        )

    def _kept(self) -> set[int]:
        """The storage ids of activations that the forward pass makes and the backward pass reads."""
        written = _storages(self.trace.ops[: self.split], "writes")
        read = _storages(self.trace.ops[self.split :], "reads")
        kept = {i for i in written & read if self._is_stashed(self.trace.values[i])}
        for loop in self.trace.forward.loops:  # the exit of one layer is the entry of the next
            for entry, exit in zip(loop.entry, loop.exit, strict=True):
                if entry.storage in kept:
                    kept.add(exit.storage)
        return kept

    def _is_stashed(self, value: Value) -> bool:
        return value.role is Role.ACTIVATION and value.format not in INDEX_FORMATS and value.name != LSE

    def _new(self, value: Value, base: int | None = None) -> Value:
        stashed = replace(
            value,
            id=len(self.values),
            name=f"{value.name}.stash",
            format=self.format,
            role=Role.ACTIVATION,
            base=base,
        )
        self.values.append(stashed)
        self.stashes[value.id] = stashed
        return stashed

    def _of(self, value: Value) -> Value:
        """What the backward pass reads instead of the value; a view lies in its base's stash."""
        if value.id in self.stashes:
            return self.stashes[value.id]
        if value.storage in self.stashes:
            return self._new(value, self.stashes[value.storage].id)
        return value

    def _writing(self, op: OpCost) -> OpCost:
        return replace(op, parts=tuple(self._write(part) for part in op.parts))

    def _write(self, part: Kernel) -> Kernel:
        reads, writes = (
            tuple(Access(self.values[a.value.id], a.elements) for a in side)
            for side in (part.reads, part.writes)
        )
        stashed = [a for a in part.writes if a.value.id in self.stashes]
        copies = tuple(Access(self.stashes[a.value.id], a.elements) for a in stashed)
        work = part.flops + Flops(vector=STASH_COST * sum(a.elements for a in stashed))
        return replace(part, reads=reads, writes=writes + copies, flops=work)

    def _reading(self, op: OpCost) -> OpCost:
        def read(part: Kernel) -> Kernel:
            return replace(part, reads=tuple(Access(self._of(a.value), a.elements) for a in part.reads))

        return replace(op, parts=tuple(read(part) for part in op.parts))

    def _loop(self, loop: Loop) -> Loop:
        """A backward loop mirrors one whose entry and exit are what is kept of them."""
        mirrored = loop.mirrors
        if mirrored is None:
            return loop
        entry, exit = (
            tuple(self.values[self._of(value).storage] for value in values)
            for values in (mirrored.entry, mirrored.exit)
        )
        return replace(loop, mirrors=replace(mirrored, entry=entry, exit=exit))


def _storages(ops: tuple[OpCost, ...], side: str) -> set[int]:
    return {a.value.storage for op in ops for part in op.parts for a in getattr(part, side)}
