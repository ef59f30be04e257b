"""The record reading: a forward pass noted as kernel calls, which one C++ call replays at every step.

The pass runs once on :class:`Matrix` handles. What it asks for becomes a list of calls, each knowing the
matrices that it reads and makes; from their lifetimes follows where in one workspace every matrix lies.
Rows, lengths and block tables are read from a step's array of numbers, so the calls serve any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ridgeline import _native
from ridgeline.kernels.attention_cache import KV_FORMATS
from ridgeline.kernels.checks import DTYPES
from ridgeline.kernels.linear import ACTIVATIONS, GATED, PackedLinear
from ridgeline.ops.batch import Batch
from ridgeline.ops.latent import Latent
from ridgeline.ops.layers import Layer
from ridgeline.ops.mixture import Router
from ridgeline.ops.profile import Fold
from ridgeline.ops.records import Activation, Heads, Mask, Norm, Rope, Score, Weight
from ridgeline.ops.workspace import Use, place

if TYPE_CHECKING:
    from ridgeline.models.model import Model
    from ridgeline.ops.native_cache import NativeCache


Rows = _native.Rows
Source = _native.Source
#: Matrices begin on a cache line of their own.
_ALIGNMENT = 64


class Unrecordable(Exception):
    """Raised for a pass that no list of native calls serves: one whose calls depend on what is computed, or
    that asks for what the program lacks."""


@dataclass(frozen=True)
class Matrix:
    """Columns [column, column + columns) of value number ``value``, float32; those of ``heads`` heads."""

    value: int
    column: int
    columns: int
    rows: Rows
    heads: int = 1

    @property
    def dim(self) -> int:
        return self.columns // self.heads


@dataclass(frozen=True)
class Call:
    """A kernel call of operator number ``op``, in that one's call number ``turn``: the matrices that it
    reads, the one that it makes, and how it is added to a program once every matrix has its place.

    ``over`` is the input whose place the output may take.
    """

    op: int
    turn: int
    inputs: tuple[Matrix, ...]
    output: Matrix
    add: Callable[[_native.Program, Callable[[Matrix], _native.Operand]], None]
    over: Matrix | None = None


@dataclass(frozen=True)
class Recording:
    """A forward pass ready to be replayed.

    - ``weights``: the tensors that the calls know by number.
    - ``row_bytes``: what a row of the step takes of the workspace.
    - ``outputs``: the results; ``alone`` says that the pass returns one, not a tuple.
    - ``ops``: each operator's name, as in traces, and how often it is called.
    - ``calls``: the operator that each kernel call belongs to, by number, and which call of it that is.
    - ``ropes``: the rotations of the layers; their tables of angles come with the step, in this order.
    """

    program: _native.Program
    weights: tuple[torch.Tensor, ...]
    row_bytes: int
    outputs: tuple[Matrix, ...]
    alone: bool
    ops: tuple[tuple[str, int], ...]
    calls: tuple[tuple[int, int], ...]
    ropes: tuple[Rope, ...]
    segmented: bool


def record(model: Model, *, all_rows: bool, cache: NativeCache | None, attention_format: str) -> Recording:
    """Record ``model``'s forward pass, with logits of all rows or of those that a step wants.

    The recording serves every cache that is laid out like ``cache``; None is a pass without one, whose
    attention multiplies as ``attention_format``, bf16 or fp32, says.

    Raises Unrecordable for a pass with an operator that no call does: experts, latents, a rotation of a part
    of the heads, or several of which one depends on the request, a relative bias, cross-attention.
    """
    ops = Record(KV_FORMATS[attention_format])
    batch = Batch(
        ids=Source.ids,
        positions=Source.positions,
        spans=None,
        logit_rows=None if all_rows else Source.wanted,
        first_rows=Source.first,
        segments=Source.segments,
        cache=None if cache is None else _RecordedCache(cache),
    )
    result = model.forward(ops, batch)
    alone = not isinstance(result, tuple)
    return ops.finish((result,) if alone else result, alone=alone)


@dataclass(frozen=True)
class _RecordedCache:
    """Stands for a cache in a recorded pass: its layers are numbers."""

    like: NativeCache

    def layer(self, index: int) -> tuple[NativeCache, int]:
        return self.like, index


class Record:
    """The operators, noted. One instance records one pass."""

    def __init__(self, attention_format: _native.KvFormat) -> None:
        self._attention_format = attention_format
        self._calls: list[Call] = []
        self._columns: list[int] = []  # of each value
        self._weights: dict[int, int] = {}  # number of each tensor, by its id
        self._tensors: list[torch.Tensor] = []
        self._fold = Fold()
        self._ropes: list[Rope] = []
        self._segmented = False

    # -- the operators ------------------------------------------------------------------------------

    def embed(self, ids: Source, weight: Weight, *, offset: int = 0, scale: float = 1.0) -> Matrix:
        op = self._fold.note(weight.name)
        self._segmented |= ids is Source.segments
        table = weight.data
        out = self._new(weight.shape[1], Rows.all)
        if isinstance(table, PackedLinear):
            number, layout = self._number(table.data), table.layout
            return self._call(
                op,
                (),
                out,
                lambda program, at: program.embed_packed(ids, offset, number, layout, at(out), scale),
            )
        number, dtype, length = self._number(table), DTYPES[table.dtype], table.shape[0]
        return self._call(
            op, (), out, lambda program, at: program.embed(ids, offset, number, dtype, length, at(out), scale)
        )

    def norm(self, x: Matrix, norm: Norm) -> Matrix:
        op = self._fold.note(norm.weight.name)
        return self._norm(op, x, self._new(x.columns, x.rows), norm)

    def linear(
        self,
        x: Matrix,
        weight: Weight,
        *,
        bias: Weight | None = None,
        activation: Activation | None = None,
        residual: Matrix | None = None,
        name: str | None = None,
    ) -> Matrix:
        op = self._fold.note(name or weight.name)
        packed = weight.data
        out = self._new(packed.columns, x.rows)
        kind = ACTIVATIONS[activation.removesuffix(GATED)] if activation else _native.Activation.none
        number = self._number(packed.data)
        bias_number, bias_dtype = self._vector(bias)

        def add(program: _native.Program, at: Callable[[Matrix], _native.Operand]) -> None:
            other = None if residual is None else at(residual)
            program.linear(at(x), packed.layout, number, bias_number, bias_dtype, kind, other, at(out))

        inputs = (x,) if residual is None else (x, residual)
        return self._call(op, inputs, out, add, over=residual)

    def split_heads(self, qkv: Matrix, heads: Heads) -> tuple[Matrix, Matrix, Matrix]:
        op = self._fold.note("split_heads")
        query, kv = heads.query * heads.dim, heads.kv * heads.dim
        q = replace(qkv, columns=query, heads=heads.query)
        k = replace(qkv, column=qkv.column + query, columns=kv, heads=heads.kv)
        v = replace(qkv, column=qkv.column + query + kv, columns=kv, heads=heads.kv)
        # Nothing else reads the projections, so they are normalised where they are.
        if heads.query_norm is not None:
            self._norm(op, q, q, heads.query_norm)
        if heads.key_norm is not None:
            self._norm(op, k, k, heads.key_norm)
        return q, k, v

    def attend(
        self,
        q: Matrix,
        k: Matrix | None,
        v: Matrix | None,
        *,
        spans: object,
        mask: Mask,
        score: Score,
        rope: Rope | None = None,
        cache: tuple[NativeCache, int] | None = None,
        name: str = "attention",
    ) -> Matrix:
        op = self._fold.note(name)
        if k is None or score.bias is not None:
            raise Unrecordable("a program has no cross-attention, and no bias by distance")
        rotation = 0 if rope is None else self._rotation(rope, q.dim)
        layout, number = self._own_rows(k, v) if cache is None else (cache[0].layout, cache[1])
        seen = _native.AttentionMask(mask.causal, *mask.window, 0)
        scores = _native.AttentionScore(score.scale, score.softcap, 0, 0)
        out = self._new(q.columns, q.rows)
        return self._call(
            op,
            (q, k, v),
            out,
            lambda program, at: program.attend(
                at(q), at(k), at(v), layout, number, seen, scores, rotation, at(out)
            ),
        )

    def _rotation(self, rope: Rope, dim: int) -> int:
        """The number by which calls know a rotation, from 1 on."""
        if rope not in self._ropes:
            self._ropes.append(rope)
        if rope.dim != dim or (len(self._ropes) > 1 and any(r.by_request for r in self._ropes)):
            raise Unrecordable("a program rotates whole heads, by positions if in several ways")
        return self._ropes.index(rope) + 1

    def _own_rows(self, k: Matrix, v: Matrix) -> tuple[_native.KvLayout, int]:
        """How a pass without a cache multiplies its own keys and values; cache number -1."""
        return _native.KvLayout(self._attention_format, k.heads, k.dim, v.dim), -1

    def store(self, k: Matrix, v: Matrix, *, spans: object, cache: object) -> None:
        raise Unrecordable("a program stores keys and values only where it attends to them")

    def softcap(self, x: Matrix, cap: float) -> Matrix:
        op = self._fold.note("softcap")
        # In place, since nothing else reads what is capped: logits of a large vocabulary are held once.
        return self._call(op, (x,), x, lambda program, at: program.softcap(at(x), cap, at(x)))

    def attend_latent(self, q: Matrix, kv: Matrix, latent: Latent, **options: object) -> Matrix:
        raise Unrecordable("the native caches hold no latents")

    def route(self, x: Matrix, router: Router) -> Matrix:
        raise Unrecordable("which experts a row takes is known only when it is there")

    def add(self, a: Matrix, b: Matrix) -> Matrix:
        op = self._fold.note("add")
        out = self._new(a.columns, a.rows)
        return self._call(op, (a, b), out, lambda program, at: program.add(at(a), at(b), at(out)), over=a)

    def take_rows(self, x: Matrix, rows: Source | None) -> Matrix:
        if rows is None:
            return x
        op = self._fold.note("take_rows")
        out = self._new(x.columns, Rows.first if rows is Source.first else Rows.wanted)
        return self._call(op, (x,), out, lambda program, at: program.take_rows(at(x), at(out)))

    def repeat(self, layers: Sequence[Layer], body: Callable[[Layer, Matrix], Matrix], x: Matrix) -> Matrix:
        for layer in self._fold.layers(layers):
            x = body(layer, x)
        return x

    # -- putting it together --------------------------------------------------------------------------

    def finish(self, results: tuple[Matrix, ...], *, alone: bool) -> Recording:
        """The recording of what was noted, whose results are ``results``."""
        offsets, row_bytes = self._places(results)

        def at(x: Matrix) -> _native.Operand:
            return _native.Operand(offsets[x.value], self._columns[x.value], x.column, x.columns, x.rows)

        program = _native.Program()
        for call in self._calls:
            call.add(program, at)
        return Recording(
            program=program,
            weights=tuple(self._tensors),
            row_bytes=row_bytes,
            outputs=results,
            alone=alone,
            ops=tuple(zip(self._fold.names, self._fold.calls, strict=True)),
            calls=tuple((call.op, call.turn) for call in self._calls),
            ropes=tuple(self._ropes),
            segmented=self._segmented,
        )

    def _places(self, results: tuple[Matrix, ...]) -> tuple[list[int], int]:
        """The offset of each value, bytes a row of the step, results numbered from -1 down; and the sum."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        over: dict[int, int] = {}
        for i, call in enumerate(self._calls):
            first.setdefault(call.output.value, i)
            for matrix in (*call.inputs, call.output):
                last[matrix.value] = i
            if call.over is not None:
                over[call.output.value] = call.over.value
        offsets = [0] * len(self._columns)
        for number, result in enumerate(results):
            offsets[result.value] = -1 - number
        inner = [value for value in first if offsets[value] >= 0]  # in the order of their first calls
        index = {value: i for i, value in enumerate(inner)}
        uses = []
        for value in inner:
            size = -(-4 * self._columns[value] // _ALIGNMENT) * _ALIGNMENT
            below = over.get(value)
            fits = (
                below in index
                and last[below] == first[value]
                and self._columns[below] == self._columns[value]
            )
            uses.append(Use(size, first[value], last[value], index[below] if fits else None))
        places, row_bytes = place(uses)
        for value, offset in zip(inner, places, strict=True):
            offsets[value] = offset
        return offsets, row_bytes

    def _norm(self, op: int, x: Matrix, out: Matrix, norm: Norm) -> Matrix:
        weight, weight_dtype = self._norm_weight(norm)
        bias, bias_dtype = self._vector(norm.bias)
        kind = _native.NormKind.rms if norm.kind == "rms" else _native.NormKind.layer
        return self._call(
            op,
            (x,),
            out,
            lambda program, at: program.norm(
                at(x), kind, x.heads, weight, weight_dtype, bias, bias_dtype, norm.eps, at(out)
            ),
        )

    def _new(self, columns: int, rows: Rows) -> Matrix:
        self._columns.append(columns)
        return Matrix(len(self._columns) - 1, 0, columns, rows)

    def _call(
        self,
        op: int,
        inputs: tuple[Matrix, ...],
        output: Matrix,
        add: Callable[[_native.Program, Callable[[Matrix], _native.Operand]], None],
        over: Matrix | None = None,
    ) -> Matrix:
        self._calls.append(Call(op, self._fold.calls[op] - 1, inputs, output, add, over))
        return output

    def _number(self, tensor: torch.Tensor) -> int:
        """The number by which calls know a tensor, whose address the step gives."""
        if id(tensor) not in self._weights:
            self._weights[id(tensor)] = len(self._tensors)
            self._tensors.append(tensor)
        return self._weights[id(tensor)]

    def _norm_weight(self, norm: Norm) -> tuple[int, _native.Dtype]:
        """As :meth:`_vector`; a weight that counts as another is computed once, in float32."""
        if not norm.changes_weight:
            return self._vector(norm.weight)
        self._tensors.append((norm.weight.data.float() + norm.offset) * norm.scale)
        return len(self._tensors) - 1, _native.Dtype.fp32

    def _vector(self, weight: Weight | None) -> tuple[int, _native.Dtype]:
        """Number and dtype of a bias or a norm's weight; -1 for none."""
        if weight is None:
            return -1, _native.Dtype.fp32
        return self._number(weight.data), DTYPES[weight.data.dtype]
