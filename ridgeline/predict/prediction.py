"""Time of every kernel of a trace on a device.

On a datasheet a kernel takes its launch plus the longest of: matrix operations at the dense
matrix rate, vector operations at the vector rate, exponentials at theirs, and bytes at the
bandwidth of the level that serves them: the roofline (Williams, Waterman, Patterson 2009) with two
more ceilings. It takes every kernel to reach the device's rates, which real ones do in part. On a GPU
time models of kernels say how far they do, with constants fitted to the device or taken from others. On a
measured machine the time is looked up in what its kernels were measured to take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device, Provenance
from ridgeline.hardware.kernels import Affine, Kernels
from ridgeline.hardware.measured import is_measured_gpu
from ridgeline.ops.formats import get_format
from ridgeline.ops.kernel import Access, Flops, Kernel, Role, SequenceWork
from ridgeline.ops.lowering import CPU, FUSED, GPU_ENGINE
from ridgeline.ops.numbers import Number, is_array, maximum, where
from ridgeline.ops.trace import OpCost, Trace, op_class
from ridgeline.predict.residency import PlacedKernel, bandwidth_at, footprint, input_distances, place
from ridgeline.predict.tiers import Tier, tier_of

#: The sections of a device file that a roofline stands on.
ROOFLINE_SECTIONS = ("matrix", "vector", "exp", "memory", "levels", "launch")
#: Those that the time models of a GPU's kernels stand on, beside their constants.
GPU_SECTIONS = ("matrix", "vector", "exp", "memory", "levels")
#: Looking up rows of a table that is multiplied by, too, and so packed.
PACKED_EMBED = "embed.packed"
#: The kinds of kernel that multiply by a weight.
LINEAR = ("matmul", "linear", "experts", "down", "expand", "absorb", "project")


@dataclass(frozen=True)
class KernelTime:
    """The prediction of one kernel, of operator ``op_index`` of the trace.

    ``seconds``, ``flops``, ``bytes`` and ``elements`` are those of one call, which happens
    ``repeat`` times. ``bound`` is the resource that takes longest: matrix, vector, exp, memory or
    launch.
    """

    op: str
    op_index: int
    op_kind: str
    kind: str
    repeat: int
    seconds: Number
    bound: str
    flops: Flops
    bytes: Number
    elements: Number

    @property
    def name(self) -> str:
        """The operator, and the part where the operator is several kernels."""
        return self.op if self.kind in (self.op_kind, "matmul") else f"{self.op}/{self.kind}"

    @property
    def intensity(self) -> Number:
        """Operational intensity, FLOP/byte."""
        return self.flops.total / self.bytes if self.kind != "split" else 0.0  # a view moves nothing

    @property
    def op_class(self) -> str:
        return op_class(self.op_kind)


@dataclass(frozen=True)
class Prediction:
    """A step's predicted time. ``step_seconds`` is what it costs beside its kernels; ``basis`` the
    sections of the device file that were used, and the kinds of kernel whose constants were; ``unmeasured``
    the kernels of a measured machine that had no table, and so a roofline at its measured rates instead;
    ``tier`` what the times stand on.
    """

    device: str
    kernels: tuple[KernelTime, ...]
    step_seconds: float
    basis: Mapping[str, Provenance]
    unmeasured: tuple[str, ...] = ()
    tier: Tier = Tier.DATASHEET

    @property
    def seconds(self) -> Number:
        return self.step_seconds + sum(k.seconds * k.repeat for k in self.kernels)

    @property
    def flops(self) -> Flops:
        total = Flops()
        for k in self.kernels:
            total = total + k.flops * k.repeat
        return total

    @property
    def bytes(self) -> Number:
        return sum(k.bytes * k.repeat for k in self.kernels)

    @property
    def elements(self) -> Number:
        return sum(k.elements * k.repeat for k in self.kernels)

    def counted_as(self, trace: Trace) -> Prediction:
        """The same times beside the operations of ``trace``: the same pass, counted by another
        convention."""
        trace = as_engines_run(trace, self.tier)
        counted = {
            (i, n): kernel.flops
            for i, op in enumerate(trace.ops)
            for n, kernel in enumerate(op.kernels(trace.lowering))
        }
        kernels, seen = [], dict.fromkeys(range(len(trace.ops)), 0)
        for k in self.kernels:
            kernels.append(replace(k, flops=counted.get((k.op_index, seen[k.op_index]), k.flops)))
            seen[k.op_index] += 1
        return replace(self, kernels=tuple(kernels))

    def followed_by(self, other: Prediction) -> Prediction:
        """Both passes, one after the other, on the same device."""
        count = 1 + max((k.op_index for k in self.kernels), default=-1)
        later = (replace(k, op_index=count + k.op_index) for k in other.kernels)
        return replace(
            self,
            kernels=(*self.kernels, *later),
            step_seconds=self.step_seconds + other.step_seconds,
            basis={**self.basis, **other.basis},
            unmeasured=tuple(dict.fromkeys((*self.unmeasured, *other.unmeasured))),
        )

    def by_class(self) -> dict[str, Number]:
        """Seconds by class of operator."""
        return self._sum_by(lambda k: k.op_class)

    def by_op(self) -> dict[str, Number]:
        """Seconds of all calls of an operator by its name, in the trace's order."""
        return self._sum_by(lambda k: k.op)

    def by_bound(self) -> dict[str, Number]:
        """Seconds by binding resource (of a prediction without arrays)."""
        return self._sum_by(lambda k: k.bound)

    def _sum_by(self, key) -> dict[str, Number]:
        sums: dict[str, Number] = {}
        for k in self.kernels:
            sums[key(k)] = sums.get(key(k), 0) + k.seconds * k.repeat
        return sums


