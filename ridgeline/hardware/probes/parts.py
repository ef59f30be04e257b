"""What the cpu reading's operators cost beside products and attention: an overhead, then bytes a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ridgeline.hardware.kernels import Affine
from ridgeline.hardware.probes.passes import FORMAT, WIDE, Step, packed, plain, recorded
from ridgeline.hardware.timing import KernelProbe, Probe, Timings
from ridgeline.ops.batch import Batch, Span
from ridgeline.ops.count import Count
from ridgeline.ops.formats import get_format
from ridgeline.ops.lowering import CPU
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Norm, Weight

if TYPE_CHECKING:
    from ridgeline.ops.replay import Replay

#: The rows from which overhead and throughput follow: one token, and tensors of 0.5 MB, which the cores' own
#: caches hold.
SMALL, LARGE = 1, 128
#: Columns of all parts, as the wide layer has them.
WIDTH = WIDE.query * WIDE.dim
#: As many bytes in narrow rows tell what a row costs by itself, which norms have.
NARROWER = 4
NORMS = ("norm", "norm.layer")
#: Rows of a table that is packed to be multiplied, too: where embedding and output matrix are one.
PACKED = "embed.packed"
#: The parts in the order of their pass.
PARTS = ("embed", "norm", "norm.layer", "add", "activation", "gather")
STEP, STEP_KERNELS = "kernels.step.python", "kernels.step.kernels"


def run_parts(ops: Ops, batch: Batch, weight: Callable[..., Weight], narrower: int = 1) -> Any:
    """Every part once, ``narrower`` times as narrow as the wide layer."""
    vector = weight("norm", WIDTH // narrower)
    x = ops.embed(batch.ids, weight("embedding", LARGE * narrower, WIDTH // narrower))
    x = ops.norm(x, Norm("rms", vector, 1e-5))
    x = ops.norm(x, Norm("layer", vector, 1e-5, vector))
    return ops.take_rows(ops.activate(ops.add(x, x), "silu"), batch.logit_rows)


def part_probes(between: Callable[[], Sequence[Any]]) -> list[KernelProbe]:
    """Figures ``kernels.simple.PART[ROWS]``. ``between`` runs before each call."""
    replay = recorded(lambda ops, batch: run_parts(ops, batch, plain))
    table = packed("embedding", LARGE, WIDTH)
    of_packed = recorded(lambda ops, batch: ops.take_rows(ops.embed(batch.ids, table), batch.logit_rows))
    narrow = recorded(lambda ops, batch: run_parts(ops, batch, plain, NARROWER))
    calls = [(part, replay, number) for number, part in enumerate(PARTS)] + [(PACKED, of_packed, 0)]
    return [
        KernelProbe(_figure(part, rows), partial(_seconds, replay, rows, number), prepare=between)
        for rows in (SMALL, LARGE)
        for part, replay, number in calls
    ] + [
        KernelProbe(
            f"kernels.simple.{part}.narrow",
            partial(_seconds, narrow, NARROWER * LARGE, PARTS.index(part)),
            prepare=between,
        )
        for part in NORMS
    ]


def _seconds(replay: Replay, rows: int, number: int) -> float:
    return replay.profile(range(rows), [Span(rows)], range(rows))[number].total


def read_parts(timings: Timings, fastest: float) -> dict[str, Affine]:
    """Each part as measured; none moves bytes faster than the nearest cache, ``fastest`` bytes/s."""
    small, large = ({**bytes_by_part(n), PACKED: packed_bytes_of(n)} for n in (SMALL, LARGE))
    parts = {}
    for part in (*PARTS, PACKED):
        few, many = (timings.seconds(_figure(part, rows)) for rows in (SMALL, LARGE))
        row = _row_seconds(timings, part, many) if part in NORMS else 0.0
        line = fit(small[part], few - SMALL * row, large[part], many - LARGE * row, fastest)
        parts[part] = replace(line, row=row)
    return parts


def _row_seconds(timings: Timings, part: str, wide: float) -> float:
    """What a row takes beside its bytes, at most half of what it takes with them."""
    more = timings.seconds(f"kernels.simple.{part}.narrow") - wide
    return min(max(more / ((NARROWER - 1) * LARGE), 0.0), wide / LARGE / 2)


def bytes_by_part(rows: int) -> dict[str, float]:
    """Bytes that each part moves, as the count reading counts them."""
    ops = Count(activations=CPU.activations, lowering=CPU)
    batch = ops.batch([Span(1, count=rows)])  # logits of every row, as the last of its sequence
    trace = ops.trace(run_parts(ops, batch, lambda name, *shape: Weight(name, shape, FORMAT)))
    return {part: kernel.bytes for part, (_, kernel) in zip(PARTS, trace.kernels(), strict=True)}


def packed_bytes_of(rows: int) -> float:
    """Bytes of a packed table's rows as they are stored: a row lies among 31 others, and how many lines of a
    cache it is scattered over goes by them."""
    return float(get_format(FORMAT).nbytes((rows, WIDTH)))


def fit(few_bytes: float, few: float, many_bytes: float, many: float, fastest: float) -> Affine:
    """The line through two measurements, in bytes and seconds, but never faster than ``fastest``."""
    throughput = min((many_bytes - few_bytes) / max(many - few, 1e-12), fastest)
    return Affine(max(few - few_bytes / throughput, 0.0), throughput)


def step_probes(step: Step) -> list[Probe]:
    """A small step as Python runs it, and its kernels alone."""
    return [Probe(STEP, step.run), KernelProbe(STEP_KERNELS, step.kernel_seconds)]


def read_step(timings: Timings) -> float:
    """What a step costs beside its kernels."""
    return max(timings.seconds(STEP) - timings.seconds(STEP_KERNELS), 0.0)


def _figure(part: str, rows: int) -> str:
    return f"kernels.simple.{part}[{rows}]"
