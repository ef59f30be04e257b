"""The target drafts for itself, through a view of its own cache: attention sinks and a window.

Drafting so costs a pass of the target over few keys. That is cheaper than a whole one where reading the cache
takes the time, behind long contexts; where the weights do, it is not, and the draft length falls to zero.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from ridgeline.engine.checks import at_least_one
from ridgeline.engine.plan import Chunk, Proposal
from ridgeline.engine.sequence import Sequence
from ridgeline.engine.speculation.drafting import Draft, complete
from ridgeline.engine.speculation.proposer import Target


@dataclass(frozen=True)
class SinksAndWindow:
    """Attends to the blocks that hold the first ``sinks`` tokens and the last ``window`` (the selection of
    StreamingLLM, Xiao et al. 2024, arXiv 2309.17453), whose keys stay rotated at their true positions.

    There is no prefill and no other cache. Keys and values of the draft go where the proposal's own will be
    written when it is verified, behind all that is computed. Raises InputError for a number below 1.
    """

    sinks: int = 32
    window: int = 512

    def __post_init__(self) -> None:
        at_least_one("sinks", self.sinks)
        at_least_one("window", self.window)

    def propose(self, chunks: Items[Chunk], target: Target) -> list[Proposal]:
        size = target.runner.cache.spec.block_size
        drafts = [self._view(chunk, size) for chunk in chunks]
        complete(drafts, target.runner, target.rule)
        return [draft.proposal for draft in drafts]

    def forget(self, sequence: Sequence) -> None:
        """Nothing is kept."""

    def _view(self, chunk: Chunk, size: int) -> Draft:
        """The first and the last blocks of a chunk's table: whole ones are left out, so that every token
        keeps its place in its block."""
        sinks = -(-self.sinks // size)
        window = max(chunk.past - self.window, 0) // size
        left_out = max(window - sinks, 0)
        skipped = left_out * size
        table = chunk.table[:sinks] + chunk.table[sinks + left_out :]
        pending = chunk.sequence.tokens[chunk.past :]
        return Draft(chunk.sequence, pending, chunk.past - skipped, table, chunk.room, skipped)