def predict(trace: Trace, device: Device, tier: str | None = None) -> Prediction:
    """The time of ``trace`` on ``device``; arrays in the trace make arrays of times. ``tier`` is one of
    :class:`Tier`, the best founded that the device has unless given.

    Raises InputError if the device cannot compute in the trace's dtype, has no figures for the tier, or, of a
    measured machine, was not measured with weights of its format.
    """
    found = tier_of(device, tier)
    if found is Tier.MEASURED:
        if is_measured_gpu(device):
            return _on_measured_gpu(trace, device)
        return _on_measured(trace, device, Kernels.from_dict(device.kernels))
    if found is not Tier.DATASHEET:
        return _on_gpu(trace, device, found)
    times = tuple(_time(p, _roofline(p, device)) for p in place(trace))
    return Prediction(device.name, times, 0.0, _basis(device, ROOFLINE_SECTIONS))


def resource_seconds(trace: Trace, device: Device) -> dict[str, Number]:
    """Seconds that each resource needs by itself for all kernels of ``trace`` at the device's rates: matrix,
    vector, exp, memory and launch. The longest of them is the roofline of the whole pass."""
    sums: dict[str, Number] = {}
    for placed in place(trace):
        for resource, seconds in _roofline(placed, device).items():
            sums[resource] = sums.get(resource, 0) + seconds * placed.op.repeat
    return sums


def _basis(device: Device, sections: Iterable[str]) -> dict[str, Provenance]:
    return {s: device.provenance[s] for s in sections if s in device.provenance}


def _roofline(placed: PlacedKernel, device: Device) -> dict[str, Number]:
    """Seconds that each resource needs by itself."""
    kernel = placed.kernel
    return {
        "memory": sum(t.access.bytes / bandwidth_at(device.levels, t.distance) for t in placed.touches),
        "matrix": kernel.flops.matrix / device.matrix_rate(kernel.compute),
        "vector": kernel.flops.vector / device.vector_rate(kernel.compute),
        "exp": kernel.flops.exp / device.exp_rate,
        "launch": device.launch_seconds,
    }


