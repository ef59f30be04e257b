"""Time of every kernel on a measured machine: looked up in what its kernels were measured to take.

A kernel without a table takes its roofline at the measured rates, and the prediction names it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device
from ridgeline.hardware.kernels import Affine, Kernels
from ridgeline.ops.formats import get_format
from ridgeline.ops.kernel import Access, Kernel, Role, SequenceWork
from ridgeline.ops.lowering import CPU
from ridgeline.ops.numbers import Number, is_array, where
from ridgeline.ops.trace import Trace
from ridgeline.predict.prediction import KernelTime, Prediction
from ridgeline.predict.residency import PlacedKernel, footprint, input_distances, place
from ridgeline.predict.roofline import ROOFLINE_SECTIONS, basis_of, kernel_time, roofline, view
from ridgeline.predict.tiers import Tier

#: Looking up rows of a table that is multiplied by, too, and so packed.
PACKED_EMBED = "embed.packed"
#: The kinds of kernel that multiply by a weight.
LINEAR = ("matmul", "linear", "experts", "down", "expand", "absorb", "project")


@dataclass(frozen=True)
class _Looked:
    """A time found in the measured tables, of which ``overhead`` is that of an empty call."""

    seconds: Number
    overhead: Number


@dataclass(frozen=True)
class _Residence:
    """What the caches hold of a step: all that it touches (``cached``), in the cores' own caches even
    (``own``); and the tables that are packed, since they are multiplied, too."""

    cached: Number
    own: Number
    packed: frozenset[int]


def on_measured(trace: Trace, device: Device, measured: Kernels) -> Prediction:
    touched, caches = footprint(trace), device.levels[:-1]
    last = caches[-1].capacity if caches else 0.0
    own = caches[-2].capacity if len(caches) > 1 else 0.0
    multiplied = (m.value.id for _, kernel in trace.kernels() for m in _matrices(kernel))
    residence = _Residence(touched <= last, touched <= own, frozenset(multiplied))
    times: list[KernelTime] = []
    unmeasured: dict[str, None] = {}
    placed = iter(zip(place(trace), input_distances(trace), strict=True))
    for index, op in enumerate(trace.ops):
        for _ in op.kernels(trace.lowering):
            kernel, distance = next(placed)
            _require_measured(kernel.kernel, measured, device)
            needs = roofline(kernel, device)
            looked = _look_up(kernel, measured, residence, distance)
            if looked is None:
                unmeasured[_describe(kernel.kernel)] = None
                times.append(kernel_time(kernel, needs))
            else:
                times.append(kernel_time(kernel, {**needs, "launch": looked.overhead}, looked.seconds))
        if not op.parts:
            times.append(view(index, op))
    sections = ("kernels", *ROOFLINE_SECTIONS) if unmeasured else ("kernels",)
    return Prediction(
        device.name, tuple(times), measured.step, basis_of(device, sections), tuple(unmeasured), Tier.MEASURED
    )


def _require_measured(kernel: Kernel, measured: Kernels, device: Device) -> None:
    for matrix in _matrices(kernel):
        if matrix.value.format not in measured.linear:
            known = ", ".join(measured.linear)
            raise InputError(
                f"{device.name} was not measured with weights in {matrix.value.format}: give them as one of "
                f"{known}"
            )


def _matrices(kernel: Kernel) -> list[Access]:
    """The weights that the kernel multiplies."""
    if kernel.kind not in LINEAR:
        return []
    return [a for a in kernel.reads if a.value.role is Role.WEIGHT and len(a.value.shape) > 1]


def _look_up(
    placed: PlacedKernel, measured: Kernels, residence: _Residence, distance: Number
) -> _Looked | None:
    """The kernel's time by the tables; None for one that is not in them."""
    kernel = placed.kernel
    if kernel.kind in LINEAR:
        found = _linear(kernel, measured, residence)
        return replace(found, seconds=found.seconds + _epilogue(placed, measured))
    if kernel.kind in ("attend", "attend_latent"):
        return _attend(kernel, measured, residence)
    kind, nbytes = kernel.kind, kernel.bytes
    if kind == "embed":
        table = next(a for a in kernel.reads if a.value.role is Role.WEIGHT)
        # Rows that come again are near by then.
        distance = where(kernel.rows > table.value.shape[0], 0.0, distance)
        if table.value.id in residence.packed and _simple(measured, kernel.compute, PACKED_EMBED):
            kind, nbytes = PACKED_EMBED, table.bytes
    modulated = kind == "norm" and any(part.kind == "modulate" for part in placed.op.parts)
    function = "modulated" if modulated else kernel.function
    simple = _simple(measured, kernel.compute, kind, function)
    if simple is None:
        return None
    warm, fresh = (
        simple.seconds(nbytes, rows=kernel.rows, cached=c, distance=distance) for c in (True, False)
    )
    return _Looked(where(residence.cached, warm, fresh), simple.overhead)


