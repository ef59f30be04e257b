"""The trace of a forward pass: a small SSA program whose every operator knows its cost.

Values are defined once. An operator is a list of *parts*, the smallest kernels it could run as;
a :class:`Lowering` says which parts a reading merges into one kernel, so the fused and the
unfused cost of the same pass come from the same record. Identical layers appear once, as a
:class:`Loop`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import reduce
from math import prod

from ridgeline.errors import InputError
from ridgeline.ops.formats import get_format
from ridgeline.ops.latent import Mla
from ridgeline.ops.numbers import Number, maximum


class Role(StrEnum):
    """What a value is to the pass; decides what counts as weight, cache or activation memory."""

    INPUT = "input"
    WEIGHT = "weight"
    CACHE = "cache"
    ACTIVATION = "activation"
    SCRATCH = "scratch"  # lives between the parts of one operator; fusion keeps it on the chip
    GRADIENT = "gradient"  # of a weight: stays until the optimizer has read it
    STATE = "state"  # of the optimizer: stays from step to step


@dataclass(frozen=True)
class Value:
    """A tensor of the program. ``base`` is the value that it is a view of, if any, and is itself
    no view."""

    id: int
    name: str
    shape: tuple[Number, ...]
    format: str
    role: Role
    needs_grad: bool = False
    base: int | None = None

    @property
    def storage(self) -> int:
        """The id of the value whose memory this is: its own, or its base's."""
        return self.id if self.base is None else self.base

    @property
    def elements(self) -> Number:
        return prod(self.shape)

    @property
    def nbytes(self) -> Number:
        """Bytes as stored, scales and zero points included."""
        return get_format(self.format).nbytes(self.shape)


@dataclass(frozen=True)
class Access:
    """A read or a write of ``elements`` of a value, in whole rows: an embedding reads only some."""

    value: Value
    elements: Number

    @property
    def bytes(self) -> Number:
        format = get_format(self.value.format)
        if not format.is_quantised:
            return format.nbytes((self.elements,))
        row = self.value.shape[-1]  # scales belong to rows
        return self.elements / row * format.nbytes((row,))


def whole(value: Value) -> Access:
    return Access(value, value.elements)


@dataclass(frozen=True)
class Flops:
    """Operations by the unit that does them; a multiply-add on the matrix units is 2."""

    matrix: Number = 0
    vector: Number = 0
    exp: Number = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.matrix + other.matrix, self.vector + other.vector, self.exp + other.exp)

    def __mul__(self, n: Number) -> Flops:
        return Flops(self.matrix * n, self.vector * n, self.exp * n)

    @property
    def total(self) -> Number:
        return self.matrix + self.vector + self.exp


@dataclass(frozen=True)
class SequenceWork:
    """What attention does for one sequence, of ``count`` alike: its query rows, the FLOPs of both
    products, and the bytes of keys and values that it reads from the cache. ``keys`` are those that the row
    sees which sees most; the heads' numbers and size tell how a kernel cuts the work."""

    rows: Number
    count: Number
    flops: Number
    cache_bytes: Number
    keys: Number = 0
    heads: Number = 0
    kv_heads: Number = 0
    head_dim: Number = 0


@dataclass(frozen=True)
class Comm:
    """What ``ranks`` ranks exchange along one ``axis`` of a layout (tensor, context, ...): ``bytes`` of the
    whole tensor, as :mod:`ridgeline.predict.collectives` counts them, ``times`` over.

    If it ``overlaps``, it goes on while the other kernels of its operator compute.
    """

    collective: str
    bytes: Number
    ranks: int
    axis: str
    times: Number = 1
    overlaps: bool = False


