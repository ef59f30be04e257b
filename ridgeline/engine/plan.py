"""What the scheduler may do, and what it hands on: limits, step plans, and who is ready for a token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ridgeline.engine.blocks import Copy
from ridgeline.engine.checks import at_least_one, is_whole
from ridgeline.engine.sequence import Group, Sequence
from ridgeline.errors import InputError


@dataclass(frozen=True)
class Limits:
    """A step computes at most ``token_budget`` tokens, of at most ``sequences`` sequences at once: of no more
    than the budget, so that none of them ever waits for its next token. Prompts are looked up in the cache
    if ``prefix_cache``. A newcomer has to leave ``headroom`` blocks for every sequence that runs, because
    whoever is admitted into the last block is soon preempted.

    Raises InputError that names the limit.
    """

    token_budget: int = 512
    sequences: int = 64
    prefix_cache: bool = True
    headroom: int = 1

    def __post_init__(self) -> None:
        for name in ("token_budget", "sequences"):
            at_least_one(name, getattr(self, name))
        if not is_whole(self.headroom) or self.headroom < 0:
            raise InputError(f"headroom is {self.headroom!r}, expected a whole number of 0 blocks or more")

    @property
    def seats(self) -> int:
        return min(self.sequences, self.token_budget)


@dataclass(frozen=True)
class DraftLimit:
    """How much a step may speculate: at most ``tokens`` proposals for each of at most ``sequences``."""

    tokens: int = 0
    sequences: int = 0


NO_DRAFTS = DraftLimit()


@dataclass(frozen=True)
class Proposal:
    """Tokens that may come next. ``probabilities`` are those that they were drawn with, float32
    [tokens, vocab]; None if no other tokens could have been proposed. A proposal is ``ready`` if it was there
    before it was asked for."""

    tokens: tuple[int, ...] = ()
    probabilities: Any = None
    ready: bool = False


NOTHING = Proposal()


@dataclass(frozen=True)
class Chunk:
    """What a step computes of one sequence: ``rows`` tokens after ``past``, in the blocks of ``table``.

    Its last ``logits`` rows want logits: none while the sequence has not caught up. The last rows are those
    of the ``proposal``, for which the blocks and the step's budget have ``room``.
    """

    sequence: Sequence
    rows: int
    past: int
    table: tuple[int, ...]
    logits: int
    room: int = 0
    proposal: Proposal = NOTHING

    @property
    def known(self) -> int:
        """How many of the rows are the sequence's own tokens."""
        return self.rows - len(self.proposal.tokens)

    def propose(self, proposal: Proposal) -> Chunk:
        """The chunk that verifies ``proposal``, too."""
        more = len(proposal.tokens)
        return replace(self, rows=self.rows + more, logits=self.logits + more, proposal=proposal)


@dataclass(frozen=True)
class StepPlan:
    """One step: block copies to make in their order, then the chunks to compute as one packed batch."""

    chunks: tuple[Chunk, ...]
    copies: tuple[Copy, ...]

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)


@dataclass(frozen=True)
class Ready:
    """A group whose sequences have caught up, and the rows of the step's logits: one for each of several
    beams, or those of its only sequence, one more than tokens were proposed in its ``chunk``."""

    group: Group
    rows: tuple[int, ...]
    chunk: Chunk
