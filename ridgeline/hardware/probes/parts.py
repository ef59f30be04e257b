"""What an operator's parts cost beside products and attention: an overhead, then bytes a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ridgeline.hardware.kernels import Affine
from ridgeline.hardware.probes.layer import (
    FORMAT,
    WIDE,
    bytes_by_part,
    cache_spec,
    layer_norm,
    make_layer,
    span_of,
)
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import Probe, Timings
from ridgeline.ops.protocol import Rope

#: The rows from which overhead and throughput follow: one token, and tensors of 2 to 4 MB.
SMALL, LARGE = 1, 1024
PARTS = ("embed", "norm", "norm.layer", "split", "rotate", "append", "add", "gather")
STEP = "kernels.step"
#: Context of the sequence whose step is made.
STEP_CONTEXT = 512


def part_probes(ring: Ring, prepare: Callable[[], tuple[()]]) -> list[Probe]:
    """Figures ``kernels.simple.PART[ROWS]``."""
    calls = {rows: _calls(rows, ring) for rows in (SMALL, LARGE)}
    return [
        Probe(_figure(part, rows), calls[rows][part], prepare=prepare)
        for rows in (SMALL, LARGE)
        for part in PARTS
    ]


def read_parts(timings: Timings, fastest: float) -> dict[str, Affine]:
    """Each part as measured; none moves bytes faster than the nearest cache, ``fastest`` bytes/s."""
    small, large = bytes_by_part(SMALL), bytes_by_part(LARGE)
    parts = {}
    for part in PARTS:
        few, many = (timings.seconds(_figure(part, rows)) for rows in (SMALL, LARGE))
        if part in small:
            parts[part] = fit(small[part], few, large[part], many, fastest)
        else:  # a view: nothing is moved, the call alone takes its time
            parts[part] = Affine(few, fastest)
    return parts


def fit(few_bytes: float, few: float, many_bytes: float, many: float, fastest: float) -> Affine:
    """The line through two measurements, in bytes and seconds, but never faster than ``fastest``."""
    throughput = min((many_bytes - few_bytes) / max(many - few, 1e-12), fastest)
    return Affine(max(few - few_bytes / throughput, 0.0), throughput)


def step_probe(prepare: Callable[[], tuple[()]]) -> Probe:
    """What a step costs beside its operators: the batch of one new row, with its place in the cache
    and its rotation."""
    from ridgeline.ops.cpu import Cpu

    ops, rope = Cpu(), Rope(WIDE.dim, 10_000.0)
    block_size = cache_spec(WIDE).block_size
    span = span_of(1, STEP_CONTEXT - 1, block_size)

    def step() -> None:
        spans = ops.batch([0], [span]).spans
        spans.slots(block_size)
        spans.rotation(rope, ops.dtype)

    return Probe(STEP, step, prepare=prepare)


def _figure(part: str, rows: int) -> str:
    return f"kernels.simple.{part}[{rows}]"


def _calls(rows: int, ring: Ring) -> dict[str, Callable[[], Any]]:
    """The parts of the wide layer over ``rows`` rows, each by the very call that the cpu reading makes."""
    import torch

    from ridgeline.ops.cpu import Cpu
    from ridgeline.ops.torch_batch import TORCH_DTYPE, rotate

    ops, spec = Cpu(), cache_spec(WIDE)
    layer = make_layer(WIDE, rows, lambda shape, gated: ring.take(shape, TORCH_DTYPE[FORMAT]))
    span = span_of(rows, 0, spec.block_size)
    cache = ops.alloc_cache(spec, len(span.table)).layer(0)
    batch = ops.batch(list(range(rows)), [span])
    spans = batch.spans
    width = WIDE.query * WIDE.dim
    x, y = torch.rand(rows, width), torch.rand(rows, width)
    qkv = torch.rand(rows, width + 2 * WIDE.kv * WIDE.dim)
    q, k, v = ops.split_heads(qkv, WIDE)
    other_norm = layer_norm(layer)

    def turn() -> None:
        cos, sin = spans.rotation(layer.rope, ops.dtype)
        rotate(q, cos, sin), rotate(k, cos, sin)

    return {
        "embed": lambda: ops.embed(batch.ids, layer.table),
        "norm": lambda: ops.norm(x, layer.norm),
        "norm.layer": lambda: ops.norm(x, other_norm),
        "split": lambda: ops.split_heads(qkv, WIDE),
        "rotate": turn,
        "append": lambda: cache.append(k, v, spans),
        "add": lambda: ops.add(x, y),
        "gather": lambda: ops.take_rows(x, batch.positions),
    }
