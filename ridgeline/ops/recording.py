"""What a recorded pass is made of: kinds of rows, matrices, calls, and where the matrices lie.

How many rows a step has is known only when it runs. A recording therefore knows *kinds* of rows (all rows,
those that want logits, one a sequence, those of texts), and places matrices kind by kind: each kind has a
region of the workspace of its own, in which a matrix lies behind so many bytes for every row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ridgeline import _native
from ridgeline.ops.records import Rope
from ridgeline.ops.workspace import Use, place

#: Matrices begin on a cache line of their own.
_ALIGNMENT = 64


class Unrecordable(Exception):
    """Raised for a pass that asks for what the program lacks."""


@dataclass(frozen=True)
class Rows:
    """A kind of rows: of counts that a step names, each times a whole number, the sum."""

    terms: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, name: str) -> Rows:
        return cls(((name, 1),))

    def __add__(self, other: Rows) -> Rows:
        sums = dict(self.terms)
        for name, factor in other.terms:
            sums[name] = sums.get(name, 0) + factor
        return Rows(tuple(sorted(sums.items())))

    def times(self, n: int) -> Rows:
        return Rows(tuple((name, factor * n) for name, factor in self.terms))

    def over(self, n: int) -> Rows:
        if any(factor % n for _, factor in self.terms):
            raise Unrecordable(f"rows {self.terms} are no multiple of {n}")
        return Rows(tuple((name, factor // n) for name, factor in self.terms))

    def count(self, counts: Mapping[str, int]) -> int:
        return sum(factor * counts[name] for name, factor in self.terms)


@dataclass(frozen=True)
class Index:
    """Whole numbers of a step, one a row: token ids, positions, rows that are wanted."""

    name: str
    rows: Rows


@dataclass(frozen=True)
class Cut:
    """Stands for spans in a recorded pass: one of the ways in which a step's rows are sequences."""

    name: str

    @property
    def sequences(self) -> Index:
        """Of every row the number of its sequence."""
        return Index(f"{self.name}.sequences", Rows.of(self.name))


@dataclass(frozen=True)
class Matrix:
    """Columns [column, column + columns) of value number ``value``, float32; those of ``heads`` heads.

    ``rows`` and ``stride``, floats from row to row, are the value's unless this is a view that cuts its rows
    in another way.
    """

    value: int
    column: int
    columns: int
    rows: Rows
    stride: int
    heads: int = 1

    @property
    def dim(self) -> int:
        return self.columns // self.heads

    @property
    def is_whole(self) -> bool:
        return self.columns == self.stride


@dataclass(frozen=True)
class Value:
    """A matrix's numbers: ``columns`` for each of ``rows``. One that a step gives has its ``input`` name."""

    columns: int
    rows: Rows
    input: str | None = None


@dataclass(frozen=True)
class Places:
    """How calls know by number what a step gives: matrices as operands, kinds of rows, indices, cuts."""

    operand: Callable[[Matrix], _native.Operand]
    index: Callable[[Index], int]
    cut: Callable[[Cut], int]


@dataclass(frozen=True)
class Call:
    """A kernel call of operator number ``op``, in that one's call number ``turn``: the matrices that it
    reads, those that it makes, and how it is added to a program once every matrix has its place.

    ``over`` is the input whose place the output may take.
    """

    op: int
    turn: int
    inputs: tuple[Matrix, ...]
    outputs: tuple[Matrix, ...]
    add: Callable[[_native.Program, Places], None]
    over: Matrix | None = None