@dataclass(frozen=True)
class Kernel:
    """One launch: what it reads and writes in memory, and its operations.

    ``compute`` is the dtype that the matrix units work in. ``rows`` is the number of rows that
    share what is read of the weights or the cache, from which a measured machine looks up the
    speed of its kernels. ``function`` names what an activation or a norm computes, since its
    derivative depends on it. ``sequences`` are those that attention serves, for readings that
    compute them one by one. ``comm`` is what a kernel that communicates exchanges. ``groups`` is the number
    of weights that are multiplied, each with ``rows`` rows of its own: the experts that are touched.
    """

    kind: str
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    flops: Flops
    compute: str
    rows: Number = 1
    function: str = ""
    sequences: tuple[SequenceWork, ...] = ()
    comm: Comm | None = None
    groups: Number = 1

    @property
    def bytes(self) -> Number:
        return sum(a.bytes for a in self.reads) + sum(a.bytes for a in self.writes)

    @property
    def elements(self) -> Number:
        return sum(a.elements for a in self.reads) + sum(a.elements for a in self.writes)


@dataclass(frozen=True)
class Lowering:
    """Which kinds of part are merged into the part before them, by the kind of the operator.

    ``activations`` is the format that this implementation keeps activations in, None for that of the
    weights. ``mla`` is the form in which it runs latent attention, fixed when a pass is counted. A reading
    that executes is measured under the ``name`` of its lowering.
    """

    name: str
    fused: frozenset[tuple[str, str]]
    activations: str | None = None
    mla: Mla = Mla.AUTO

    def merges(self, op_kind: str, part_kind: str) -> bool:
        return (op_kind, part_kind) in self.fused


_NATIVE_EPILOGUE = frozenset(("linear", part) for part in ("bias", "activation", "residual"))
_EPILOGUE = _NATIVE_EPILOGUE | {("linear", "gate"), ("linear", "dropout")}
_MODULATED_NORM = frozenset({("norm", "modulate")})
#: What becomes of scores before the softmax runs where they are made.
_SCORES = frozenset(("attend", part) for part in ("softcap", "bias"))
_ATTENTION = _SCORES | frozenset(
    (op, part) for op in ("attend", "attend_latent") for part in ("softmax", "dropout", "values")
)
_CACHED_ATTENTION = frozenset(("attend", part) for part in ("append", "scores"))
#: A product reads its rows where they are and keeps its hidden values on chip until they are gated.
_EXPERTS = frozenset(("experts", part) for part in ("matmul", "activation"))
_BIAS_GRADIENT = frozenset({("linear_backward", "bias")})
_ROTATED_GRADIENT = frozenset(("attend_backward", part) for part in ("attend_backward", "rotate"))

#: Every operator is one kernel: what a fused implementation runs. Backward, a linear layer is one
#: kernel for its activation and one for each product.
FUSED = Lowering(
    "fused",
    _EPILOGUE
    | _MODULATED_NORM
    | _ATTENTION
    | _CACHED_ATTENTION
    | _EXPERTS
    | _BIAS_GRADIENT
    | _ROTATED_GRADIENT,
)
#: Linear layers keep their epilogue, attention writes its scores to memory.
NAIVE_ATTENTION = Lowering(
    "naive attention", _EPILOGUE | _MODULATED_NORM | _SCORES | _EXPERTS | _BIAS_GRADIENT
)
#: Every part is a kernel of its own.
UNFUSED = Lowering("unfused", frozenset())
_NATIVE = _NATIVE_EPILOGUE | _MODULATED_NORM | {("experts", "activation")}
#: The cpu reading: every operator is one kernel, but for routing and experts, whose products are native, and
#: for a gate, which is multiplied and added in one more.
CPU = Lowering("cpu", _NATIVE | _ATTENTION | _CACHED_ATTENTION, "fp32", Mla.EXPANDED)
#: The same, with the scores written to memory.
CPU_NAIVE = Lowering("cpu, naive attention", _NATIVE | _SCORES, "fp32", Mla.EXPANDED)
#: PyTorch on a CPU: addmm takes the bias, SDPA keeps the scores on chip, the rest is separate.
TORCH_CPU = Lowering("torch-cpu", frozenset({("linear", "bias")}) | _ATTENTION)

