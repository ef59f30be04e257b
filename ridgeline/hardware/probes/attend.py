"""Attention of the cpu reading, over caches of every format: rotating, appending and attending in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ridgeline.hardware.kernels import AttendCurve
from ridgeline.hardware.probes.parts import fit
from ridgeline.hardware.probes.passes import (
    ALIKE,
    FORMAT,
    MANY,
    WIDE,
    attend,
    attend_whole,
    cache_spec,
    plain,
    recorded,
    span_of,
    width_of,
)
from ridgeline.hardware.timing import KernelProbe, Timings
from ridgeline.ops.batch import Batch, Span
from ridgeline.ops.count import Count
from ridgeline.ops.formats import get_format
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
    format: str,
    rows: Sequence[int],
    keys: int,
    memory: int,
    between: Callable[[], Sequence[Any]],
    streamed: Callable[[], Sequence[Any]] | None = None,
) -> list[KernelProbe]:
    """With a cache in ``format``: figures ``kernels.attend.FORMAT.warm`` and ``.fresh`` (one row, ``keys``
    keys that are near, or come round after ``memory`` bytes), ``.short`` and ``.short_fresh`` (the same with
    a short context), ``.many`` (as warm, twice the query heads), ``.heads`` (as many bytes as fresh, of more
    key heads), ``.rows[ROWS]`` (a causal prompt), ``.alike[ROWS]`` (the same with a key head for each query
    head) and ``.whole[ROWS]`` (as alike, without cache or mask, for the formats that are multiplied without a
    cache). ``between`` runs before each call; where keys come from memory ``streamed``, with which weights
    pass through the caches, runs instead."""
    streamed = streamed or between
    caches: dict[Heads, Blocks] = {}
    replays: dict[Heads, Replay] = {}

    def probe(name: str, heads: Heads, n: int, past: int, far: bool) -> KernelProbe:
        of_cache = WIDE if heads is MANY else heads  # the same keys
        if of_cache not in caches:
            caches[of_cache] = Blocks(format, max(*rows, keys), memory, of_cache)
        cache = caches[of_cache]
        if heads not in replays:
            replays[heads] = _recorded(heads, cache.data)
        replay = replays[heads]

        def call() -> float:
            first = (cache.next if far else cache.same)(n + past)
            span = span_of(n, past, cache.data.spec.block_size, first)
            return replay.profile([0] * n, [span], "last", cache.data)[ATTENTION].total

        return KernelProbe(_figure(format, name), call, prepare=streamed if far else between)

    of_memory: dict[str, Any] = {"twin": _figure(format, "warm")}
    of_memory["memory"] = counted(format, 1, keys - 1).cache_bytes
    probes = [
        probe("short", WIDE, 1, SHORT - 1, far=False),
        probe("short_fresh", WIDE, 1, SHORT - 1, far=True),  # waits for latency, not for memory's rate
        probe("warm", WIDE, 1, keys - 1, far=False),
        replace(probe("fresh", WIDE, 1, keys - 1, far=True), **of_memory),
        probe("many", MANY, 1, keys - 1, far=False),
        replace(probe("heads", ALIKE, 1, _fewer(keys) - 1, far=True), **of_memory),
        *(probe(f"rows[{n}]", WIDE, n, 0, far=True) for n in rows),
        *(probe(f"alike[{n}]", ALIKE, n, 0, far=True) for n in _alike(rows)),
    ]
    return probes + (_whole_probes(format, rows, between) if format == FORMAT else [])


def _fewer(keys: int) -> int:
    """Of so many keys of the wide layer the heads that are alike have as many bytes."""
    return keys * WIDE.kv // ALIKE.kv


def _alike(rows: Sequence[int]) -> Sequence[int]:
    """The prompts that tell what storing keys and values takes: the middling one."""
    return rows[len(rows) // 2 :][:1]


def _whole_probes(
    format: str, rows: Sequence[int], between: Callable[[], Sequence[Any]]
) -> list[KernelProbe]:
    replay = _recorded(ALIKE, None)

    def seconds(n: int) -> float:
        return replay.profile([0] * n, [Span(n)], "last")[ATTENTION].total

    return [KernelProbe(_figure(format, f"whole[{n}]"), partial(seconds, n), prepare=between) for n in rows]


def _recorded(heads: Heads, cache: NativeCache | None) -> Replay:
    table = plain("embedding", 1, width_of(heads))

    def forward(ops: Ops, batch: Batch) -> Any:
        x = ops.embed(batch.ids, table)
        y = attend(ops, x, heads, batch) if cache else attend_whole(ops, x, heads, batch)
        # The result is no output of the pass: those are new memory at every step.
        return ops.take_rows(y, batch.logit_rows)

    return recorded(forward, cache)


class Blocks:
    """The blocks of one layer's cache of ``memory`` bytes, and of ``keys`` keys at least."""

    def __init__(self, format: str, keys: int, memory: int, heads: Heads = WIDE) -> None:
        from ridgeline.ops.native_cache import NativeCache

        spec = cache_spec(heads, format)
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

    def beyond_overhead(name: str) -> float:
        seconds = timings.seconds(_figure(format, name))
        return max(seconds - line.overhead, LEAST_SHARE * seconds)

    (n,) = _alike(rows)
    more_stored = stored_bytes(format, n, ALIKE) - stored_bytes(format, n, WIDE)
    storing = beyond_overhead(f"alike[{n}]") - beyond_overhead(f"rows[{n}]")
    least = LEAST_SHARE * beyond_overhead(f"rows[{n}]")
    append = min(more_stored / max(storing, least), fastest)

    def rate(n: int) -> float:
        seconds = beyond_overhead(f"rows[{n}]")
        computing_alone = seconds - stored_bytes(format, n, WIDE) / append
        return counted(format, n, 0).flops / max(computing_alone, LEAST_SHARE * seconds)

    def whole_rate(n: int) -> float:
        width = ALIKE.query * ALIKE.dim
        return 4 * n * n * width / beyond_overhead(f"whole[{n}]")

    def bandwidth(seconds: float, overhead: float) -> float:
        reading = max(seconds - overhead - computing, LEAST_SHARE * seconds)
        return min(many.cache_bytes / reading, fastest)

    fresh_rate = bandwidth(fresh, fresh_line.overhead)
    # What the same bytes take in few key heads, with less to compute.
    fewer = fresh_line.overhead + many.cache_bytes / fresh_rate + computing * WIDE.kv / ALIKE.kv
    return AttendCurve(
        overhead=line.overhead,
        fresh_overhead=fresh_line.overhead,
        warm=bandwidth(warm, line.overhead),
        fresh=fresh_rate,
        row_rate=many.flops / computing,
        rows=tuple(rows),
        flops_per_second=tuple(map(rate, rows)),
        whole=tuple(map(whole_rate, rows)) if _figure(format, f"whole[{rows[0]}]") in timings else (),
        append=append,
        head=max(timings.seconds(_figure(format, "heads")) - fewer, 0.0) / (ALIKE.kv - WIDE.kv),
    )


def stored_bytes(format: str, rows: int, heads: Heads) -> float:
    """Bytes of the keys and values that ``rows`` bring, as a cache stores them."""
    return float(get_format(format).nbytes((2 * rows * heads.kv, heads.dim)))


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
