"""The record reading: a forward pass noted as kernel calls, which one C++ call replays at every step.

The pass runs once on :class:`Matrix` handles. What it asks for becomes a list of calls, each knowing the
matrices that it reads and makes; from their lifetimes follows where in one workspace every matrix lies.
Rows, lengths and block tables are read from a step's numbers, so the calls serve any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ridgeline import _native
from ridgeline.kernels.attention_cache import KV_FORMATS
from ridgeline.kernels.checks import DTYPES
from ridgeline.kernels.linear import ACTIVATIONS, GATED, PackedLinear
from ridgeline.ops.batch import Batch, Memory
from ridgeline.ops.layers import Layer
from ridgeline.ops.profile import Fold
from ridgeline.ops.record_diffusion import RecordedDiffusion
from ridgeline.ops.record_experts import RecordedExperts
from ridgeline.ops.record_latent import RecordedLatents
from ridgeline.ops.recording import (
    Call,
    Cut,
    Index,
    Matrix,
    Places,
    Recording,
    Rows,
    Value,
    assemble,
)
from ridgeline.ops.records import Activation, Heads, Mask, Norm, RelativeBias, Rope, Score, Weight
from ridgeline.ops.relative import bias_by_distance

if TYPE_CHECKING:
    from ridgeline.models.denoising import Denoising
    from ridgeline.models.model import EncoderDecoder, Model
    from ridgeline.ops.native_cache import NativeCache

#: The rows of a step of tokens, those that want logits, and one a sequence.
TOKENS, WANTED, FIRST = (Rows.of(name) for name in ("tokens", "wanted", "first"))
#: The rows of an encoder's output.
MEMORY = Rows.of("memory")
_FP32 = _native.Dtype.fp32


def record(
    model: Model,
    *,
    all_rows: bool,
    cache: NativeCache | None,
    attention_format: str,
    memory: Memory | None = None,
) -> Recording:
    """Record ``model``'s forward pass, with logits of all rows or of those that a step wants.

    The recording serves every cache that is laid out like ``cache``; None is a pass without one, whose
    attention multiplies as ``attention_format``, bf16 or fp32, says. ``memory`` is what a decoder reads of
    its encoder, by a cache or by its states.

    Raises Unrecordable for a pass that asks for what no call does, such as a cache of latents in fp16.
    """
    ops = Record(attention_format)
    return ops.finish(model.forward(ops, ops.batch(all_rows, cache, memory)))


def record_encoder(model: EncoderDecoder, *, cache: NativeCache | None, attention_format: str) -> Recording:
    """Record ``model``'s encoder, which stores in ``cache``, if there is one, what its decoder reads."""
    ops = Record(attention_format)
    memory = None if cache is None else Memory(Cut("tokens"), cache=_RecordedCache(cache))
    return ops.finish(model.encode(ops, replace(ops.batch(True, None, None), memory=memory)))


def record_denoising(model: Model, batch: Denoising, *, attention_format: str) -> Recording:
    """Record a step of the diffusion Transformer ``model``, for every batch that has what ``batch`` has."""
    ops = Record(attention_format)
    return ops.finish(model.forward(ops, ops.denoising(batch)))


@dataclass(frozen=True)
class _RecordedCache:
    """Stands for a cache in a recorded pass: its layers are numbers, from ``first`` on."""

    like: NativeCache
    first: int = 0

    def layer(self, index: int) -> tuple[NativeCache, int]:
        return self.like, self.first + index


