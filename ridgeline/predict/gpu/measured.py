"""Time of a kernel on a GPU that was measured: tables first, and from point to point along the time models.

A table's points are compared with what the time models say of the same kernels. The ratio is interpolated,
between logarithms of sizes, by inverse squares of distances: at a point the measured time comes out exactly,
and between points and beyond them the models' shape does, scaled as the points nearby are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ridgeline.hardware.device import Device
from ridgeline.hardware.gpu_kernels import GpuKernels, GpuTable, columns_of
from ridgeline.ops.batch import CacheSpec, LayerCache, Span
from ridgeline.ops.count import Count
from ridgeline.ops.counted import counted_spans
from ridgeline.ops.formats import get_format
from ridgeline.ops.kernel import Kernel, Role, Value
from ridgeline.ops.lowering import GPU
from ridgeline.ops.numbers import Number
from ridgeline.ops.records import Heads, Mask, Norm, Rope, Score, Weight
from ridgeline.predict.gpu.kernels import GpuTimes, Needed, needed
from ridgeline.predict.tiers import DECISIVE, Tier

#: What tables are measured in; the other 16-bit format is as fast.
FORMAT = "bf16"
HALVES = ("bf16", "fp16")
#: The kinds of kernel that multiply by one weight.
PRODUCTS = ("matmul", "linear")
#: The table of other kinds, which stream like its kernels.
ALIKE: Mapping[str, str] = {
    **dict.fromkeys(("residual", "add", "add_vector", "modulate", "gate"), "add"),
    **dict.fromkeys(("embed", "gather"), "gather"),
    **dict.fromkeys(("append", "store"), "append"),
    "rotate": "rotate_append",
}
#: Heads differ in the code that serves them, rather than in how much of it runs: they count as far.
FAR = {"heads": 0.5, "kv_heads": 0.5, "dim": 2.0}
#: Distances, squared, below which two points are one.
SAME = 1e-8
#: What the host issues for a table's kernel; attention is two kernels of one operator.
ISSUE: Mapping[str, tuple[str, float]] = {
    "norm": ("norm", 1.0),
    "add": ("add", 1.0),
    "activation": ("activation", 1.0),
    "gather": ("gather", 1.0),
    **dict.fromkeys(("rotate_append", "append", "decode", "prompt", "encode"), ("attend", 0.5)),
}


class Place(NamedTuple):
    """Where a kernel is looked up: the table's name, and its sizes, which may be arrays."""

    table: str
    point: tuple[Number, ...]


class MeasuredGpu:
    """Times of kernels on a measured GPU. ``basis`` says of the time models that were used where their
    constants come from; ``unmeasured`` names the kernels that no table is for, whose times are the models'.
    """

    def __init__(self, device: Device) -> None:
        self.kernels = GpuKernels.from_dict(device.kernels)
        tier = Tier.CALIBRATED if DECISIVE in device.calibration else Tier.GENERIC
        self._models = GpuTimes(device, tier)
        self._tables = _tables_of(device)
        self.unmeasured: dict[str, None] = {}

    @property
    def basis(self) -> dict[str, str]:
        return self._models.basis

    def time(self, kernel: Kernel) -> Needed:
        """Raises InputError if the device cannot compute in the kernel's dtype."""
        model = self._models.time(kernel)
        ratio = self._ratio(kernel)
        if ratio is None:
            self.unmeasured[_describe(kernel)] = None
            return model
        return needed(model.seconds * ratio, {name: need * ratio for name, need in model.needs.items()})

    def issue_seconds(self, kernel: Kernel) -> float:
        """What the host takes to issue the kernel where a pass runs operator by operator."""
        found = place_of(kernel)
        known = self.kernels.issue
        if found is not None and found.table.startswith("linear."):
            plain = found.table.removeprefix("linear.") in (*HALVES, "fp32")
            return known.get("linear" if plain else "quantised", self.kernels.launch)
        name, share = ISSUE.get(found.table.partition(".")[0] if found else "", ("", 1.0))
        return share * known[name] if name in known else self.kernels.launch

    def _ratio(self, kernel: Kernel) -> Number | None:
        if len(kernel.sequences) < 2:
            found = place_of(kernel)
            return None if found is None else self._of(found)
        parts = [replace(kernel, sequences=(work,)) for work in kernel.sequences]
        ratios = [self._ratio(part) for part in parts]
        if any(ratio is None for ratio in ratios):
            return None
        weights = [self._models.time(part).seconds for part in parts]
        return sum(r * w for r, w in zip(ratios, weights, strict=True)) / sum(weights)

    def _of(self, place: Place) -> Number | None:
        table = self.kernels.tables.get(place.table)
        if table is None:
            return None
        if place.table not in self._tables:
            self._tables[place.table] = _Ratios(place.table, table, self._models)
        return self._tables[place.table].at(place.point)


