"""The count reading of one rank of several that share sequences: context parallelism.

Prompts are divided by rows: every rank has its share of each sequence's rows, and of its cache. Under a
causal mask the shares are taken alternately from both ends, so that all ranks meet equally many pairs, as
ring implementations do. How a rank's queries meet the others' keys is a choice:

- ``ring`` (Liu, Zaharia and Abbeel, 2023): keys and values go round, and each rank attends to those that
  it has while the next ones come;
- ``allgather`` (Llama 3 report, 2024): keys and values are gathered first;
- ``ulysses`` (DeepSpeed-Ulysses, Jacobs et al., 2023): an all-to-all gives each rank all rows of some heads,
  and another one takes the result back.

A decode step has a single row a sequence, which can't be divided. Then every rank computes all rows; it
attends to the keys that it holds, and the partial results are gathered and merged (with Ulysses: to all
keys of its heads). What each rank computes beside attention is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from ridgeline.errors import InputError
from ridgeline.ops.batch import Batch, Span
from ridgeline.ops.count import Count
from ridgeline.ops.counted import CountedCache, CountedSpans
from ridgeline.ops.formats import get_format
from ridgeline.ops.kernel import Comm, Flops, Kernel, Value, whole
from ridgeline.ops.numbers import Number, as_count, maximum

#: Vector operations an element of merging one more partial result: rescale and add.
MERGE_COST = 3
#: Partial results and their log-sum-exps are exchanged in float32.
PARTIAL = "fp32"


class ContextKind(StrEnum):
    """How ranks that share a sequence exchange what attention needs."""

    RING = "ring"
    ULYSSES = "ulysses"
    ALLGATHER = "allgather"


@dataclass(frozen=True)
class Context:
    """``ranks`` share each sequence. ``divides_rows`` is false in a decode step."""

    ranks: int
    kind: ContextKind
    divides_rows: bool


class _SharedSpans(CountedSpans):
    """Whole sequences, of whose rows a rank has its share."""

    def __init__(self, items: tuple[Span, ...], ranks: int) -> None:
        object.__setattr__(self, "items", items)
        object.__setattr__(self, "ranks", ranks)

    @property
    def rows(self) -> Number:
        return super().rows / self.ranks


class ContextCount(Count):
    """The operators, counted for one of the context's ranks. Spans are those of whole sequences."""

    def __init__(self, context: Context, **options: Any) -> None:
        super().__init__(**options)
        self.context = context

    def batch(self, spans: Sequence[Span], **options: Any) -> Batch:
        batch = super().batch(spans, **options)
        if not self.context.divides_rows:
            return batch
        shared = _SharedSpans(batch.spans.items, self.context.ranks)
        inputs = {
            name: self.input(name, (shared.rows,))
            for name in ("ids", "positions", "segments")
            if getattr(batch, name) is not None
        }
        return replace(batch, spans=shared, **inputs)

    def attend(
        self,
        q: Value,
        k: Value,
        v: Value,
        *,
        spans: CountedSpans,
        cache: CountedCache | None = None,
        **how: Any,
    ) -> Value:
        whole_spans = CountedSpans(spans.items)
        if self.context.kind is ContextKind.ULYSSES:
            return self._by_heads(q, k, v, whole_spans, cache, how)
        if self.context.divides_rows:
            return self._by_rows(q, k, v, whole_spans, cache, how)
        return self._by_keys(q, k, v, whole_spans, cache, how)

    def _by_rows(self, q, k, v, spans: CountedSpans, cache, how) -> Value:
        """Ring and all-gather: a rank's rows meet all keys."""
        ranks = self.context.ranks
        local = CountedSpans(tuple(_share_of_rows(s, ranks, how["mask"].causal) for s in spans))
        ring = self.context.kind is ContextKind.RING
        tokens = sum(s.keys * s.count for s in spans)
        width = 2 * k.shape[1] * k.shape[2]
        if not ring:
            gathered = self.scratch("keys and values", (tokens, width), k)
            part = self.part("all_gather", (whole(k), whole(v)), (whole(gathered),), Flops(), tokens)
            self._emit_comm("attention.gather", part, "all_gather", gathered.nbytes)
        out = super().attend(q, k, v, spans=local, cache=cache, **how)
        if ring:
            block = get_format(self.activations).nbytes((tokens / ranks * width,))
            passing = self.part("send_recv", (), (), Flops(), tokens / ranks)
            self._join(passing, "send_recv", block, times=ranks - 1, overlaps=True)
        return out

    def _by_keys(self, q, k, v, spans: CountedSpans, cache, how) -> Value:
        """A decode step: all rows meet the rank's own keys, and what every rank finds is merged."""
        ranks, (rows, heads, dim) = self.context.ranks, q.shape
        local = CountedSpans(tuple(_share_of_keys(s, ranks) for s in spans))
        out = super().attend(q, k, v, spans=local, cache=cache, **how)
        partial = self.value("partial", (ranks * rows, heads * (dim + 1)), PARTIAL, out.role)
        merged = self.activation("attention", out.shape, out)
        gather = self.part("all_gather", (whole(out),), (whole(partial),), Flops(), rows)
        self._join(gather, "all_gather", partial.nbytes)
        work = Flops(vector=MERGE_COST * partial.elements, exp=ranks * rows * heads)
        self.emit(
            "attention.merge", "attend", self.part("merge", (whole(partial),), (whole(merged),), work, rows)
        )
        return merged

    def _by_heads(self, q, k, v, spans: CountedSpans, cache, how) -> Value:
        """Ulysses: all rows of a rank's heads."""
        ranks, (rows, heads, dim), kv_heads = self.context.ranks, q.shape, k.shape[1]
        if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
            raise InputError(
                f"{ranks} ranks can't share {heads} heads and {kv_heads} key/value heads evenly, by which "
                "Ulysses divides attention: choose ring or allgather"
            )
        total = spans.rows
        ours, kv = heads // ranks, max(kv_heads // ranks, 1)
        mine = tuple(
            self.scratch(value.name, (total, number, dim), value)
            for value, number in ((q, ours), (k, kv), (v, kv))
        )
        if self.context.divides_rows:
            sent = sum(value.nbytes for value in (q, k, v))
            part = self.part(
                "all_to_all", tuple(map(whole, (q, k, v))), tuple(map(whole, mine)), Flops(), rows
            )
            self._emit_comm("attention.scatter", part, "all_to_all", sent)
        if cache is not None:
            cache = replace(cache, spec=replace(cache.spec, kv_heads=max(cache.spec.kv_heads // ranks, 1)))
        out = super().attend(*mine, spans=spans, cache=cache, **how)
        result = self.activation("attention", (rows, heads * dim), out)
        collective = "all_to_all" if self.context.divides_rows else "all_gather"
        part = self.part(collective, (whole(out),), (whole(result),), Flops(), rows)
        self._emit_comm("attention.collect", part, collective, result.nbytes)
        return result

    def _along_context(self, part: Kernel, collective: str, nbytes: Number, **how: Any) -> Kernel:
        return replace(part, comm=Comm(collective, nbytes, self.context.ranks, "context", **how))

    def _emit_comm(self, name: str, part: Kernel, collective: str, nbytes: Number) -> None:
        self.emit(name, "communicate", self._along_context(part, collective, nbytes))

    def _join(self, part: Kernel, collective: str, nbytes: Number, **how: Any) -> None:
        """Add a part to the operator that was counted last."""
        last = self._ops[-1]
        self._ops[-1] = replace(
            last, parts=(*last.parts, self._along_context(part, collective, nbytes, **how))
        )


def _share_of_rows(span: Span, ranks: int, causal: bool) -> Span:
    """A sequence that is like a rank's share of this one: its rows, and equally many visible pairs.

    With r = rows / ranks rows, a causal mask lets through r past' + r (r + 1) / 2 pairs, which is the whole
    number over ranks when past' = past + (rows - r) / 2.
    """
    rows = span.rows / ranks
    before = span.rows - rows
    return replace(span, rows=rows, past=span.past + (before / 2 if causal else before))


def _share_of_keys(span: Span, ranks: int) -> Span:
    """The rows of this sequence over the keys that one rank holds."""
    return replace(span, past=maximum(as_count(span.keys) / ranks - span.rows, 0))
