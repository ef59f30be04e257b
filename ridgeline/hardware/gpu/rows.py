"""What lies between the products: norms, sums, activations, rotations with their append, gathering,
sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ridgeline.hardware.gpu.attention import normal, spans_in, table_of
from ridgeline.hardware.gpu.plan import GpuPlan
from ridgeline.hardware.gpu.work import Work
from ridgeline.hardware.probes.passes import cache_spec
from ridgeline.hardware.timing import Timing
from ridgeline.ops.batch import BLOCK_TOKENS, Span
from ridgeline.ops.records import Heads, Mask, Norm, Rope, Score, Weight

if TYPE_CHECKING:
    from ridgeline.ops.gpu import Gpu

#: Six heads make the width of what rotates and appends: four of queries, one of keys and one of values. They
#: are as many times as many as a head of this size at most allows.
LARGEST_HEAD = 128
THETA = 10_000.0
#: Rotation, append and attention to the new key alone, from which attention alone is subtracted.
WHOLE, ALONE = "attend.whole", "attend.alone"


def row_work(plan: GpuPlan, ops: Gpu) -> list[list[Work]]:
    """Work for the element-wise tables, a list for each, and what ``rotate_append`` follows from."""
    makers: dict[str, Callable[[Gpu, int, int], Callable[[], Any]]] = {
        "norm.rms": partial(_norm, "rms"),
        "norm.layer": partial(_norm, "layer"),
        "add": _add,
        "activation.gated": partial(_activation, "silu_gated"),
        "activation.plain": partial(_activation, "gelu"),
        "gather": _gather,
        "append": _append,
        WHOLE: partial(_attend, True),
        ALONE: partial(_attend, False),
    }
    found = []
    for figure, make in makers.items():
        shapes = [(rows, width) for rows in plan.element_rows for width in plan.widths]
        # A block of the cache for each row.
        paged = 2 * BLOCK_TOKENS if figure in (WHOLE, ALONE, "append") else 0
        work = [Work(figure, s, partial(make, ops, *s), (6 + paged) * s[0] * s[1]) for s in shapes]
        found.append([w for w in work if w.nbytes <= plan.most_bytes])
    samples = [(rows, vocab) for rows in plan.element_rows if rows <= 128 for vocab in plan.vocabularies]
    found.append([Work("sample", s, partial(_sample, ops, *s), 2 * s[0] * s[1], "wall") for s in samples])
    return found


def rotations(
    timings: dict[tuple[str, tuple[float, ...]], Timing], gap: float
) -> Iterator[tuple[tuple[float, ...], Timing]]:
    """Points of ``rotate_append``: a whole operator less its attention, and an empty kernel at least."""
    for (figure, point), whole in timings.items():
        alone = timings.get((ALONE, point))
        if figure == WHOLE and alone is not None:
            yield point, Timing(max(whole.seconds - alone.seconds, gap), whole.spread)


def _norm(kind: str, ops: Gpu, rows: int, width: int) -> Callable[[], Any]:
    vector = Weight("norm", (width,), "bf16", normal(ops, width))
    norm = Norm(kind, vector, 1e-5, vector if kind == "layer" else None)
    return partial(ops.norm, normal(ops, rows, width), norm)


def _add(ops: Gpu, rows: int, width: int) -> Callable[[], Any]:
    return partial(ops.add, normal(ops, rows, width), normal(ops, rows, width))


def _activation(name: str, ops: Gpu, rows: int, width: int) -> Callable[[], Any]:
    from ridgeline.kernels.triton import activate

    columns = 2 * width if name.endswith("_gated") else width
    return partial(activate, normal(ops, rows, columns), name)


def _gather(ops: Gpu, rows: int, width: int) -> Callable[[], Any]:
    import torch

    order = torch.randperm(rows, device=ops.device)
    return partial(ops.take_rows, normal(ops, rows, width), order)


def _heads(width: int, parts: int) -> Heads:
    """Heads that make ``width`` in ``parts`` of one key head's size: queries four of six."""
    each = width // parts
    dim = max(d for d in range(2, min(LARGEST_HEAD, each) + 1, 2) if each % d == 0)
    return Heads(query=4 * each // dim, kv=each // dim, dim=dim)


def _cache(ops: Gpu, heads: Heads, rows: int) -> Any:
    """A sequence a row, each in a block of its own."""
    spec = cache_spec(heads)
    cache = ops.alloc_cache(spec, rows)
    cache.randomise()
    return cache.layer(0)


def _append(ops: Gpu, rows: int, width: int) -> Callable[[], Any]:
    heads = _heads(width, 2)
    k, v = (normal(ops, rows, heads.kv, heads.dim) for _ in "kv")
    spans = spans_in(ops, [table_of(Span(1), i, 1) for i in range(rows)])
    return partial(ops.store, k, v, spans=spans, cache=_cache(ops, heads, rows))


def _attend(whole: bool, ops: Gpu, rows: int, width: int) -> Callable[[], Any]:
    heads = _heads(width, 6)
    q, k, v = (normal(ops, rows, n, heads.dim) for n in (heads.query, heads.kv, heads.kv))
    spans = spans_in(ops, [table_of(Span(1), i, 1) for i in range(rows)])
    score = Score(heads.dim**-0.5)
    given = {"spans": spans, "mask": Mask(causal=True), "score": score, "cache": _cache(ops, heads, rows)}
    if whole:
        return partial(ops.attend, q, k, v, rope=Rope(heads.dim, THETA), **given)
    return partial(ops.attend, q, None, None, **given)


def _sample(ops: Gpu, rows: int, vocab: int) -> Callable[[], Any]:
    from ridgeline.kernels.triton import sample

    return partial(sample, normal(ops, rows, vocab).float(), [1.0] * rows, [1] * rows, list(range(rows)))


#: A small operator of each kind that the host issues.
ROWS_OF_ISSUE: dict[str, Callable[[Gpu], Callable[[], Any]]] = {
    "norm": lambda ops: _norm("rms", ops, 1, 768),
    "add": lambda ops: _add(ops, 1, 768),
    "activation": lambda ops: _activation("silu_gated", ops, 1, 768),
    "attend": lambda ops: _attend(True, ops, 1, 768),
    "gather": lambda ops: _gather(ops, 1, 768),
}
