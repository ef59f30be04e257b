"""Points that name a model's layers rather than sizes, as LLMServingSim's profiles of vLLM do.

Which sizes a layer has is the model's to say, so they are read from its trace: of a tensor-parallel rank's
share of it, if that is what was profiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ridgeline.analysis.step import trace_step
from ridgeline.errors import InputError
from ridgeline.models import declare, load_config
from ridgeline.models.sharding import shard
from ridgeline.ops.batch import Span
from ridgeline.ops.kernel import Role
from ridgeline.predict.calibrate.points import TIME, Row, join, points_of
from ridgeline.predict.gpu.kinds import Points

LAYER = "layer"
#: How many rows a layer has: tokens, or sequences of which each needs one.
ROWS = ("tokens", "sequences")
#: The trace's operators of the layers that multiply.
PRODUCTS: Mapping[str, str] = {
    "qkv_proj": "attention.qkv",
    "o_proj": "attention.out",
    "gate_up_proj": "mlp.gate_up",
    "down_proj": "mlp.down",
    "router": "mlp.router",
    "lm_head": "head",
}
#: The element-wise kernels of the other layers. The norm that ends a model always adds the last layer's
#: output first; a layer's two are profiled together, and the first of them may have nothing to add.
KERNELS: Mapping[str, str] = {
    "embedding": "embedding",
    "layernorm": "rms_norm",
    "final_layernorm": "add_rms_norm",
    "q_norm": "rms_norm",
    "k_norm": "rms_norm",
    "qk_norm": "rms_norm",
    "rotary_emb": "rope",
    "act_fn": "silu_mul",
    "sampler": "sampler",
}
#: Layers of several kernels whose sizes a number of tokens does not tell: they are passed over.
OTHERS = ("attention", "moe")


@dataclass(frozen=True)
class _Rows:
    """The element-wise kernel of a layer: ``rows`` a token or sequence, of so many elements."""

    rows: int
    width: int


def points_of_layers(
    path: Path,
    header: Sequence[str],
    rows: Sequence[tuple[int, Row]],
    *,
    model: str | None,
    tensor: int = 1,
    passed: Counter[str] | None = None,
) -> dict[str, Points]:
    """The points by kind of a file whose rows name a layer and a number of tokens or sequences, on one of
    ``tensor`` ranks. ``passed`` counts the rows of layers that are passed over.

    Raises InputError without a ``model``, for a layer that it lacks, for more ranks than it can be cut for,
    and for wrong values.
    """
    if model is None:
        raise InputError(f"{path}: it names layers, so say of which model with --model")
    count = next((name for name in ROWS if name in header), None)
    if count is None:
        raise InputError(f"{path}, line 1: a column {' or '.join(ROWS)} is needed beside {LAYER}")
    products, others = _sizes(model, tensor)
    parts: dict[str, list[Points]] = {}
    for line, row in rows:
        layer = row[LAYER]
        if layer in OTHERS:
            if passed is not None:
                passed[layer] += 1
            continue
        if layer in products:
            outputs, inputs = products[layer]
            sized = {"m": row[count], "n": str(outputs), "k": str(inputs)}
        elif layer in others:
            size = others[layer]
            sized = {"rows": _times(row[count], size.rows), "width": str(size.width), "op": KERNELS[layer]}
        else:
            known = ", ".join((*products, *others, *OTHERS))
            raise InputError(f"{path}, line {line}: {model} has no layer {layer!r}; it has {known}")
        sized[TIME] = row.get(TIME, "")
        for name, points in points_of(path, tuple(sized), [(line, sized)]).items():
            parts.setdefault(name, []).append(points)
    if not parts:
        raise InputError(
            f"{path}: no layer in it has a time model; those are {', '.join((*products, *others))}"
        )
    return {name: join(points) for name, points in parts.items()}


def _times(count: str, rows: int) -> str:
    """So many rows for each of ``count``, which is judged later if it is no number."""
    return str(int(count) * rows) if count.strip().isdecimal() else count


def _sizes(model: str, tensor: int) -> tuple[dict[str, tuple[int, int]], dict[str, _Rows]]:
    """Outputs and inputs of the layers that multiply, and the sizes of the others."""
    built = declare(load_config(model))
    trace = trace_step(shard(built, tensor) if tensor > 1 else built, [Span(1)])
    ops = {op.name: op for op in trace.ops}
    matrices = {
        name: access.value.shape
        for name, op in ops.items()
        for part in op.parts
        for access in part.reads
        if access.value.role is Role.WEIGHT
        and len(access.value.shape) == 2
        and op.kind in ("linear", "route")
    }
    products = {layer: matrices[op] for layer, op in PRODUCTS.items() if op in matrices}
    others = {}
    for op in ops.values():
        for part in op.parts:
            shapes = [a.value.shape for a in part.writes]
            if part.kind == "norm" and op.kind == "norm" and "." not in op.name:
                others["layernorm"] = others["final_layernorm"] = _Rows(1, shapes[0][-1])
            if part.kind == "norm" and op.kind == "split":
                layer = "k_norm" if part is op.parts[-1] else "q_norm"
                others[layer] = _Rows(shapes[0][-2], shapes[0][-1])
                if layer == "k_norm":
                    others["qk_norm"] = _Rows(others["q_norm"].rows + shapes[0][-2], shapes[0][-1])
            if part.kind == "rotate":
                others["rotary_emb"] = _Rows(1, sum(prod(shape[1:]) for shape in shapes))
            gated = part.kind == "activation" and part.reads[0].value.shape[-1] == 2 * shapes[0][-1]
            if gated and op.kind == "linear":
                others["act_fn"] = _Rows(1, shapes[0][-1])
            if part.kind == "embed" and op.name == "embedding":
                others["embedding"] = _Rows(1, shapes[0][-1])
            if op.name == "head":
                others["sampler"] = _Rows(1, built.config.vocab)
    return products, others
