"""What diffusion Transformers add to the record reading: rows cut in several ways, and in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ridgeline import _native
from ridgeline.kernels.linear import ACTIVATIONS
from ridgeline.models.denoising import Denoising, Spans3D
from ridgeline.ops.recording import Call, Cut, Index, Matrix, Places, Rows, Unrecordable
from ridgeline.ops.records import Activation, Weight

if TYPE_CHECKING:
    from ridgeline.ops.profile import Fold

#: The rows of images, one a sequence, and the rows of texts.
IMAGES, SEQUENCES, TEXT = (Rows.of(name) for name in ("images", "sequences", "text"))
#: The kind of rows of each matrix that a step is given, and of each index.
INPUTS = {
    **{"patches": IMAGES, "positions": IMAGES, "times": SEQUENCES, "text": TEXT, "pooled": SEQUENCES},
    **{"sizes": SEQUENCES.times(2), "ratios": SEQUENCES, "moments": IMAGES},
}
INDICES = {"labels": SEQUENCES, "by_place": IMAGES, "by_frame": IMAGES}
#: The ways in which rows are cut.
CUTS = ("images", "frames", "tracks", "text", "cross", "joint", "segments")


class RecordedDiffusion:
    """The operators that these models add, noted."""

    _fold: Fold
    _calls: list[Call]
    _call: Callable[..., Matrix]
    _new: Callable[[int, Rows], Matrix]
    _input: Callable[[str, torch.Tensor, Rows], Matrix]
    _take: Callable[[int, Matrix, Index], Matrix]
    _vector: Callable[[Weight], tuple[int, _native.Dtype]]

    def denoising(self, batch: Denoising) -> Denoising:
        """A step that has what ``batch`` has, as handles."""
        given: dict[str, Any] = {
            name: self._input(name, getattr(batch, name), rows)
            for name, rows in INPUTS.items()
            if getattr(batch, name) is not None
        }
        given |= {
            name: Index(name, rows) for name, rows in INDICES.items() if getattr(batch, name) is not None
        }
        cuts = {name: Cut(name) for name in CUTS if getattr(batch.spans, name) is not None}
        return Denoising(Spans3D(**cuts), **given)

    def activate(self, x: Matrix, activation: Activation) -> Matrix:
        op = self._fold.note(activation)
        out = self._new(x.columns, x.rows)
        kind = ACTIVATIONS[activation]
        return self._call(
            op, (x,), out, lambda program, at: program.activate(at.operand(x), kind, at.operand(out))
        )

    def add_vector(self, x: Matrix, vector: Weight) -> Matrix:
        op = self._fold.note(vector.name)
        out = self._new(vector.numel, x.rows)
        number, dtype = self._vector(vector)
        parts = vector.numel // x.columns

        def add(program: _native.Program, at: Places) -> None:
            program.add_vector(at.operand(x), number, dtype, parts, at.operand(out))

        return self._call(op, (x,), out, add)

    def columns(self, x: Matrix, parts: int) -> tuple[Matrix, ...]:
        self._fold.note("columns")
        width = x.columns // parts
        return tuple(replace(x, column=x.column + i * width, columns=width) for i in range(parts))

    def stack_columns(self, x: Matrix, parts: int) -> Matrix:
        self._fold.note("stack_columns")
        width = _whole(x).columns // parts
        return replace(x, columns=width, stride=width, rows=x.rows.times(parts))

    def unstack_rows(self, x: Matrix, parts: int) -> Matrix:
        self._fold.note("unstack_rows")
        width = _whole(x).columns * parts
        return replace(x, columns=width, stride=width, rows=x.rows.over(parts))

    def join_columns(self, a: Matrix, b: Matrix) -> Matrix:
        op = self._fold.note("join_columns")
        out = self._new(a.columns + b.columns, a.rows)
        return self._call(
            op,
            (a, b),
            out,
            lambda program, at: program.join_columns(at.operand(a), at.operand(b), at.operand(out)),
        )

    def permute_rows(self, x: Matrix, order: Index) -> Matrix:
        return self._take(self._fold.note("permute_rows"), x, order)

    def join_rows(self, a: Matrix, b: Matrix, *, first: Cut, second: Cut) -> Matrix:
        op = self._fold.note("join_rows")
        out = replace(self._new(a.columns, a.rows + b.rows), heads=a.heads)

        def add(program: _native.Program, at: Places) -> None:
            program.join_rows(at.operand(a), at.operand(b), at.cut(first), at.cut(second), at.operand(out))

        return self._call(op, (a, b), out, add)

    def split_rows(self, x: Matrix, *, first: Cut, second: Cut) -> tuple[Matrix, Matrix]:
        op = self._fold.note("split_rows")
        a, b = (replace(self._new(x.columns, ROWS_OF[cut.name]), heads=x.heads) for cut in (first, second))

        def add(program: _native.Program, at: Places) -> None:
            program.split_rows(at.operand(x), at.cut(first), at.cut(second), at.operand(a), at.operand(b))

        self._calls.append(Call(op, self._fold.calls[op] - 1, (x,), (a, b), add))
        return a, b


#: The kind of rows that a cut cuts, of those that rows are joined from.
ROWS_OF = {"images": IMAGES, "text": TEXT}


def _whole(x: Matrix) -> Matrix:
    """x, unless its rows don't lie one after another."""
    if not x.is_whole:
        raise Unrecordable("only whole rows are stacked where they lie")
    return x
