"""Points that name a model's layers rather than sizes, as LLMServingSim's profiles of vLLM do.

Which sizes a layer has is the model's to say, so they are read from its trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ridgeline.analysis.step import trace_step
from ridgeline.errors import InputError
from ridgeline.models import declare, load_config
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
    "lm_head": "head",
}
#: The element-wise kernels of the other layers.
KERNELS: Mapping[str, str] = {
    "layernorm": "rms_norm",
    "final_layernorm": "rms_norm",
    "rotary_emb": "rope",
    "act_fn": "silu_mul",
}
#: Layers that no time model is for: they are passed over.
OTHERS = ("embedding", "sampler")


def points_of_layers(
    path: Path, header: Sequence[str], rows: Sequence[tuple[int, Row]], *, model: str | None
) -> dict[str, Points]:
    """The points by kind of a file whose rows name a layer and a number of tokens or sequences.

    Raises InputError without a ``model``, for a layer that it lacks, and for wrong values.
    """
    if model is None:
        raise InputError(f"{path}: it names layers, so say of which model with --model")
    count = next((name for name in ROWS if name in header), None)
    if count is None:
        raise InputError(f"{path}, line 1: a column {' or '.join(ROWS)} is needed beside {LAYER}")
    products, widths = _sizes(model)
    parts: dict[str, list[Points]] = {}
    for line, row in rows:
        layer = row[LAYER]
        if layer in OTHERS:
            continue
        if layer in products:
            outputs, inputs = products[layer]
            sized = {"m": row[count], "n": str(outputs), "k": str(inputs)}
        elif layer in widths:
            sized = {"rows": row[count], "width": str(widths[layer]), "op": KERNELS[layer]}
        else:
            known = ", ".join((*products, *widths, *OTHERS))
            raise InputError(f"{path}, line {line}: {model} has no layer {layer!r}; it has {known}")
        sized[TIME] = row.get(TIME, "")
        for name, points in points_of(path, tuple(sized), [(line, sized)]).items():
            parts.setdefault(name, []).append(points)
    if not parts:
        raise InputError(
            f"{path}: no layer in it has a time model; those are {', '.join((*products, *widths))}"
        )
    return {name: join(points) for name, points in parts.items()}


def _sizes(model: str) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Outputs and inputs of the layers that multiply, and the widths of the others."""
    ops = {op.name: op for op in trace_step(declare(load_config(model)), [Span(1)]).ops}
    matrices = {
        name: access.value.shape
        for name, op in ops.items()
        for part in op.parts
        for access in part.reads
        if access.value.role is Role.WEIGHT and len(access.value.shape) == 2 and op.kind == "linear"
    }
    products = {layer: matrices[op] for layer, op in PRODUCTS.items() if op in matrices}
    widths = {}
    for op in ops.values():
        for part in op.parts:
            if part.kind == "norm":
                widths["layernorm"] = widths["final_layernorm"] = part.writes[0].value.shape[-1]
            if part.kind == "rotate":
                widths["rotary_emb"] = sum(a.value.shape[-2] * a.value.shape[-1] for a in part.writes)
            if part.kind == "activation":
                widths["act_fn"] = part.writes[0].value.shape[-1]
    return products, widths
