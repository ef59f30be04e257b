"""What guesses the next tokens of sequences."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ridgeline.engine.plan import Chunk, Proposal
from ridgeline.engine.sequence import Sequence

if TYPE_CHECKING:
    from ridgeline.engine.runner import Runner
    from ridgeline.engine.speculation.rules import Rule


@dataclass(frozen=True)
class Target:
    """The model that is drafted for, as it runs, and the rule that will judge the proposals and says how they
    are drawn."""

    runner: Runner
    rule: Rule


class Proposer(Protocol):
    """Guesses tokens from what is known when it is asked, and keeps what it likes of a sequence.

    Rejections are what a sequence's tokens don't hold when it asks again. Mostly they have only grown since;
    where proposals are made ahead (``beside.py``) they may have come back from a guess, too.
    """

    def propose(self, chunks: Items[Chunk], target: Target) -> list[Proposal]:
        """For the sequence of each chunk a proposal of at most ``room`` tokens of the target's vocabulary to
        follow its tokens; an empty one where there is no good guess.

        The blocks in a chunk's ``table`` behind its ``past`` tokens, with room for one more and the
        proposal, are the sequence's own and will be written before they are read.
        """

    def forget(self, sequence: Sequence) -> None:
        """Let go of what is kept of a sequence, if anything: it is finished or was aborted."""


@runtime_checkable
class Closing(Protocol):
    """A proposer that holds what has to be given back: a thread, a cache."""

    def close(self) -> None:
        """Give it back; nothing is proposed any more. May be called again."""