def _time(placed: PlacedKernel, needs: dict[str, Number], seconds: Number | None = None) -> KernelTime:
    """The kernel's record: bound by its largest need, and as long as it unless told otherwise."""
    longest: Number = 0.0
    bound = "memory"
    for resource, need in needs.items():
        bound = where(need > longest, resource, bound)
        longest = maximum(longest, need)
    if seconds is None:
        work: Number = 0.0
        for resource, need in needs.items():
            work = work if resource == "launch" else maximum(work, need)
        seconds = needs["launch"] + work
    kernel, op = placed.kernel, placed.op
    return KernelTime(
        op.name,
        placed.op_index,
        op.kind,
        kernel.kind,
        op.repeat,
        seconds,
        bound,
        kernel.flops,
        kernel.bytes,
        kernel.elements,
    )


# -- a GPU ---------------------------------------------------------------------------------------


def _on_gpu(trace: Trace, device: Device, tier: Tier) -> Prediction:
    from ridgeline.predict.gpu.kernels import GpuTimes  # NumPy, which a datasheet does without

    gpu = GpuTimes(device, tier)
    times = []
    for placed in place(as_engines_run(trace, tier)):
        found = gpu.time(placed.kernel)
        times.append(_time(placed, found.needs, found.seconds))
    return Prediction(
        device.name, tuple(times), 0.0, {**gpu.basis, **_basis(device, GPU_SECTIONS)}, tier=tier
    )


def as_engines_run(trace: Trace, tier: Tier | None) -> Trace:
    """A pass of fused operators as engines run it on a GPU whose kernels have time models: rotations and
    gated activations are kernels of their own. A training step, another lowering and other tiers are left as
    they are: a datasheet's bound is that of the fewest kernels."""
    modelled = tier in (Tier.GENERIC, Tier.CALIBRATED) and trace.forward is None
    if not modelled or trace.lowering.fused != FUSED.fused:
        return trace
    return trace.lowered(replace(trace.lowering, name=GPU_ENGINE.name, fused=GPU_ENGINE.fused))


def _on_measured_gpu(trace: Trace, device: Device) -> Prediction:
    """A decode step replays a graph, whose kernels follow one another; others the host issues."""
    from ridgeline.predict.gpu.measured import MeasuredGpu
    from ridgeline.predict.gpu.schedule import exposed, runs_as_graph

    gpu = MeasuredGpu(device)
    times: list[KernelTime] = []
    seconds: list[Number] = []
    issue: list[float] = []
    placed = iter(place(trace))
    for index, op in enumerate(trace.ops):
        for kernel in (next(placed) for _ in op.kernels(trace.lowering)):
            found = gpu.time(kernel.kernel)
            seconds.append(found.seconds)
            issue.append(gpu.issue_seconds(kernel.kernel))
            times.append(_time(kernel, found.needs, found.seconds))
        if not op.parts:
            times.append(_view(index, op))
    beside: Number = gpu.kernels.replay
    if not runs_as_graph(trace):
        beside = exposed(trace, seconds, issue, gpu.kernels.step)
    basis = {**_basis(device, ("kernels",)), **gpu.basis}
    unmeasured = tuple(gpu.unmeasured)
    return Prediction(device.name, tuple(times), beside, basis, unmeasured, Tier.MEASURED)


def _view(index: int, op: OpCost) -> KernelTime:
    """An operator that takes no time."""
    return KernelTime(op.name, index, op.kind, op.kind, op.repeat, 0.0, "launch", Flops(), 0, 0)


# -- a measured machine --------------------------------------------------------------------------


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


def _on_measured(trace: Trace, device: Device, measured: Kernels) -> Prediction:
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
            needs = _roofline(kernel, device)
            looked = _look_up(kernel, measured, residence, distance)
            if looked is None:
                unmeasured[_describe(kernel.kernel)] = None
                times.append(_time(kernel, needs))
            else:
                times.append(_time(kernel, {**needs, "launch": looked.overhead}, looked.seconds))
        if not op.parts:
            times.append(_view(index, op))
    sections = ("kernels", *ROOFLINE_SECTIONS) if unmeasured else ("kernels",)
    return Prediction(
        device.name, tuple(times), measured.step, _basis(device, sections), tuple(unmeasured), Tier.MEASURED
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