#: What is known of devices' tables, the last few that were asked for, each by its two sections.
_KNOWN: dict[tuple[int, int], tuple[Device, dict[str, _Ratios]]] = {}
MOST_KNOWN = 8


def _tables_of(device: Device) -> dict[str, _Ratios]:
    """Those that were compared with the time models before, to which more are added."""
    key = id(device.kernels), id(device.calibration)
    if key not in _KNOWN:
        while len(_KNOWN) >= MOST_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[key] = device, {}  # the device is kept, so that its sections' ids stay their own
    return _KNOWN[key][1]


class _Ratios:
    """Measured over modelled time of a table's points, and in between."""

    def __init__(self, name: str, table: GpuTable, models: GpuTimes) -> None:
        modelled = [models.time(kernel_at(name, point)).seconds for point in table.points]
        self._ratios = np.log(np.array(table.seconds) / np.array(modelled, float))
        self._scale = np.array([FAR.get(column, 1.0) for column in columns_of(name)])
        self._points = self._placed(np.array(table.points, float))

    def _placed(self, points: np.ndarray) -> np.ndarray:
        return np.log2(1 + points) * self._scale

    def at(self, point: tuple[Number, ...]) -> np.ndarray:
        sizes = np.stack(np.broadcast_arrays(*(np.asarray(x, float) for x in point)), -1)
        distances = ((self._placed(sizes)[..., None, :] - self._points) ** 2).sum(-1)
        weights = 1 / (distances + SAME) ** 2
        return np.exp((weights * self._ratios).sum(-1) / weights.sum(-1))


def place_of(kernel: Kernel) -> Place | None:
    """The table and the sizes of a kernel of the gpu reading; None for one that no table is for."""
    weights = [a.value for a in kernel.reads if a.value.role is Role.WEIGHT and len(a.value.shape) > 1]
    if kernel.kind in PRODUCTS and np.any(kernel.flops.matrix):
        if len(weights) != 1 or kernel.groups != 1:
            return None
        outputs, inputs = weights[0].shape[-2:]
        format = weights[0].format
        return Place(f"linear.{FORMAT if format in HALVES else format}", (kernel.rows, outputs, inputs))
    if kernel.sequences:
        return _attention(kernel)
    if kernel.compute not in HALVES or np.any(kernel.flops.matrix) or not kernel.writes:
        return None
    written = sum(a.elements for a in kernel.writes)
    if kernel.kind == "norm":
        width = kernel.writes[0].value.shape[-1]
        return Place(f"norm.{kernel.function}", (written / width, width))
    if kernel.kind == "activation":
        gated = "gated" if kernel.function.endswith("_gated") else "plain"
        return Place(f"activation.{gated}", (kernel.rows, written / kernel.rows))
    # What rotates and appends is one kernel, and counts as its operator.
    table = "rotate_append" if kernel.kind == "attend" else ALIKE.get(kernel.kind)
    return None if table is None else Place(table, (kernel.rows, written / kernel.rows))


def _attention(kernel: Kernel) -> Place | None:
    """That of a kernel whose sequences are all alike."""
    work = kernel.sequences[0]
    if not np.all(work.heads):
        return None
    heads = (work.heads, work.kv_heads, work.head_dim)
    formats = [a.value.format for a in kernel.reads if a.value.role is Role.CACHE]
    format = formats[0] if formats else kernel.compute
    format = FORMAT if format in HALVES else format
    if not formats:
        return Place(f"encode.{format}", (work.rows, work.count, *heads))
    if np.all(np.less_equal(work.rows, 1)):
        return Place(f"decode.{format}", (work.count, work.keys, *heads))
    past = np.maximum(np.asarray(work.keys) - work.rows, 0)
    return Place(f"prompt.{format}", (work.rows, past, work.count, *heads))