@dataclass(frozen=True)
class Recording:
    """A forward pass ready to be replayed.

    - ``weights``: the tensors that the calls know by number.
    - ``kinds``: the kinds of rows, and ``row_bytes``: what a row of each takes of the workspace.
    - ``indices``, ``cuts``, ``inputs``: what a step must give, by name, in the order of their numbers.
    - ``outputs``: kind of rows and columns of each result; ``alone`` says that the pass returns one, not a
      tuple.
    - ``ops``: each operator's name, as in traces, and how often it is called.
    - ``calls``: the operator that each kernel call belongs to, by number, and which call of it that is.
    - ``ropes``: the rotations of the layers; their tables of angles come with the step, in this order.
    """

    program: _native.Program
    weights: tuple[torch.Tensor, ...]
    kinds: tuple[Rows, ...]
    row_bytes: tuple[int, ...]
    indices: tuple[str, ...]
    cuts: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[tuple[Rows, int], ...]
    alone: bool
    ops: tuple[tuple[str, int], ...]
    calls: tuple[tuple[int, int], ...]
    ropes: tuple[Rope, ...]


class Numbers:
    """Gives out numbers in the order in which things are first asked for."""

    def __init__(self) -> None:
        self.known: dict[object, int] = {}

    def __call__(self, thing: object) -> int:
        return self.known.setdefault(thing, len(self.known))


def assemble(
    calls: Sequence[Call],
    values: Sequence[Value],
    results: tuple[Matrix, ...],
    *,
    alone: bool,
    weights: Sequence[torch.Tensor],
    ops: tuple[tuple[str, int], ...],
    ropes: tuple[Rope, ...],
) -> Recording:
    """The recording of ``calls`` on ``values``, whose results are ``results``."""
    kinds, indices, cuts, inputs = Numbers(), Numbers(), Numbers(), Numbers()
    outputs = {result.value: number for number, result in enumerate(results)}
    inner = _places(calls, values, outputs)
    where = {value: offset for _, offsets, _ in inner for value, offset in offsets.items()}

    def operand(x: Matrix) -> _native.Operand:
        value = values[x.value]
        region, rows = kinds(value.rows), kinds(x.rows)
        if value.input is not None:
            at = _native.Place.input, inputs(value.input)
        elif x.value in outputs:
            at = _native.Place.output, outputs[x.value]
        else:
            at = _native.Place.workspace, where[x.value]
        return _native.Operand(at[0], region, at[1], x.stride, x.column, x.columns, rows)

    program = _native.Program()
    places = Places(operand, lambda x: indices(x.name), lambda x: cuts(x.name))
    for call in calls:
        call.add(program, places)
    row_bytes = {rows: size for rows, _, size in inner}
    return Recording(
        program=program,
        weights=tuple(weights),
        kinds=tuple(kinds.known),
        row_bytes=tuple(row_bytes.get(rows, 0) for rows in kinds.known),
        indices=tuple(indices.known),
        cuts=tuple(cuts.known),
        inputs=tuple(inputs.known),
        outputs=tuple((x.rows, x.columns) for x in results),
        alone=alone,
        ops=ops,
        calls=tuple((call.op, call.turn) for call in calls),
        ropes=ropes,
    )


def _places(
    calls: Sequence[Call], values: Sequence[Value], outputs: Mapping[int, int]
) -> list[tuple[Rows, dict[int, int], int]]:
    """Of each kind of rows where its values lie in its region, bytes a row, and what a row takes in all."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    over: dict[int, int] = {}
    for i, call in enumerate(calls):
        for matrix in call.outputs:
            first.setdefault(matrix.value, i)
        for matrix in (*call.inputs, *call.outputs):
            last[matrix.value] = i
        if call.over is not None:
            over[call.outputs[0].value] = call.over.value
    by_kind: dict[Rows, list[int]] = {}
    for value in first:  # in the order of their first calls
        if value not in outputs:
            by_kind.setdefault(values[value].rows, []).append(value)
    placed = []
    for rows, inner in by_kind.items():
        index = {value: i for i, value in enumerate(inner)}
        uses = []
        for value in inner:
            size = -(-4 * values[value].columns // _ALIGNMENT) * _ALIGNMENT
            below = over.get(value)
            fits = (
                below in index
                and last[below] == first[value]
                and values[below].columns == values[value].columns
            )
            uses.append(Use(size, first[value], last[value], index[below] if fits else None))
        offsets, row_bytes = place(uses)
        placed.append((rows, dict(zip(inner, offsets, strict=True)), row_bytes))
    return placed