def _linear(kernel: Kernel, measured: Kernels, residence: _Residence) -> _Looked:
    (matrix,) = _matrices(kernel)
    table, groups = measured.linear[matrix.value.format], kernel.groups
    each = matrix.bytes / groups
    own, last, fresh = (
        groups * table.seconds(kernel.rows, each, cached=cached, own=own)
        for cached, own in ((True, True), (True, False), (False, False))
    )
    seconds = where(residence.own, own, where(residence.cached, last, fresh))
    outputs, inputs = matrix.value.shape[-2:]
    seconds = seconds * table.shape_factor(kernel.rows, each, inputs / outputs)
    return _Looked(seconds, groups * table.warm[0][0])


def _epilogue(placed: PlacedKernel, measured: Kernels) -> Number:
    """What the activation, gate and residual in a product's kernel take beyond it."""
    if placed.kernel.kind != "linear":
        return 0.0
    seconds: Number = 0.0
    for part in placed.op.parts:
        if part.kind in ("activation", "gate", "residual"):
            # A gate is one more factor, which is read as a residual is.
            known = _simple(measured, CPU.activations, f"epilogue.{part.function or 'residual'}")
            seconds = seconds + (known.seconds(part.writes[0].bytes) if known else 0.0)
    return seconds


def _attend(kernel: Kernel, measured: Kernels, residence: _Residence) -> _Looked | None:
    """All sequences in one kernel, which multiplies in the cache's format where there is one."""
    format = next((a.value.format for a in kernel.reads if a.value.role is Role.CACHE), None)
    stores = format is not None
    format = format or kernel.compute
    if format not in measured.attend:
        return None
    curve = measured.attend[format]
    seconds: Number = 0.0
    overhead: Number = 0.0
    for s in kernel.sequences:
        stored: Number = 0.0
        if stores:
            stored = get_format(format).nbytes((2 * s.rows * s.kv_heads, s.head_dim))
        given = (s.rows, s.flops, s.cache_bytes, _visible(s), stored, s.kv_heads)
        warm, fresh = (curve.seconds(*given, cached=c) for c in (True, False))
        seconds = seconds + s.count * where(residence.cached, warm, fresh)
        overhead = overhead + s.count * curve.overhead
    return _Looked(seconds, overhead)


def _visible(s: SequenceWork) -> Number:
    """The share of a sequence's pairs of rows and keys that its rows see; that of a causal prompt where the
    heads are not told."""
    if not s.heads or (not is_array(s.keys) and not s.keys):
        return 0.5
    return s.flops / (4 * s.heads * s.head_dim * s.rows * s.keys)


def _simple(measured: Kernels, dtype: str, kind: str, function: str = "") -> Affine | None:
    """The table of this very function, else that of its kind."""
    kinds = measured.simple.get(dtype, {})
    return kinds.get(f"{kind}.{function}", kinds.get(kind))


def _describe(kernel: Kernel) -> str:
    """A kernel that has no table, in words."""
    stored = {a.value.format for a in kernel.reads if a.value.role in (Role.WEIGHT, Role.CACHE)}
    other = sorted(stored - {kernel.compute})
    return f"{kernel.kind} in {', '.join(other)}" if other else kernel.kind