#: The gpu reading: one kernel rotates and appends, one attends; products are PyTorch's.
GPU = Lowering("gpu", frozenset({("linear", "bias"), ("attend", "append")}) | _ATTENTION)
#: The same with quantised weights, whose kernel has the epilogue in it.
GPU_QUANTISED = Lowering("gpu, quantised", GPU.fused | _NATIVE_EPILOGUE)


#: The name of what a softmax leaves to its backward pass: the logarithm of each row's sum of exponentials.
LSE = "lse"
#: The parts whose work is a matrix product.
MATRIX_PARTS = frozenset({"matmul", "down", "expand", "absorb", "project", "scores", "values"})


@dataclass(frozen=True)
class OpCost:
    """One call of an operator, with its parts. ``repeat`` is the count of the loop it is in."""

    name: str
    kind: str
    parts: tuple[Kernel, ...]
    repeat: int = 1

    def kernels(self, lowering: Lowering) -> tuple[Kernel, ...]:
        """The kernels that the parts make when ``lowering`` merges them. Nothing merges with a part that
        communicates: what follows begins when every rank has its result."""
        groups: list[list[Kernel]] = []
        for part in self.parts:
            if groups and groups[-1][-1].comm is None and lowering.merges(self.kind, part.kind):
                groups[-1].append(part)
            else:
                groups.append([part])
        return tuple(self._merge(group, groups) for group in groups)

    @property
    def flops(self) -> Flops:
        return reduce(Flops.__add__, (p.flops for p in self.parts), Flops())

    def _merge(self, group: list[Kernel], groups: list[list[Kernel]]) -> Kernel:
        """One kernel that does what the group's parts do. What they hand to each other stays on
        chip, unless another group reads it too."""
        if len(group) == 1:
            return group[0]
        elsewhere = {a.value.id for other in groups if other is not group for p in other for a in p.reads}
        written = {a.value.id: a.elements for part in group for a in part.writes}

        reads: dict[int, Access] = {}
        for value, elements in ((a.value, a.elements) for part in group for a in part.reads):
            if value.role is Role.CACHE:  # written in part: the rest is read
                elements = maximum(elements - written.get(value.id, 0), 0)
            elif value.id in written:
                continue
            if value.id in reads:
                elements = maximum(elements, reads[value.id].elements)
            reads[value.id] = Access(value, elements)
        writes = tuple(
            a
            for part in group
            for a in part.writes
            if a.value.role is not Role.SCRATCH or a.value.id in elsewhere
        )
        flops = reduce(Flops.__add__, (p.flops for p in group))
        lead = next((p for p in group if p.kind in MATRIX_PARTS), group[0])
        # What is left after a reduction, or a gate.
        epilogue = self.kind == "linear" and lead.kind not in MATRIX_PARTS
        return Kernel(
            lead.kind if epilogue else self.kind,
            tuple(reads.values()),
            writes,
            flops,
            lead.compute,
            lead.rows,
            lead.function,
            sequences=lead.sequences,
            groups=lead.groups,
        )


@dataclass(frozen=True)
class Loop:
    """Operators ``start`` to ``stop`` run ``count`` times; what ``entry`` holds becomes ``exit`` each time.

    A loop of the backward pass ``mirrors`` the forward loop whose iterations it undoes. ``shared`` are the
    ids of weights, and of their gradients, that are the same in every iteration.
    """

    start: int
    stop: int
    count: int
    entry: tuple[Value, ...]
    exit: tuple[Value, ...]
    mirrors: Loop | None = None
    shared: frozenset[int] = frozenset()

    @property
    def entries(self) -> set[int]:
        """The storage of what it enters with."""
        return {value.storage for value in self.entry}


def carried(x: Value | tuple[Value, ...]) -> tuple[Value, ...]:
    """What layers hand to each other, one value or several, as a tuple."""
    return x if isinstance(x, tuple) else (x,)


@dataclass(frozen=True)
class LayerRun:
    """A block of layers that comes ``count`` times: each begins at one of ``starts``, an operator's number,
    the last ends before ``stop``, and the first takes what ``entry`` holds."""

    starts: tuple[int, ...]
    stop: int
    count: int
    entry: tuple[Value, ...]


