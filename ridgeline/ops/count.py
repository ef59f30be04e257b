"""The count reading: runs a forward pass on shapes alone and notes what every operator costs.

No tensors, no PyTorch. Any length or batch size may be a NumPy array, and then so is every
cost. Conventions: a multiply-add is 2 operations; a causal mask counts the pairs that it lets
through, unless the full square is asked for; bytes are those of the storage format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ridgeline.ops import count_attend, count_diffusion, count_experts, count_latent, count_linear
from ridgeline.ops.batch import Batch, CacheSpec, Memory, Span
from ridgeline.ops.count_costs import NORM_COST
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.count_scores import softcap_work
from ridgeline.ops.counted import CountedCache, CountedSpans, counted_memory, counted_spans
from ridgeline.ops.kernel import Access, Comm, Flops, Kernel, Value, whole
from ridgeline.ops.latent import Latent
from ridgeline.ops.lowering import FUSED, Lowering
from ridgeline.ops.mixture import Experts, Router
from ridgeline.ops.numbers import minimum
from ridgeline.ops.program import Program
from ridgeline.ops.records import Activation, Heads, Mask, Norm, Rope, Score, Weight


class Count(Program):
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
        super().__init__(activations, lowering, train)
        self.attention = attention or activations
        self.pairs = pairs
        self.dropout = dropout

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
            memory=None if memory is None else counted_memory(counted, memory),
        )

    def embed(self, ids: Value, weight: Weight, *, offset: int = 0, scale: float = 1.0) -> Value:
        rows, width = ids.shape[0], weight.shape[1]
        table = self.weight(weight)
        y = self.activation(weight.name, (rows, width), table)
        reads = (whole(ids), Access(table, minimum(rows, weight.shape[0]) * width))  # a row again is at hand
        work = Flops(vector=rows * width if scale != 1 else 0)
        parts = [self.part("embed", reads, (whole(y),), work, rows)]
        if weight.shard is not None:
            found, y = y, self.activation(weight.name, y.shape, y)
            reduction = self.part("all_reduce", (whole(found),), (whole(y),), Flops(), rows)
            parts.append(replace(reduction, comm=Comm("all_reduce", y.nbytes, weight.shard.ranks, "tensor")))
        self.emit(weight.name, "embed", *parts)
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
        weights = [self.weight(w) for w in (norm.weight, norm.bias) if w is not None]
        if shift is not None:
            return count_diffusion.modulated_norm(self, x, norm, shift, scale, weights)
        y = self.activation(norm.name, x.shape, x, *weights)
        self.emit(norm.name, "norm", self.norm_part(x, y, norm))
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
        return count_linear.linear(self, x, weight, bias, activation, residual, name, gate)

    def split_heads(self, qkv: Value, heads: Heads) -> tuple[Value, Value, Value]:
        rows = qkv.shape[0]
        q = self.view("q", qkv, (rows, heads.query, heads.dim))
        k = self.view("k", qkv, (rows, heads.kv, heads.dim))
        v = self.view("v", qkv, (rows, heads.kv, heads.dim))
        parts = []
        if heads.query_norm is not None:
            normed = self.activation("q", q.shape, q, self.weight(heads.query_norm.weight))
            parts.append(self.norm_part(q, normed, heads.query_norm))
            q = normed
        if heads.key_norm is not None:
            normed = self.activation("k", k.shape, k, self.weight(heads.key_norm.weight))
            parts.append(self.norm_part(k, normed, heads.key_norm))
            k = normed
        self.emit("split_heads", "split", *parts)
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
        return count_attend.attend(self, q, k, v, spans, mask, score, rope, cache, name)

    def store(self, k: Value, v: Value, *, spans: CountedSpans, cache: CountedCache) -> None:
        count_attend.store(self, k, v, spans, cache)

    def softcap(self, x: Value, cap: float) -> Value:
        y, work = self.activation("softcap", x.shape, x), softcap_work(x.elements)
        self.emit("softcap", "softcap", self.part("softcap", (whole(x),), (whole(y),), work, x.shape[0]))
        return y

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
        y = self.activation("add", a.shape, a, b)
        work = Flops(vector=y.elements)
        self.emit("add", "add", self.part("add", (whole(a), whole(b)), (whole(y),), work, y.shape[0]))
        return y

    def take_rows(self, x: Value, rows: Value | None) -> Value:
        if rows is None:
            return x
        y = self.activation("take_rows", (rows.shape[0], x.shape[1]), x)
        reads = (Access(x, y.elements), whole(rows))
        self.emit("take_rows", "gather", self.part("gather", reads, (whole(y),), Flops(), rows.shape[0]))
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

    def alloc_cache(self, spec: CacheSpec, blocks: int) -> CountedCache:
        return CountedCache(spec, blocks)

    def norm_part(self, x: Value, y: Value, norm: Norm) -> Kernel:
        reads = [whole(x), *(whole(self.weight(w)) for w in (norm.weight, norm.bias) if w is not None)]
        left_out = (norm.weight is None) + (norm.kind == "layer" and norm.bias is None)
        work = Flops(vector=(NORM_COST[norm.kind] - left_out) * x.elements)
        return Kernel("norm", tuple(reads), (whole(y),), work, self.activations, x.shape[0], norm.kind)
