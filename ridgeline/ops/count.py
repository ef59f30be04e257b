"""The count reading: runs a forward pass on shapes alone and notes what every operator costs.

No tensors, no PyTorch. Any length or batch size may be a NumPy array, and then so is every
cost. Conventions: a multiply-add is 2 operations; a causal mask counts the pairs that it lets
through, unless the full square is asked for; bytes are those of the storage format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import reduce

from ridgeline.ops import count_diffusion, count_experts, count_latent
from ridgeline.ops.batch import Batch, CacheSpec, Memory, Span, cross_spans
from ridgeline.ops.count_scores import score_changes, softcap_work
from ridgeline.ops.formats import product_format
from ridgeline.ops.latent import Latent
from ridgeline.ops.layers import Layer
from ridgeline.ops.loops import LONGEST, runs
from ridgeline.ops.mixture import Experts, Router
from ridgeline.ops.numbers import Number, as_count, maximum, minimum, round_up
from ridgeline.ops.records import Activation, Heads, Mask, Norm, Rope, Score, Weight
from ridgeline.ops.trace import (
    FUSED,
    Access,
    Comm,
    Flops,
    Kernel,
    LayerRun,
    Loop,
    Lowering,
    OpCost,
    Role,
    SequenceWork,
    Trace,
    Value,
    carried,
    whole,
)


class Pairs(StrEnum):
    """Which query-key pairs of a causal mask count as work."""

    VISIBLE = "visible"
    SQUARE = "square"


#: Vector operations and exponentials an element of an activation. tanh is one exponential and a
#: division; gelu's error function is counted like one exponential and a short polynomial.
ACTIVATION_COST: dict[str, tuple[int, int]] = {
    "relu": (1, 0),
    "silu": (3, 1),
    "gelu": (8, 1),
    "gelu_tanh": (9, 1),
    "tanh": (3, 1),
}
#: Vector operations an element: square, sum, scale, weight; layer norm also takes the mean
#: (sum, subtract) and adds a bias.
NORM_COST = {"rms": 4, "layer": 7}
#: Vector operations a query-key pair in the softmax: scale, maximum, subtract, sum, divide.
SOFTMAX_COST = 5
#: What ranks that share a weight do together in the operators here.
COLLECTIVES = frozenset({"all_reduce", "all_gather"})
#: Vector operations a rotated element: two multiplications and an addition.
ROTATE_COST = 3
#: Vector operations an element of dropout: comparing a random number, and scaling what is kept.
DROPOUT_COST = 2


@dataclass(frozen=True)
class CountedSpans:
    items: tuple[Span, ...]

    def __iter__(self):
        return iter(self.items)

    @property
    def rows(self) -> Number:
        return sum(s.rows * s.count for s in self.items)


@dataclass(frozen=True)
class CountedCache:
    """A cache that only has a shape; all its layers look alike."""

    spec: CacheSpec
    blocks: int

    def layer(self, index: int) -> CountedCache:
        return self


def visible_pairs(span: Span, mask: Mask) -> Number:
    """How many query-key pairs of one sequence the mask lets through.

    Row i (0 <= i < rows) sees keys past + i - left .. past + i + right, clipped to 0 .. keys - 1.
    """
    n, past, keys = span.rows, span.past, span.keys
    left, right = mask.window
    if mask.causal:
        right = 0
    upper = n * keys if right < 0 else _clipped_sum(past + right + 1, n, keys)
    hidden = 0 if left < 0 else _clipped_sum(past - left, n, keys)
    return upper - hidden


def _clipped_sum(first: Number, n: Number, limit: Number) -> Number:
    """sum over i < n of min(max(first + i, 0), limit)."""

    def triangle(m: Number) -> Number:  # 1 + ... + m, 0 for m < 1
        m = maximum(m, 0)
        return m * (m + 1) // 2

    last = first + n - 1
    growing = triangle(last) - triangle(first - 1)  # the sum of max(first + i, 0)
    over = triangle(last - limit) - triangle(first - 1 - limit)
    return growing - over


def keys_read(span: Span, mask: Mask, block: int) -> Number:
    """Keys of one sequence that are read, in whole blocks of the cache."""
    left, right = mask.window
    first = 0 if left < 0 else maximum(span.past - left, 0)
    last = span.keys if mask.causal or right < 0 else minimum(span.keys, span.past + span.rows + right)
    return round_up(last, block) - first // block * block


def most_keys(span: Span, mask: Mask) -> Number:
    """Keys that the row of one sequence sees which sees most."""
    left, right = (mask.window[0], 0) if mask.causal else mask.window
    return span.keys if left < 0 or right < 0 else minimum(span.keys, left + 1 + right)


class Count:
    """The operators, counted. One instance counts one pass; :meth:`trace` hands it out.

    ``lowering`` says which parts run as one kernel, ``pairs`` which pairs of a causal mask
    count, ``activations`` the dtype of activations, ``attention`` that of attention's products, if it is
    another one, ``train`` whether weights want gradients, ``dropout`` whether attention's weights and what
    joins a residual stream pass through dropout, as GPT has it.
    """

    def __init__(
        self,
        *,
        activations: str = "bf16",
        attention: str | None = None,
        lowering: Lowering = FUSED,
        pairs: Pairs = Pairs.VISIBLE,
        train: bool = False,
        dropout: bool = False,
    ) -> None:
        self.activations = activations
        self.attention = attention or activations
        self.lowering = lowering
        self.pairs = pairs
        self.train = train
        self.dropout = dropout
        self._ops: list[OpCost] = []
        self._loops: list[Loop] = []
        self._runs: list[Loop] = []
        self._values: list[Value] = []
        self._weights: dict[int, tuple[Weight, Value]] = {}
        self._repeat = 1
        self._layers: list[LayerRun] = []
        self._assumed: dict[str, None] = {}  # in order, each once

    # -- building a pass ---------------------------------------------------------------------

    def batch(
        self,
        spans: Sequence[Span],
        *,
        logits: str = "last",
        cache: CountedCache | None = None,
        memory: Memory | None = None,
    ) -> Batch:
        """A step over these spans: logits of each sequence's ``last`` row, or of ``all`` rows. ``memory`` has
        the spans that an encoder read."""
        counted = counted_spans(spans)
        ids = self.input("ids", (counted.rows,))
        wanted = None if logits == "all" else self.input("logit_rows", (sum(s.count for s in counted),))
        return Batch(
            ids=ids,
            positions=self.input("positions", (counted.rows,)),
            spans=counted,
            logit_rows=wanted,
            first_rows=self.input("first_rows", (sum(s.count for s in counted),)),
            segments=self.input("segments", (counted.rows,)),
            cache=cache,
            memory=None if memory is None else self._memory(counted, memory),
        )

    def _memory(self, spans: CountedSpans, memory: Memory) -> Memory:
        others = [_counted(s) for s in memory.spans]
        return replace(memory, spans=CountedSpans(cross_spans(spans, others)))

    def input(self, name: str, shape: tuple[Number, ...], format: str = "int64") -> Value:
        """A value that the pass is given, such as token ids."""
        return self._value(name, tuple(as_count(n) for n in shape), format, Role.INPUT)

    def trace(self, output: Value) -> Trace:
        """The finished program, whose result is ``output``."""
        ops, loops, values = tuple(self._ops), tuple(self._loops), tuple(self._values)
        return Trace(
            ops,
            loops,
            values,
            self.lowering,
            output,
            layers=tuple(self._layers),
            runs=tuple(self._runs),
            assumptions=tuple(self._assumed),
        )

    def assume(self, statement: str) -> None:
        """Note what the count takes to be so because it cannot know."""
        self._assumed[statement] = None

    # -- the operators -----------------------------------------------------------------------

    def embed(self, ids: Value, weight: Weight, *, offset: int = 0, scale: float = 1.0) -> Value:
        rows, width = ids.shape[0], weight.shape[1]
        table = self._weight(weight)
        y = self._activation(weight.name, (rows, width), table)
        reads = (whole(ids), Access(table, minimum(rows, weight.shape[0]) * width))  # a row again is at hand
        work = Flops(vector=rows * width if scale != 1 else 0)
        parts = [self._part("embed", reads, (whole(y),), work, rows)]
        if weight.shard is not None:
            found, y = y, self._activation(weight.name, y.shape, y)
            reduction = self._part("all_reduce", (whole(found),), (whole(y),), Flops(), rows)
            parts.append(replace(reduction, comm=Comm("all_reduce", y.nbytes, weight.shard.ranks, "tensor")))
        self._emit(weight.name, "embed", *parts)
        return y

    def norm(
        self,
        x: Value,
        norm: Norm,
        *,
        shift: Value | None = None,
        scale: Value | None = None,
        spans: CountedSpans | None = None,
    ) -> Value:
        weights = [self._weight(w) for w in (norm.weight, norm.bias) if w is not None]
        if shift is not None:
            return count_diffusion.modulated_norm(self, x, norm, shift, scale, weights)
        y = self._activation(norm.name, x.shape, x, *weights)
        self._emit(norm.name, "norm", self._norm_part(x, y, norm))
        return y

    def linear(
        self,
        x: Value,
        weight: Weight,
        *,
        bias: Weight | None = None,
        activation: Activation | None = None,
        residual: Value | None = None,
        name: str | None = None,
        gate: Value | None = None,
        spans: CountedSpans | None = None,
    ) -> Value:
        rows, (out, width) = x.shape[0], weight.shape
        matrix = self._weight(weight)
        # Where activations have a format of their own, they are converted to the weights' as they are read.
        compute = x.format if self.lowering.activations is None else product_format(weight.format)
        steps = [("matmul", out, (matrix,), Flops(matrix=2 * rows * width * out))]
        shard = weight.shard
        if shard is not None and shard.cut == "inputs":
            steps.append(("all_reduce", out, (), Flops()))
        if bias is not None:
            steps.append(("bias", out, (self._weight(bias),), Flops(vector=rows * out)))
        if activation is not None:
            gated = activation.endswith("_gated")
            vector, exp = ACTIVATION_COST[activation.removesuffix("_gated")]
            out = out // 2 if gated else out
            work = Flops(vector=rows * out * (vector + gated), exp=rows * out * exp)
            steps.append(("activation", out, (), work))
        if gate is not None:
            steps.append(("gate", out, (gate,), Flops(vector=rows * out)))
        if residual is not None and self.dropout:
            steps.append(("dropout", out, (), Flops(vector=DROPOUT_COST * rows * out)))
        if residual is not None:
            steps.append(("residual", out, (residual,), Flops(vector=rows * out)))
        if shard is not None and shard.cut == "vocab":
            steps.append(("all_gather", out * shard.ranks, (), Flops()))
        parts, y = [], x
        for kind, columns, others, work in steps:
            inputs, last = (y, *others), len(parts) == len(steps) - 1
            make = self._activation if last else self._scratch
            y = make(weight.name, (rows, columns), *inputs)
            function = activation if kind == "activation" else ""
            reads = tuple(whole(v) for v in inputs)
            writes = (whole(y), whole(self._mask(y))) if kind == "dropout" else (whole(y),)
            comm = Comm(kind, y.nbytes, shard.ranks, "tensor") if kind in COLLECTIVES else None
            parts.append(Kernel(kind, reads, writes, work, compute, rows, function, comm=comm))
        self._emit(name or weight.name, "linear", *parts)
        return y

    def split_heads(self, qkv: Value, heads: Heads) -> tuple[Value, Value, Value]:
        rows = qkv.shape[0]
        q = self._view("q", qkv, (rows, heads.query, heads.dim))
        k = self._view("k", qkv, (rows, heads.kv, heads.dim))
        v = self._view("v", qkv, (rows, heads.kv, heads.dim))
        parts = []
        if heads.query_norm is not None:
            normed = self._activation("q", q.shape, q, self._weight(heads.query_norm.weight))
            parts.append(self._norm_part(q, normed, heads.query_norm))
            q = normed
        if heads.key_norm is not None:
            normed = self._activation("k", k.shape, k, self._weight(heads.key_norm.weight))
            parts.append(self._norm_part(k, normed, heads.key_norm))
            k = normed
        self._emit("split_heads", "split", *parts)
        return q, k, v

    def attend(
        self,
        q: Value,
        k: Value | None,
        v: Value | None,
        *,
        spans: CountedSpans,
        mask: Mask,
        score: Score,
        rope: Rope | None = None,
        cache: CountedCache | None = None,
        name: str = "attention",
    ) -> Value:
        rows, heads, dim = q.shape
        kv_heads = cache.spec.kv_heads if k is None else k.shape[1]
        kv_width = kv_heads * (cache.spec.head_dim if k is None else k.shape[2])
        parts = []
        if rope is not None:
            turned_q, turned_k = self._scratch("q", q.shape, q), self._scratch("k", k.shape, k)
            work = Flops(vector=ROTATE_COST * (rows * heads * rope.dim + rows * k.shape[1] * rope.dim))
            turned = (whole(turned_q), whole(turned_k))
            parts.append(self._part("rotate", (whole(q), whole(k)), turned, work, rows))
            q, k = turned_q, turned_k
        block = 1
        if cache is not None:
            block = cache.spec.block_size
            keys, values = self._cache_values(cache, spans)
            if k is not None:
                new = (Access(keys, rows * kv_width), Access(values, rows * kv_width))
                parts.append(self._part("append", (whole(k), whole(v)), new, Flops(), rows))
            k, v = keys, values
        keys_by_span = [keys_read(s, mask, block) for s in spans]
        read = kv_width * sum(keys * s.count for keys, s in zip(keys_by_span, spans, strict=True))
        square = sum(s.rows * s.keys * s.count for s in spans)
        pairs_by_span = [self._pairs(s, mask) for s in spans]
        pairs = sum(n * s.count for n, s in zip(pairs_by_span, spans, strict=True))
        rows_a_span = reduce(maximum, (s.rows for s in spans), 0)
        scores = self._scratch("scores", (heads, square), q, k)
        changes, changed = score_changes(self, score, scores, pairs * heads, rows_a_span)
        weights = self._scratch("weights", (heads, square), changed)
        out = self._activation(name, (rows, heads * dim), weights, v)
        product = Flops(matrix=2 * pairs * heads * dim)
        from_cache = 0 if cache is None else Access(k, kv_width).bytes + Access(v, kv_width).bytes
        shape = (heads, kv_heads, dim)
        sequences = tuple(
            SequenceWork(s.rows, s.count, 4 * n * heads * dim, keys * from_cache, most_keys(s, mask), *shape)
            for s, n, keys in zip(spans, pairs_by_span, keys_by_span, strict=True)
        )
        soft = Flops(vector=SOFTMAX_COST * pairs * heads, exp=pairs * heads)
        scoring = self._part("scores", (whole(q), Access(k, read)), (whole(scores),), product, rows_a_span)
        dropped = self._scratch("dropped", weights.shape, weights) if self.dropout else weights
        reads = (whole(dropped), Access(v, read))
        weighting = self._part("values", reads, (whole(out),), product, rows_a_span)
        parts += [
            replace(scoring, sequences=sequences, compute=self.attention),
            *changes,
            self._part("softmax", (whole(changed),), (whole(weights),), soft, rows_a_span),
            *self._dropout_parts(weights, dropped, pairs * heads, rows_a_span),
            replace(weighting, compute=self.attention),
        ]
        self._emit(name, "attend", *parts)
        return out

    def store(self, k: Value, v: Value, *, spans: CountedSpans, cache: CountedCache) -> None:
        new = tuple(Access(to, a.elements) for to, a in zip(self._cache_values(cache, spans), (k, v)))
        part = self._part("append", (whole(k), whole(v)), new, Flops(), k.shape[0])
        self._emit("store", "store", part)

    def softcap(self, x: Value, cap: float) -> Value:
        y, work = self._activation("softcap", x.shape, x), softcap_work(x.elements)
        self._emit("softcap", "softcap", self._part("softcap", (whole(x),), (whole(y),), work, x.shape[0]))
        return y

    def _pairs(self, span: Span, mask: Mask) -> Number:
        return span.rows * span.keys if self.pairs is Pairs.SQUARE else visible_pairs(span, mask)

    def attend_latent(
        self,
        q: Value,
        kv: Value,
        latent: Latent,
        *,
        spans: CountedSpans,
        mask: Mask,
        score: Score,
        rope: Rope | None = None,
        cache: CountedCache | None = None,
    ) -> Value:
        return count_latent.attend_latent(self, q, kv, latent, spans, mask, rope, cache)

    def route(self, x: Value, router: Router) -> Value:
        return count_experts.route(self, x, router)

    def experts(self, x: Value, routes: Value, experts: Experts, *, residual: Value | None = None) -> Value:
        return count_experts.experts(self, x, routes, experts, residual)

    def add(self, a: Value, b: Value) -> Value:
        y = self._activation("add", a.shape, a, b)
        work = Flops(vector=y.elements)
        self._emit("add", "add", self._part("add", (whole(a), whole(b)), (whole(y),), work, y.shape[0]))
        return y

    def take_rows(self, x: Value, rows: Value | None) -> Value:
        if rows is None:
            return x
        y = self._activation("take_rows", (rows.shape[0], x.shape[1]), x)
        reads = (Access(x, y.elements), whole(rows))
        self._emit("take_rows", "gather", self._part("gather", reads, (whole(y),), Flops(), rows.shape[0]))
        return y

    def activate(self, x: Value, activation: Activation) -> Value:
        return count_diffusion.activate(self, x, activation)

    def add_vector(self, x: Value, vector: Weight) -> Value:
        return count_diffusion.add_vector(self, x, vector)

    def columns(self, x: Value, parts: int) -> tuple[Value, ...]:
        return count_diffusion.columns(self, x, parts)

    def stack_columns(self, x: Value, parts: int) -> Value:
        return count_diffusion.stack_columns(self, x, parts)

    def unstack_rows(self, x: Value, parts: int) -> Value:
        return count_diffusion.unstack_rows(self, x, parts)

    def join_columns(self, a: Value, b: Value) -> Value:
        return count_diffusion.join_columns(self, a, b)

    def permute_rows(self, x: Value, order: Value) -> Value:
        return count_diffusion.permute_rows(self, x, order)

    def join_rows(self, a: Value, b: Value, *, first: CountedSpans, second: CountedSpans) -> Value:
        return count_diffusion.join_rows(self, a, b)

    def split_rows(self, x: Value, *, first: CountedSpans, second: CountedSpans) -> tuple[Value, Value]:
        return count_diffusion.split_rows(self, x, first, second)

    def repeat(self, layers: Sequence[Layer], body: Callable[[Layer, Value], Value], x: Value) -> Value:
        if self._repeat > 1:
            raise ValueError("a loop inside the body of a loop is not counted")
        longest = 1 if self.train else LONGEST  # what is kept for a backward pass is kept by the layer
        found = runs(layers, longest)
        if self.train and not all(
            v.needs_grad for v in carried(x)
        ):  # the first layer alone has no input gradient
            rest = [run._replace(start=run.start + 1) for run in runs(layers[1:], longest)]
            found = [*runs(layers[:1]), *rest]
        for run in found:
            starts, entry, first = [], carried(x), len(self._values)
            self._repeat = run.count
            block = layers[run.start : run.start + run.length]
            for layer in block:
                starts.append(len(self._ops))
                x = body(layer, x)
            self._repeat = 1
            stop, exit = len(self._ops), carried(x)
            self._layers.append(LayerRun(tuple(starts), stop, run.count, entry))
            shared: frozenset[int] = frozenset()
            if run.count > 1:
                following = layers[run.start + run.length : run.start + 2 * run.length]
                shared = self._shared(starts[0], first, block, following)
            self._runs.append(Loop(starts[0], stop, run.count, entry, exit, shared=shared))
            if run.count > 1:
                self._loops.append(self._runs[-1])
        return x

    def _shared(
        self, start: int, first: int, block: Sequence[Layer], following: Sequence[Layer]
    ) -> frozenset[int]:
        """The weights that all iterations of a loop, from operator ``start`` on, read: those known before its
        values, from number ``first`` on, and those that its block of layers has in common with the next one.
        """
        used = {a.value.id for op in self._ops[start:] for part in op.parts for a in part.reads}
        common = {i for layer in block for i in layer.weight_ids} & {
            i for layer in following for i in layer.weight_ids
        }
        return frozenset(
            v.id for w, v in self._weights.values() if v.id in used and (v.id < first or id(w) in common)
        )

    def alloc_cache(self, spec: CacheSpec, blocks: int) -> CountedCache:
        return CountedCache(spec, blocks)

    # -- values and parts --------------------------------------------------------------------

    def _value(self, name, shape, format, role, needs_grad=False, base=None) -> Value:
        value = Value(len(self._values), name, shape, format, role, needs_grad, base)
        self._values.append(value)
        return value

    def _wants_grad(self, *inputs: Value) -> bool:
        return any(v.needs_grad for v in inputs)

    def _activation(self, name: str, shape: tuple[Number, ...], *inputs: Value) -> Value:
        return self._value(name, shape, self.activations, Role.ACTIVATION, self._wants_grad(*inputs))

    def _scratch(self, name: str, shape: tuple[Number, ...], *inputs: Value) -> Value:
        return self._value(name, shape, self.activations, Role.SCRATCH, self._wants_grad(*inputs))

    def _view(self, name: str, of: Value, shape: tuple[Number, ...]) -> Value:
        return self._value(name, shape, of.format, of.role, of.needs_grad, of.storage)

    def _weight(self, weight: Weight) -> Value:
        known = self._weights.get(id(weight))
        if known is None:  # the weight is kept beside its value so that its id stays its own
            shape, wanted = weight.stored or weight.shape, self.train and weight.trained
            known = (weight, self._value(weight.name, shape, weight.format, Role.WEIGHT, wanted))
            self._weights[id(weight)] = known
        return known[1]

    def _mask(self, y: Value) -> Value:
        """What dropout kept of ``y``, a byte an element."""
        return self._value(f"{y.name}.mask", y.shape, "bool", Role.SCRATCH)

    def _dropout_parts(self, x: Value, y: Value, visible: Number, rows: Number) -> list[Kernel]:
        if not self.dropout:
            return []
        work = Flops(vector=DROPOUT_COST * visible)
        return [self._part("dropout", (whole(x),), (whole(y), whole(self._mask(y))), work, rows)]

    def _cache_values(self, cache: CountedCache, spans: CountedSpans) -> tuple[Value, ...]:
        """One layer's keys and values, or its latents, as large as the spans' sequences are after this
        step."""
        spec = cache.spec
        tokens = sum(round_up(s.keys, spec.block_size) * s.count for s in spans)
        names = ("latents",) if spec.is_latent else ("keys", "values")
        shapes = ((tokens, spec.kv_heads, size) for size in spec.sizes)
        return tuple(
            self._value(name, shape, spec.format, Role.CACHE)
            for name, shape in zip(names, shapes, strict=True)
        )

    def _part(self, kind, reads, writes, flops: Flops, rows: Number) -> Kernel:
        return Kernel(kind, reads, writes, flops, self.activations, rows)

    def _norm_part(self, x: Value, y: Value, norm: Norm) -> Kernel:
        reads = [whole(x), *(whole(self._weight(w)) for w in (norm.weight, norm.bias) if w is not None)]
        left_out = (norm.weight is None) + (norm.kind == "layer" and norm.bias is None)
        work = Flops(vector=(NORM_COST[norm.kind] - left_out) * x.elements)
        return Kernel("norm", tuple(reads), (whole(y),), work, self.activations, x.shape[0], norm.kind)

    def _emit(self, name: str, kind: str, *parts: Kernel) -> None:
        self._ops.append(OpCost(name, kind, parts, self._repeat))


def counted_spans(spans: Sequence[Span]) -> CountedSpans:
    """The spans, with numbers that a count works with."""
    return CountedSpans(tuple(_counted(s) for s in spans))


def _counted(span: Span) -> Span:
    rows, past, count = (as_count(n) for n in (span.rows, span.past, span.count))
    return replace(span, rows=rows, past=past, count=count)