@dataclass(frozen=True)
class Memory:
    """Bytes by use. ``activations`` is the peak of what lives at once, ``states`` what an optimizer keeps."""

    weights: Number
    cache: Number
    activations: Number
    gradients: Number = 0
    states: Number = 0


@dataclass(frozen=True)
class Trace:
    """A forward pass as counted, or a training pass: ``forward`` is what :meth:`backward` extended.

    A value's id is its index in ``values``. ``layers`` are the forward pass's layers in order, alike ones
    at once. ``assumptions`` say in a sentence each what the count took to be so because it depends on what is
    computed. ``runs`` are the runs of identical layers with what enters and leaves
    them, those of a single layer, which make no loop, among them. ``recompute`` is the policy by which a
    backward pass was made, ``weight_gradients`` the weights with the gradients that it left them.
    """

    ops: tuple[OpCost, ...]
    loops: tuple[Loop, ...]
    values: tuple[Value, ...]
    lowering: Lowering
    output: Value
    forward: Trace | None = None
    layers: tuple[LayerRun, ...] = ()
    assumptions: tuple[str, ...] = ()
    runs: tuple[Loop, ...] = ()
    recompute: str = "none"
    weight_gradients: tuple[tuple[Value, Value], ...] = ()

    def kernels(self) -> Iterator[tuple[OpCost, Kernel]]:
        """Every kernel with its operator, once each; multiply by ``op.repeat``."""
        for op in self.ops:
            for kernel in op.kernels(self.lowering):
                yield op, kernel

    def lowered(self, lowering: Lowering) -> Trace:
        """The same program as another implementation runs it. What a backward pass keeps and what
        it recomputes depends on that, so it is derived anew."""
        if self.forward is not None:
            return self.forward.lowered(lowering).backward(self.recompute)
        return replace(self, lowering=lowering)

    def unfused(self) -> Trace:
        """The same program with every part a kernel of its own: shows what fusion saves."""
        return self.lowered(UNFUSED)

    @property
    def flops(self) -> Flops:
        return reduce(Flops.__add__, (op.flops * op.repeat for op in self.ops), Flops())

    @property
    def bytes(self) -> Number:
        return sum(kernel.bytes * op.repeat for op, kernel in self.kernels())

    @property
    def elements(self) -> Number:
        return sum(kernel.elements * op.repeat for op, kernel in self.kernels())

    def by_class(self) -> dict[str, Flops]:
        """Operations by class of operator (see :func:`op_class`)."""
        sums: dict[str, Flops] = {}
        for op in self.ops:
            name = op_class(op.kind)
            sums[name] = sums.get(name, Flops()) + op.flops * op.repeat
        return sums

    def memory(self) -> Memory:
        """Peak memory by use, from the lifetimes of the values."""
        from ridgeline.ops.lifetimes import memory

        return memory(self)

    def backward(self, recompute: str = "none") -> Trace:
        """The trace extended by its backward pass: see :func:`ridgeline.ops.backward.extend`.

        Raises InputError for a shard: what its backward pass exchanges is not counted.
        """
        if any(part.comm is not None for op in self.ops for part in op.parts):
            raise InputError("the backward pass of a model that is shared among ranks is not counted yet")
        from ridgeline.ops.backward import extend

        return extend(self, recompute)


CLASSES = {
    "linear": "linear",
    "attend": "attention",
    "store": "attention",
    "attend_latent": "attention",
    "route": "experts",
    "experts": "experts",
    "norm": "norm",
    "split": "norm",
    "add": "elementwise",
    "softcap": "elementwise",
    "fill": "elementwise",
    "add_vector": "elementwise",
    "activate": "elementwise",
    "layout": "layout",
    "embed": "embedding",
    "gather": "embedding",
    "communicate": "communication",
}


def op_class(kind: str) -> str:
    """The class that an operator's time is reported under, forward and backward."""
    forward = kind.removesuffix("_backward")
    return CLASSES.get(forward, forward)
