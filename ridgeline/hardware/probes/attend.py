"""Attention of the cpu reading, over caches of every format: rotating, appending and attending in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ridgeline.hardware.kernels import AttendCurve
from ridgeline.hardware.probes.parts import fit
from ridgeline.hardware.probes.passes import (
    MANY,
    WIDE,
    attend,
    cache_spec,
    plain,
    recorded,
    span_of,
    width_of,
)
from ridgeline.hardware.timing import KernelProbe, Timings
from ridgeline.ops.batch import Batch
from ridgeline.ops.count import Count
from ridgeline.ops.kernel import SequenceWork
from ridgeline.ops.lowering import CPU
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Heads

if TYPE_CHECKING:
    from ridgeline.ops.native_cache import NativeCache
    from ridgeline.ops.replay import Replay

#: Context of the short call that tells the overhead.
SHORT = 64
#: What a call takes beyond its overhead is at least this share of it, should noise say less.
LEAST_SHARE = 0.1
#: Attention's number in the pass, after the embedding and the split into heads.
ATTENTION = 2


def attend_probes(
    format: str, rows: Sequence[int], keys: int, memory: int, between: Callable[[], Sequence[Any]]
) -> list[KernelProbe]:
    """With a cache in ``format``: figures ``kernels.attend.FORMAT.warm`` and ``.fresh`` (one row, ``keys``
    keys that are near, or come round after ``memory`` bytes), ``.short`` and ``.short_fresh`` (the same with
    a short context), ``.many`` (as warm, twice the query heads) and ``.rows[ROWS]`` (a prompt). ``between``
    runs before each call."""
    cache = Blocks(format, max(*rows, keys), memory)

    def probe(name: str, n: int, past: int, first: Callable[[int], int] = cache.same) -> KernelProbe:
        heads = MANY if name == "many" else WIDE
        replay = _recorded(heads, cache.data)

        def call() -> float:
            span = span_of(n, past, cache.data.spec.block_size, first(n + past))
            return replay.profile([0] * n, [span], "last", cache.data)[ATTENTION].total

        return KernelProbe(_figure(format, name), call, prepare=between)

    return [
        probe("short", 1, SHORT - 1),
        probe("short_fresh", 1, SHORT - 1, cache.next),
        probe("warm", 1, keys - 1),
        probe("fresh", 1, keys - 1, cache.next),
        probe("many", 1, keys - 1),
        *(probe(f"rows[{n}]", n, 0) for n in rows),
    ]


def _recorded(heads: Heads, cache: NativeCache) -> Replay:
    table = plain("embedding", 1, width_of(heads))

    def forward(ops: Ops, batch: Batch) -> Any:
        # The result is no output of the pass: those are new memory at every step.
        return ops.take_rows(attend(ops, ops.embed(batch.ids, table), heads, batch), batch.logit_rows)

    return recorded(forward, cache)


class Blocks:
    """The blocks of one layer's cache of ``memory`` bytes, and of ``keys`` keys at least."""

    def __init__(self, format: str, keys: int, memory: int) -> None:
        from ridgeline.ops.native_cache import NativeCache

        spec = cache_spec(WIDE, format)
        block_bytes = NativeCache(spec, 1).layer(0).data.nbytes
        self.data = NativeCache(spec, max(-(-keys // spec.block_size), memory // block_bytes))
        self.data.randomise()
        self._next = 0

    def same(self, keys: int) -> int:
        """The first block of keys that every such call reads."""
        return 0

    def next(self, keys: int) -> int:
        """The first block of keys that were not read for as long as there is memory."""
        blocks = -(-keys // self.data.spec.block_size)
        first = self._next if self._next + blocks <= self.data.blocks else 0
        self._next = first + blocks
        return first


def read_attend(timings: Timings, format: str, rows: Sequence[int], keys: int, fastest: float) -> AttendCurve:
    """The curve as measured; keys are read no faster than the nearest cache is, ``fastest`` bytes/s."""
    few, many = counted(format, 1, SHORT - 1), counted(format, 1, keys - 1)
    short, warm, more, short_fresh, fresh = (
        timings.seconds(_figure(format, n)) for n in ("short", "warm", "many", "short_fresh", "fresh")
    )
    line = fit(few.cache_bytes, short, many.cache_bytes, warm, fastest)
    fresh_line = fit(few.cache_bytes, short_fresh, many.cache_bytes, fresh, fastest)
    # Twice the query heads read the same keys: what they take longer is the operations' share.
    beyond = max(warm - line.overhead, LEAST_SHARE * warm)
    computing = min(max(more - warm, LEAST_SHARE * beyond), (1 - LEAST_SHARE) * beyond)

    def rate(name: str, flops: float) -> float:
        seconds = timings.seconds(_figure(format, name))
        return flops / max(seconds - line.overhead, LEAST_SHARE * seconds)

    def bandwidth(seconds: float, overhead: float) -> float:
        reading = max(seconds - overhead - computing, LEAST_SHARE * seconds)
        return min(many.cache_bytes / reading, fastest)

    return AttendCurve(
        overhead=line.overhead,
        fresh_overhead=fresh_line.overhead,
        warm=bandwidth(warm, line.overhead),
        fresh=bandwidth(fresh, fresh_line.overhead),
        row_rate=many.flops / computing,
        rows=tuple(rows),
        flops_per_second=tuple(rate(f"rows[{n}]", counted(format, n, 0).flops) for n in rows),
    )


def counted(format: str, rows: int, past: int) -> SequenceWork:
    """Attention of ``rows`` new rows after ``past`` cached ones, as the count reading counts it."""
    ops, spec = Count(activations=CPU.activations, lowering=CPU), cache_spec(WIDE, format)
    span = span_of(rows, past, spec.block_size)
    batch = ops.batch([span], cache=ops.alloc_cache(spec, len(span.table)))
    out = attend(ops, ops.input("qkv", (rows, width_of(WIDE)), CPU.activations), WIDE, batch)
    (work,) = next(kernel.sequences for _, kernel in ops.trace(out).kernels() if kernel.kind == "attend")
    return work


def _figure(format: str, name: str) -> str:
    return f"kernels.attend.{format}.{name}"