class Record(RecordedDiffusion, RecordedExperts, RecordedLatents):
    """The operators, noted. One instance records one pass."""

    def __init__(self, attention_format: str) -> None:
        self._attention_format = KV_FORMATS[attention_format]
        self._calls: list[Call] = []
        self._values: list[Value] = []
        self._weights: dict[int, int] = {}  # number of each tensor, or of experts' first, by its id
        self._tensors: list[torch.Tensor] = []
        self._biases: dict[int, tuple[int, int]] = {}  # number and reach of each, by the id of its table
        self._fold = Fold()
        self._ropes: list[Rope] = []

    def batch(self, all_rows: bool, cache: NativeCache | None, memory: Memory | None) -> Batch:
        """A step of tokens."""
        read = None
        if memory is not None:
            layers = 0 if cache is None else cache.spec.layers
            read = Memory(
                Cut("cross"),
                None if memory.states is None else self._input("states", memory.states, MEMORY),
                None if memory.cache is None else _RecordedCache(memory.cache, layers),
            )
        return Batch(
            ids=Index("ids", TOKENS),
            positions=Index("positions", TOKENS),
            spans=Cut("tokens"),
            logit_rows=None if all_rows else Index("wanted", WANTED),
            first_rows=Index("first", FIRST),
            segments=Index("segments", TOKENS),
            cache=None if cache is None else _RecordedCache(cache),
            memory=read,
        )

    # -- the operators ------------------------------------------------------------------------------

    def embed(self, ids: Index, weight: Weight, *, offset: int = 0, scale: float = 1.0) -> Matrix:
        op = self._fold.note(weight.name)
        table = weight.data
        out = self._new(weight.shape[1], ids.rows)
        if isinstance(table, PackedLinear):
            number, layout = self._number(table.data), table.layout

            def add(program: _native.Program, at: Places) -> None:
                program.embed_packed(at.index(ids), offset, number, layout, at.operand(out), scale)
        else:
            number, dtype, length = self._number(table), DTYPES[table.dtype], table.shape[0]

            def add(program: _native.Program, at: Places) -> None:
                program.embed(at.index(ids), offset, number, dtype, length, at.operand(out), scale)

        return self._call(op, (), out, add)

    def norm(
        self,
        x: Matrix,
        norm: Norm,
        *,
        shift: Matrix | None = None,
        scale: Matrix | None = None,
        spans: Cut | None = None,
    ) -> Matrix:
        op = self._fold.note(norm.name)
        modulation = None if shift is None else (shift, scale, spans.sequences)
        return self._norm(op, x, self._new(x.columns, x.rows), norm, modulation)

    def linear(
        self,
        x: Matrix,
        weight: Weight,
        *,
        bias: Weight | None = None,
        activation: Activation | None = None,
        residual: Matrix | None = None,
        name: str | None = None,
        gate: Matrix | None = None,
        spans: Cut | None = None,
    ) -> Matrix:
        op = self._fold.note(name or weight.name)
        packed = weight.data
        out = self._new(packed.columns, x.rows)
        kind = ACTIVATIONS[activation.removesuffix(GATED)] if activation else _native.Activation.none
        number = self._number(packed.data)
        bias_number, bias_dtype = self._vector(bias)

        def add(program: _native.Program, at: Places) -> None:
            other = None if residual is None else at.operand(residual)
            gates = None
            if gate is not None:
                gates = _native.OfSequences(at.operand(gate), at.index(spans.sequences))
            program.linear(
                at.operand(x), packed.layout, number, bias_number, bias_dtype, kind, other, gates,
                at.operand(out),
            )  # fmt: skip

        inputs = tuple(m for m in (x, residual, gate) if m is not None)
        # A product must not write over what it still reads.
        apart = residual is not None and residual.value != x.value
        return self._call(op, inputs, out, add, over=residual if apart else None)

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
        spans: Cut,
        mask: Mask,
        score: Score,
        rope: Rope | None = None,
        cache: tuple[NativeCache, int] | None = None,
        name: str = "attention",
    ) -> Matrix:
        op = self._fold.note(name)
        rotation = -1 if rope is None else self._rotation(rope)
        layout, number = self._own_rows(k, v) if cache is None else (cache[0].layout, cache[1])
        bias, reach = (-1, 0) if score.bias is None else self._by_distance(score.bias)
        seen = _native.AttentionMask(mask.causal, *mask.window, 0)
        scores = _native.AttentionScore(score.scale, score.softcap, 0, 0)
        out = self._new(q.columns, q.rows)

        def add(program: _native.Program, at: Places) -> None:
            attended = _native.Attended(layout, number, at.cut(spans), rotation, seen, scores, bias, reach)
            keys, values = (None if x is None else at.operand(x) for x in (k, v))
            program.attend(at.operand(q), keys, values, attended, at.operand(out))

        return self._call(op, (q,) if k is None else (q, k, v), out, add)

    def store(self, k: Matrix, v: Matrix, *, spans: Cut, cache: tuple[NativeCache, int]) -> None:
        op = self._fold.note("store")
        layout, number = cache[0].layout, cache[1]

        def add(program: _native.Program, at: Places) -> None:
            program.store(at.operand(k), at.operand(v), layout, number, at.cut(spans))

        self._calls.append(Call(op, self._fold.calls[op] - 1, (k, v), (), add))

    def softcap(self, x: Matrix, cap: float) -> Matrix:
        op = self._fold.note("softcap")
        # In place, since nothing else reads what is capped: logits of a large vocabulary are held once.
        return self._call(op, (x,), x, lambda program, at: program.softcap(at.operand(x), cap, at.operand(x)))

    def add(self, a: Matrix, b: Matrix) -> Matrix:
        op = self._fold.note("add")
        out = self._new(a.columns, a.rows)
        return self._call(
            op,
            (a, b),
            out,
            lambda program, at: program.add(at.operand(a), at.operand(b), at.operand(out)),
            over=a,
        )

    def take_rows(self, x: Matrix, rows: Index | None) -> Matrix:
        if rows is None:
            return x
        return self._take(self._fold.note("take_rows"), x, rows)

    def repeat(self, layers: Sequence[Layer], body: Callable[[Layer, Any], Any], x: Any) -> Any:
        for layer in self._fold.layers(layers):
            x = body(layer, x)
        return x

    # -- putting it together --------------------------------------------------------------------------

    def finish(self, result: Matrix | tuple[Matrix, ...]) -> Recording:
        """The recording of what was noted, which yields ``result``."""
        alone = not isinstance(result, tuple)
        return assemble(
            self._calls,
            self._values,
            (result,) if alone else result,
            alone=alone,
            weights=self._tensors,
            ops=tuple(zip(self._fold.names, self._fold.calls, strict=True)),
            ropes=tuple(self._ropes),
        )

    def _rotation(self, rope: Rope) -> int:
        """The number by which calls know a rotation."""
        if rope not in self._ropes:
            self._ropes.append(rope)
        return self._ropes.index(rope)

    def _own_rows(self, k: Matrix, v: Matrix) -> tuple[_native.KvLayout, int]:
        """How a pass without a cache multiplies its own keys and values; cache number -1."""
        return _native.KvLayout(self._attention_format, k.heads, k.dim, v.dim), -1

    def _by_distance(self, bias: RelativeBias) -> tuple[int, int]:
        """The number of the tensor that holds a bias by distance, and the largest distance there."""
        if id(bias.table) not in self._biases:
            self._tensors.append(bias_by_distance(bias))
            self._biases[id(bias.table)] = len(self._tensors) - 1, bias.max_distance
        return self._biases[id(bias.table)]

    def _norm(
        self,
        op: int,
        x: Matrix,
        out: Matrix,
        norm: Norm,
        modulation: tuple[Matrix, Matrix, Index] | None = None,
    ) -> Matrix:
        weight, weight_dtype = self._norm_weight(norm)
        bias, bias_dtype = self._vector(norm.bias)
        kind = _native.NormKind.rms if norm.kind == "rms" else _native.NormKind.layer

        def add(program: _native.Program, at: Places) -> None:
            given = None
            if modulation is not None:
                shift, scale, sequences = modulation
                given = _native.ShiftAndScale(at.operand(shift), at.operand(scale), at.index(sequences))
            program.norm(
                at.operand(x), kind, x.heads, weight, weight_dtype, bias, bias_dtype, norm.eps, given,
                at.operand(out),
            )  # fmt: skip

        inputs = (x,) if modulation is None else (x, *modulation[:2])
        return self._call(op, inputs, out, add)

    def _take(self, op: int, x: Matrix, rows: Index) -> Matrix:
        out = self._new(x.columns, rows.rows)
        return self._call(
            op,
            (x,),
            out,
            lambda program, at: program.take_rows(at.operand(x), at.index(rows), at.operand(out)),
        )

    def _new(self, columns: int, rows: Rows) -> Matrix:
        self._values.append(Value(columns, rows))
        return Matrix(len(self._values) - 1, 0, columns, rows, columns)

    def _input(self, name: str, tensor: torch.Tensor, rows: Rows) -> Matrix:
        """A matrix that every step gives."""
        self._values.append(Value(tensor.shape[1], rows, name))
        return Matrix(len(self._values) - 1, 0, tensor.shape[1], rows, tensor.shape[1])

    def _call(
        self,
        op: int,
        inputs: tuple[Matrix, ...],
        output: Matrix,
        add: Callable[[_native.Program, Places], None],
        over: Matrix | None = None,
    ) -> Matrix:
        self._calls.append(Call(op, self._fold.calls[op] - 1, inputs, (output,), add, over))
        return output

    def _number(self, tensor: torch.Tensor) -> int:
        """The number by which calls know a tensor, whose address the step gives."""
        if id(tensor) not in self._weights:
            self._weights[id(tensor)] = len(self._tensors)
            self._tensors.append(tensor)
        return self._weights[id(tensor)]

    def _norm_weight(self, norm: Norm) -> tuple[int, _native.Dtype]:
        """As :meth:`_vector`; a weight that counts as another is computed once, in float32."""
        if norm.weight is None or not norm.changes_weight:
            # The kernel reads both in one dtype, which is the bias's where there is no weight.
            return self._vector(norm.weight) if norm.weight is not None else (-1, self._vector(norm.bias)[1])
        self._tensors.append((norm.weight.data.float() + norm.offset) * norm.scale)
        return len(self._tensors) - 1, _FP32

    def _vector(self, weight: Weight | None) -> tuple[int, _native.Dtype]:
        """Number and dtype of a bias or a norm's weight; -1 for none."""
        if weight is None:
            return -1, _FP32
        return self._number(weight.data), DTYPES[weight.data.dtype]
