"""Which blocks of the key/value cache belong to which sequence, and which still hold a known prefix."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b


class OutOfBlocks(RuntimeError):
    """A sequence asked for more blocks than there are; nothing was changed."""


@dataclass(frozen=True)
class Copy:
    """Block ``source`` of the cache is to be copied to ``target`` before the step's rows are written."""

    source: int
    target: int


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """What identifies a full block: its tokens and all before it, through the hash of the block before.

    The first block's parent is whatever else the keys and values depend on. The hash is cryptographic
    (BLAKE2b), because a collision would show one user's text to another.
    """
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """``blocks`` cache blocks of ``block_size`` tokens. A block is *held* by one table or several, *idle*
    (in no table, but it holds a published prefix, and is evicted when blocks run short), or *free*.

    A sequence is any hashable value. Every operation that needs blocks takes all that it needs or, with
    OutOfBlocks, none.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._free = list(range(blocks))
        self._holders = [0] * blocks
        self._tables: dict[Hashable, list[int]] = {}
        self._published: dict[bytes, int] = {}
        self._hashes: dict[int, bytes] = {}
        self._idle: dict[int, None] = {}  # the least recently used first

    def __contains__(self, sequence: Hashable) -> bool:
        """Whether the sequence has a table."""
        return sequence in self._tables

    @property
    def available(self) -> int:
        """How many blocks could be handed out: the free and the idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def sequences(self) -> int:
        """How many sequences have a table."""
        return len(self._tables)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-tokens // self.block_size)

    def table(self, sequence: Hashable) -> tuple[int, ...]:
        """The sequence's blocks in the order of its tokens."""
        return tuple(self._tables[sequence])

    # -- a sequence's blocks -------------------------------------------------------------------------

    def allocate(
        self, sequence: Hashable, tokens: int, prefix: Sequence[bytes] = (), *, spare: int = 0
    ) -> int:
        """Give a new sequence a table with room for ``tokens``, and say how many blocks were reused.

        The blocks published under the first hashes of ``prefix`` are shared, as far as there are such;
        only the others are new. ``prefix`` must not be longer than the table. Raises OutOfBlocks, also if
        fewer than ``spare`` blocks would still be available.
        """
        if sequence in self._tables:
            raise ValueError(f"sequence {sequence!r} already has a table")
        reused = self._known(prefix)
        new = self.blocks_for(tokens) - len(reused)
        self._refuse_beyond(new + spare, self.available - sum(block in self._idle for block in reused))
        for block in reused:
            self._idle.pop(block, None)
            self._holders[block] += 1
        self._tables[sequence] = [*reused, *(self._take() for _ in range(new))]
        return len(reused)

    def grow(self, sequence: Hashable, tokens: int) -> None:
        """Add blocks until the table has room for ``tokens``. Raises OutOfBlocks."""
        table = self._tables[sequence]
        new = self.blocks_for(tokens) - len(table)
        self._refuse_beyond(new, self.available)
        table.extend(self._take() for _ in range(new))

    def fork(self, sequence: Hashable, new: Hashable) -> None:
        """Give ``new`` a table that shares all blocks of ``sequence``."""
        if new in self._tables:
            raise ValueError(f"sequence {new!r} already has a table")
        table = self._tables[sequence]
        for block in table:
            self._holders[block] += 1
        self._tables[new] = list(table)

    def writable(self, sequence: Hashable, i: int) -> Copy | None:
        """Make the sequence the only holder of the block at place ``i`` of its table, which it will change.

        The copy that this takes, if the block was shared: copy on write. A prefix published in a block of
        its own is forgotten. Raises OutOfBlocks.
        """
        table = self._tables[sequence]
        block = table[i]
        if self._holders[block] == 1:
            self._forget(block)
            return None
        self._refuse_beyond(1, self.available)
        table[i] = self._take()
        self._holders[block] -= 1
        return Copy(block, table[i])

    def truncate(self, sequence: Hashable, tokens: int) -> None:
        """Take back the blocks behind those that hold the first ``tokens``."""
        table = self._tables[sequence]
        while len(table) > self.blocks_for(tokens):
            self._release(table.pop())

    def free(self, sequence: Hashable) -> None:
        """Take back all of the sequence's blocks; the end of a prefix is evicted before its beginning."""
        for block in reversed(self._tables.pop(sequence)):
            self._release(block)

    # -- prefixes ------------------------------------------------------------------------------------

    def publish(self, sequence: Hashable, i: int, hash: bytes) -> None:
        """Let others share the block at place ``i`` of the table, which is full and computed.

        The first block published under a hash keeps it; a duplicate stays its sequence's own.
        """
        block = self._tables[sequence][i]
        if hash not in self._published and block not in self._hashes:
            self._published[hash] = block
            self._hashes[block] = hash

    def _known(self, prefix: Sequence[bytes]) -> list[int]:
        blocks = []
        for hash in prefix:
            if hash not in self._published:
                break
            blocks.append(self._published[hash])
        return blocks

    def _forget(self, block: int) -> None:
        hash = self._hashes.pop(block, None)
        if hash is not None:
            del self._published[hash]

    # -- single blocks -------------------------------------------------------------------------------

    def _refuse_beyond(self, needed: int, available: int) -> None:
        if needed > available:
            raise OutOfBlocks(f"{needed} blocks are needed, {available} are available")

    def _take(self) -> int:
        """A block with one holder. The lowest free one, so that most tables are a run of neighbours,
        which a cache may read in place; the idle one that was used longest ago if none is free."""
        if self._free:
            block = heapq.heappop(self._free)
        else:
            block = next(iter(self._idle))
            del self._idle[block]
            self._forget(block)
        self._holders[block] = 1
        return block

    def _release(self, block: int) -> None:
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._hashes:
            self._idle[block] = None
        else:
            heapq.heappush(self._free, block)

    # -- conservation --------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise RuntimeError unless every block is free, idle or held, and is counted as often as it is."""
        held = Counter(block for table in self._tables.values() for block in table)
        if sorted([*self._free, *self._idle, *held]) != list(range(self.blocks)):
            raise RuntimeError(
                f"blocks are not conserved: {len(self._free)} free, {len(self._idle)} idle and {len(held)} "
                f"held of {self.blocks}"
            )
        if any(held[block] != count for block, count in enumerate(self._holders)):
            raise RuntimeError("a block's holders are miscounted")
        if any(len(set(table)) != len(table) for table in self._tables.values()):
            raise RuntimeError("a table holds a block twice")
        published = {block: hash for hash, block in self._published.items()}
        if published != self._hashes or not self._idle.keys() <= published.keys():
            raise RuntimeError("the published prefixes do not match their blocks")
        if not published.keys().isdisjoint(self._free):
            raise RuntimeError("a free block is still published")
