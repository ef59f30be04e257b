"""What one kernel does: the values that it reads and writes, its operations, and what it exchanges."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod

from ridgeline.ops.formats import Format, get_format, kv_format
from ridgeline.ops.numbers import Number


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
        return self.stored.nbytes(self.shape)

    @property
    def stored(self) -> Format:
        return kv_format(self.format) if self.role is Role.CACHE else get_format(self.format)


@dataclass(frozen=True)
class Access:
    """A read or a write of ``elements`` of a value, in whole rows: an embedding reads only some."""

    value: Value
    elements: Number

    @property
    def bytes(self) -> Number:
        format = self.value.stored
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
