"""What the count reading has for spans and caches: numbers, which may be arrays, and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ridgeline.ops.batch import CacheSpec, Memory, Span, cross_spans
from ridgeline.ops.numbers import Number, as_count


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


def counted_spans(spans: Sequence[Span]) -> CountedSpans:
    """The spans, with numbers that a count works with."""
    return CountedSpans(tuple(_counted(s) for s in spans))


def _counted(span: Span) -> Span:
    rows, past, count = (as_count(n) for n in (span.rows, span.past, span.count))
    return replace(span, rows=rows, past=past, count=count)


def counted_memory(spans: CountedSpans, memory: Memory) -> Memory:
    """``memory`` with its spans as attention takes them."""
    others = [_counted(s) for s in memory.spans]
    return replace(memory, spans=CountedSpans(cross_spans(spans, others)))
