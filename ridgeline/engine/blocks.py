"""Which blocks of the key/value cache belong to which sequence."""

from __future__ import annotations

import heapq
from collections.abc import Hashable


class OutOfBlocks(RuntimeError):
    """A sequence asked for more blocks than are free; nothing was allocated."""


class BlockPool:
    """``blocks`` cache blocks of ``block_size`` tokens, each free or in one sequence's table."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._free = list(range(blocks))
        self._tables: dict[Hashable, tuple[int, ...]] = {}

    @property
    def available(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, sequence: Hashable, tokens: int) -> tuple[int, ...]:
        """The table of a new sequence, with room for ``tokens``. Raises OutOfBlocks."""
        if sequence in self._tables:
            raise ValueError(f"sequence {sequence!r} already has a table")
        needed = self.blocks_for(tokens)
        if needed > self.available:
            raise OutOfBlocks(f"{tokens} tokens need {needed} blocks, {self.available} are free")
        # The lowest first, so that most tables are a run of neighbours, which a cache reads in place.
        table = tuple(heapq.heappop(self._free) for _ in range(needed))
        self._tables[sequence] = table
        return table

    def table(self, sequence: Hashable) -> tuple[int, ...]:
        """The sequence's blocks in the order of its tokens."""
        return self._tables[sequence]

    def free(self, sequence: Hashable) -> None:
        """Take all of the sequence's blocks back."""
        for block in self._tables.pop(sequence):
            heapq.heappush(self._free, block)

    def check(self) -> None:
        """Raise RuntimeError unless every block is free or in one table, exactly once."""
        owned = [block for table in self._tables.values() for block in table]
        if sorted([*self._free, *owned]) != list(range(self.blocks)):
            raise RuntimeError(
                f"blocks are not conserved: {len(self._free)} free and {len(owned)} owned of {self.blocks}"
            )
