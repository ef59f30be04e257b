"""The numbers of a recorded step: fixed tensors on the GPU that every step fills anew.

Ids, positions, slots and lengths are views of one buffer, which one copy from pinned memory fills. Block
tables are large and hardly change: of them only the rows that did are copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ridgeline.kernels import triton as kernels
from ridgeline.ops.batch import Span

#: Of so many tables that changed all are copied at once.
_MANY_TABLES = 8


class StepNumbers:
    """Those of a step of up to ``size`` sequences of up to ``rows`` rows, in blocks of ``tokens`` tokens,
    each table of ``columns`` blocks.

    A step's rows are packed; what it has fewer than ``size * rows`` is padding behind them: rows without keys
    and without a place in the cache.
    """

    def __init__(self, size: int, rows: int, columns: int, tokens: int, device: torch.device) -> None:
        self.size, self.rows, self.tokens = size, rows, tokens
        every = size * rows
        wide, narrow = 3 * every, size + 1 + size
        pinned = device.type == "cuda"
        self._host = torch.zeros(8 * wide + 4 * narrow, dtype=torch.uint8, pin_memory=pinned)
        self._device = torch.zeros(8 * wide + 4 * narrow, dtype=torch.uint8, device=device)
        self._host_tables = torch.zeros(size, columns, dtype=torch.int32, pin_memory=pinned)
        self._held: list[tuple[int, ...]] = [()] * size
        self._copied = torch.cuda.Event() if pinned else None

        def views(buffer: torch.Tensor) -> tuple[torch.Tensor, ...]:
            longs, ints = buffer[: 8 * wide].view(torch.int64), buffer[8 * wide :].view(torch.int32)
            return *longs.split(every), *ints.split((size + 1, size))

        self.ids, self.positions, slots, starts, lengths = views(self._device)
        self._ids, self._positions, self._slots, self._starts, self._lengths = (
            x.numpy() for x in views(self._host)
        )
        self._tables = self._host_tables.numpy()
        tables = torch.zeros(size, columns, dtype=torch.int32, device=device)
        self.sequences = kernels.Sequences(starts, lengths, tables, slots, rows, columns * tokens)
        self.fill([], [])

    def fill(self, ids: torch.Tensor | Sequence[int], spans: Sequence[Span]) -> None:
        """The numbers of a step, on their way to the GPU when this returns."""
        if self._copied is not None:
            self._copied.synchronize()  # the last step's may still be under way
        count, tokens = len(ids), self.tokens
        self._ids[:count] = ids.cpu() if isinstance(ids, torch.Tensor) else ids
        self._ids[count:] = 0
        self._positions[count:], self._slots[count:] = 0, -1
        first = 0
        for i, span in enumerate(spans):
            last, at = first + span.rows, np.arange(span.past, span.past + span.rows)
            self._starts[i], self._lengths[i] = first, span.keys
            self._positions[first:last] = at + span.skipped
            blocks = np.array(span.table[span.past // tokens : (span.keys - 1) // tokens + 1])
            self._slots[first:last] = blocks[at // tokens - span.past // tokens] * tokens + at % tokens
            first = last
        # With one row each, sequences that there are not have a row of padding, whose result is 0.
        self._starts[len(spans) :] = np.arange(first, self.size + 1) if self.rows == 1 else first
        self._lengths[len(spans) :] = 0
        self._device.copy_(self._host, non_blocking=True)
        self._fill_tables(spans)
        if self._copied is not None:
            self._copied.record()

    def _fill_tables(self, spans: Sequence[Span]) -> None:
        columns = self._tables.shape[1]
        changed = [i for i, span in enumerate(spans) if span.table != self._held[i]]
        for i in changed:
            self._held[i] = spans[i].table
            table = spans[i].table[:columns]
            self._tables[i, : len(table)] = table  # what lies behind is of no length, and not read
        tables = self.sequences.tables
        if len(changed) > _MANY_TABLES:
            tables.copy_(self._host_tables, non_blocking=True)
            return
        for i in changed:
            tables[i].copy_(self._host_tables[i], non_blocking=True)