def kernel_at(table: str, point: tuple[float, ...]) -> Kernel:
    """The kernel that a table's point is of, as a trace of the gpu reading has it."""
    kind, _, detail = table.partition(".")
    ops = Count(activations=FORMAT, lowering=GPU)
    sizes = dict(zip(columns_of(table), map(int, point), strict=True))
    attends = kind in ("decode", "prompt", "encode")
    out = (_count_attention if attends else _count_rows)(ops, kind, detail, sizes)
    kernels = ops.trace(out).ops[-1].kernels(GPU)
    return kernels[0] if kind == "rotate_append" else kernels[-1]


def _count_attention(ops: Count, kind: str, format: str, sizes: dict[str, int]) -> Value:
    heads = Heads(sizes["heads"], sizes["kv_heads"], sizes["dim"])
    rows = 1 if kind == "decode" else sizes["rows"]
    past = sizes["keys"] - 1 if kind == "decode" else sizes.get("past", 0)
    given = {
        "spans": counted_spans([Span(rows, past, count=sizes["sequences"])]),
        "mask": Mask(causal=kind != "encode"),
        "score": Score(heads.dim**-0.5),
    }
    q, k, v = _activations(ops, rows * sizes["sequences"], heads)
    if kind == "encode":
        return ops.attend(q, k, v, **given)
    return ops.attend(q, None, None, cache=_cache(ops, heads.kv, heads.dim, format), **given)


def _count_rows(ops: Count, kind: str, detail: str, sizes: dict[str, int]) -> Value:
    rows = sizes["rows"]
    if kind == "linear":
        weight = Weight("weight", (sizes["outputs"], sizes["inputs"]), detail)
        return ops.linear(ops.activation("x", (rows, sizes["inputs"])), weight)
    width = sizes["width"]
    x = ops.activation("x", (rows, width))
    if kind == "norm":
        vector = Weight("norm", (width,), FORMAT)
        return ops.norm(x, Norm(detail, vector, 1e-5, vector if detail == "layer" else None))
    if kind == "activation":  # a kernel of its own behind a product
        weight = Weight("weight", (2 * width if detail == "gated" else width, 1), FORMAT)
        one = ops.activation("x", (rows, 1))
        return ops.linear(one, weight, activation="silu_gated" if detail == "gated" else "silu")
    if kind == "gather":
        return ops.take_rows(x, ops.input("rows", (rows,)))
    spans = counted_spans([Span(1, count=rows)])
    if kind == "append":
        k, v = (ops.activation(name, (rows, 1, width // 2)) for name in "kv")
        ops.store(k, v, spans=spans, cache=_cache(ops, 1, width // 2, FORMAT))
        return k
    if kind == "rotate_append":  # six heads' width: four of queries, one of keys, one of values
        dim = width // 6
        q, k, v = _activations(ops, rows, Heads(query=4, kv=1, dim=dim))
        given = {"spans": spans, "mask": Mask(causal=True), "score": Score(1.0), "rope": Rope(dim, 1e4)}
        return ops.attend(q, k, v, cache=_cache(ops, 1, dim, FORMAT), **given)
    return ops.add(x, ops.activation("y", (rows, width)))  # sampling reads as much, and adds noise


def _activations(ops: Count, rows: int, heads: Heads) -> tuple[Value, Value, Value]:
    sizes = (("q", heads.query), ("k", heads.kv), ("v", heads.kv))
    return tuple(ops.activation(name, (rows, n, heads.dim)) for name, n in sizes)


def _cache(ops: Count, kv_heads: int, dim: int, format: str) -> LayerCache:
    return ops.alloc_cache(CacheSpec(layers=1, kv_heads=kv_heads, head_dim=dim, format=format), 0).layer(0)


def _describe(kernel: Kernel) -> str:
    """A kernel that has no table, in words."""
    roles = (Role.WEIGHT, Role.CACHE)
    stored = {a.value.format for a in kernel.reads if a.value.role in roles and len(a.value.shape) > 1}
    odd = sorted(f for f in stored if get_format(f).is_quantised or f not in HALVES)
    return f"{kernel.kind} in {', '.join(odd)}" if odd else kernel.kind
