"""Attention of the cpu reading, over caches of every format: rotating, appending and attending in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ridgeline.hardware.kernels import AttendCurve
from ridgeline.hardware.probes.parts import fit
from ridgeline.hardware.probes.passes import WIDE, attend, cache_spec, plain, recorded, span_of, width_of
from ridgeline.hardware.timing import KernelProbe, Timings
from ridgeline.ops.count import Count
from ridgeline.ops.protocol import Batch, Ops
from ridgeline.ops.trace import CPU, SequenceWork

#: Context of the short call that tells the overhead.
SHORT = 64
#: What a call takes beyond its overhead is at least this share of it, should noise say less.
LEAST_SHARE = 0.1
#: Attention's number in the pass, after the embedding and the split into heads.
ATTENTION = 2


def attend_probes(
    format: str, rows: Sequence[int], keys: int, memory: int, between: Callable[[], Sequence[Any]]
) -> list[KernelProbe]:
    """With a cache in ``format``: figures ``kernels.attend.FORMAT.short`` (one row, a short context),
    ``.warm`` and ``.fresh`` (one row, ``keys`` keys that are near, or come round after ``memory`` bytes) and
    ``.rows[ROWS]`` (a prompt). ``between`` runs before each call."""
    layer = _Attention(format, max(*rows, keys), memory)

    def probe(name: str, n: int, past: int, first: Callable[[int], int]) -> KernelProbe:
        def call() -> float:
            return layer.seconds(n, past, first(n + past))

        return KernelProbe(_figure(format, name), call, prepare=between)

    return [
        probe("short", 1, SHORT - 1, layer.same),
        probe("warm", 1, keys - 1, layer.same),
        probe("fresh", 1, keys - 1, layer.next),
        *(probe(f"rows[{n}]", n, 0, layer.same) for n in rows),
    ]


class _Attention:
    """Attention over one layer's cache of ``memory`` bytes, and of ``keys`` keys at least."""

    def __init__(self, format: str, keys: int, memory: int) -> None:
        from ridgeline.ops.cpu import Cpu

        spec = cache_spec(WIDE, format)
        self._block_size = spec.block_size
        block_bytes = Cpu().alloc_cache(spec, 1).layer(0).data.nbytes
        self._cache = Cpu().alloc_cache(spec, max(self._blocks(keys), memory // block_bytes))
        self._cache.randomise()
        self._next = 0
        table = plain("embedding", 1, width_of(WIDE))

        def forward(ops: Ops, batch: Batch) -> Any:
            attended = attend(ops, ops.embed(batch.ids, table), WIDE, batch)
            return ops.take_rows(attended, batch.logit_rows)

        self._replay = recorded(forward, self._cache)

    def _blocks(self, keys: int) -> int:
        return -(-keys // self._block_size)

    def same(self, keys: int) -> int:
        """The first block of keys that every such call reads."""
        return 0

    def next(self, keys: int) -> int:
        """The first block of keys that were not read for as long as there is memory."""
        blocks = self._blocks(keys)
        first = self._next if self._next + blocks <= self._cache.blocks else 0
        self._next = first + blocks
        return first

    def seconds(self, rows: int, past: int, first: int) -> float:
        span = span_of(rows, past, self._block_size, first)
        return self._replay.profile([0] * rows, [span], "last", self._cache)[ATTENTION].total


def read_attend(timings: Timings, format: str, rows: Sequence[int], keys: int, fastest: float) -> AttendCurve:
    """The curve as measured; keys are read no faster than the nearest cache is, ``fastest`` bytes/s."""
    few, many = counted(format, 1, SHORT - 1).cache_bytes, counted(format, 1, keys - 1).cache_bytes
    short, warm = (timings.seconds(_figure(format, name)) for name in ("short", "warm"))
    line = fit(few, short, many, warm, fastest)

    def beyond(name: str) -> float:
        seconds = timings.seconds(_figure(format, name))
        return max(seconds - line.overhead, LEAST_SHARE * seconds)

    return AttendCurve(
        overhead=line.overhead,
        warm=line.throughput,
        fresh=min(many / beyond("fresh"), fastest),
        rows=tuple(rows),
        flops_per_second=tuple(counted(format, n, 0).flops / beyond(f"rows[{n}]") for n in rows),
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
