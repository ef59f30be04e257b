"""Attention as the cpu reading calls it, over a cache in blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ridgeline.hardware.kernels import AttendCurve
from ridgeline.hardware.probes.layer import CAUSAL, WIDE, cache_spec, span_of
from ridgeline.hardware.probes.parts import fit
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import Probe, Timings
from ridgeline.ops.count import Count
from ridgeline.ops.numbers import round_up
from ridgeline.ops.protocol import Score
from ridgeline.ops.trace import CPU, Kernel, Role

if TYPE_CHECKING:
    from ridgeline.ops.torch_batch import TorchLayerCache

SCORE = Score(WIDE.dim**-0.5)
#: Context of the short call that tells the overhead: PyTorch has other code for a handful of keys.
SHORT = 64
#: What a call takes beyond its overhead is at least this share of it, should noise say less.
LEAST_SHARE = 0.1


def attend_probes(
    format: str, rows: Sequence[int], keys: int, ring: Ring, prepare: Callable[[], tuple[()]]
) -> list[Probe]:
    """With a cache in ``format``: figures ``kernels.attend.FORMAT.short`` (one row, a short context),
    ``.warm`` and ``.fresh`` (one row, ``keys`` keys in a cache that is near, or in memory) and
    ``.rows[ROWS]`` (a prompt).

    Rotating and appending have times of their own: there is no rotation, and the cache is full.
    """
    import torch

    from ridgeline.ops.cpu import Cpu
    from ridgeline.ops.torch_batch import TORCH_DTYPE, TorchLayerCache

    ops, spec = Cpu(), cache_spec(WIDE, format)

    def cache_for(count: int, piece: Callable[..., torch.Tensor]) -> TorchLayerCache:
        shape = (2, spec.kv_heads, round_up(count, spec.block_size), spec.head_dim)
        full = TorchLayerCache(*piece(shape, TORCH_DTYPE[format]), spec.block_size)
        full.append = lambda k, v, spans: None
        return full

    def probe(name: str, n: int, past: int, piece: Callable[..., torch.Tensor]) -> Probe:
        q, k = (torch.rand(n, heads, WIDE.dim) for heads in (WIDE.query, WIDE.kv))
        spans = ops.batch([0] * n, [span_of(n, past, spec.block_size)]).spans

        def cache() -> tuple[TorchLayerCache]:
            prepare()
            return (cache_for(n + past, piece),)

        def attend(cache: TorchLayerCache) -> torch.Tensor:
            return ops.attend(q, k, k, spans=spans, mask=CAUSAL, score=SCORE, cache=cache)

        return Probe(_figure(format, name), attend, prepare=cache)

    return [
        probe("short", 1, SHORT - 1, ring.keep),
        probe("warm", 1, keys - 1, ring.keep),
        probe("fresh", 1, keys - 1, ring.take),
        *(probe(f"rows[{n}]", n, 0, ring.keep) for n in rows),
    ]


def read_attend(timings: Timings, format: str, rows: Sequence[int], keys: int, fastest: float) -> AttendCurve:
    """The curve as measured; keys are read no faster than the nearest cache is, ``fastest`` bytes/s."""
    few, many = cache_bytes(format, SHORT), cache_bytes(format, keys)
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
        flops_per_second=tuple(counted(format, n, 0).flops.matrix / beyond(f"rows[{n}]") for n in rows),
    )


def cache_bytes(format: str, keys: int) -> float:
    """Bytes of the cache that one row reads."""
    return sum(a.bytes for a in counted(format, 1, keys - 1).reads if a.value.role is Role.CACHE)


def counted(format: str, rows: int, past: int) -> Kernel:
    """Attention of ``rows`` new rows after ``past`` cached ones, as the count reading counts it."""
    ops, spec = Count(activations=CPU.activations, lowering=CPU), cache_spec(WIDE, format)
    span = span_of(rows, past, spec.block_size)
    batch = ops.batch([span], cache=ops.alloc_cache(spec, len(span.table)))
    q, k, v = (
        ops.input(name, (rows, heads, WIDE.dim), CPU.activations)
        for name, heads in (("q", WIDE.query), ("k", WIDE.kv), ("v", WIDE.kv))
    )
    out = ops.attend(q, k, v, spans=batch.spans, mask=CAUSAL, score=SCORE, cache=batch.layer_cache(0))
    return next(kernel for _, kernel in ops.trace(out).kernels() if kernel.kind == "attend")


def _figure(format: str, name: str) -> str:
    return f"kernels.attend.{format}.{name}"
