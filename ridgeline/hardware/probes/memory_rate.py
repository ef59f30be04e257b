"""How fast memory is right now: the reading that predictions are moved by."""

from __future__ import annotations

from itertools import cycle
from statistics import median
from typing import TYPE_CHECKING, Any

from ridgeline.hardware.host import Host
from ridgeline.hardware.probes.passes import FORMAT, plain, recorded
from ridgeline.hardware.probes.ring import Ring
from ridgeline.ops.batch import Batch, Span
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Weight

if TYPE_CHECKING:
    import torch

#: The weight that is read, 32 MB in bf16, by one row of activations, as a decode step reads weights.
WIDTH = 4096
#: Memory that is read in turn, in last-level caches, and at least: on two dies each core has such a cache.
CACHES, LEAST_BYTES = 8, 256 << 20
#: A short reading is the median of so many calls, some ten milliseconds. A long one lasts so many seconds, of
#: which the second half counts: after a pause memory is faster for a moment.
CALLS, SECONDS = 15, 0.4
#: The weight's number in the pass, after the table's, and its product's, after the embedding.
_WEIGHT = _PRODUCT = 1


class MemoryRate:
    """Reads weights that no cache holds, in the number of threads that is set.

    The same reading when a machine is measured and before a prediction, so that their ratio says how memory
    has moved: neighbours on the same memory slow it by half, from one second to the next. It belongs to no
    model; ``ring`` is the memory that is read, its own unless given.
    """

    def __init__(self, host: Host, ring: Ring | None = None) -> None:
        import torch

        from ridgeline.kernels.linear import PackedLinear, packed_bytes

        shape = (WIDTH, WIDTH)
        self.bytes = packed_bytes(shape, FORMAT)
        ring = ring or Ring(ring_bytes(host))
        pieces = [ring.take((self.bytes,), torch.uint8) for _ in range(ring.memory.numel() // self.bytes)]
        self._pieces = cycle(pieces)
        table = plain("embedding", 1, WIDTH)
        weight = Weight("weight", shape, FORMAT, PackedLinear(pieces[0], shape, FORMAT))

        def forward(ops: Ops, batch: Batch) -> Any:
            return ops.take_rows(ops.linear(ops.embed(batch.ids, table), weight), batch.logit_rows)

        self._replay = recorded(forward)

    def read(self) -> float:
        """Bytes a second."""
        import torch

        with torch.inference_mode():
            return self.bytes / median(self._seconds(next(self._pieces)) for _ in range(CALLS))

    def read_long(self) -> float:
        """Bytes a second, as a step that reads for long finds them."""
        import torch

        found: list[float] = []
        with torch.inference_mode():
            while sum(found) < SECONDS:
                found.append(self._seconds(next(self._pieces)))
        return self.bytes / median(found[len(found) // 2 :])

    def stream(self) -> None:
        """One call: weights pass through the caches."""
        self._seconds(next(self._pieces))

    def _seconds(self, piece: torch.Tensor) -> float:
        self._replay.exchange(_WEIGHT, piece)
        return self._replay.profile([0], [Span(1)], "last")[_PRODUCT].total


def ring_bytes(host: Host) -> int:
    """Several times the last-level cache."""
    last = host.caches[-1].size * host.caches[-1].instances if host.caches else 0
    return max(CACHES * last, LEAST_BYTES)
