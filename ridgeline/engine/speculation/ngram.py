"""Look-up of n-grams: what followed the newest tokens when they last stood in the prompt or output."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Items
from dataclasses import dataclass

from ridgeline.engine.checks import at_least_one
from ridgeline.engine.plan import NOTHING, Chunk, Proposal
from ridgeline.engine.sequence import Sequence
from ridgeline.engine.speculation.proposer import Target
from ridgeline.errors import InputError


@dataclass(frozen=True)
class NGrams:
    """Finds the last ``longest`` tokens, or fewer down to ``shortest``, earlier in the sequence, the nearest
    place first, and proposes what follows there (prompt look-up decoding).

    Raises InputError unless 1 <= ``shortest`` <= ``longest``.
    """

    longest: int = 4
    shortest: int = 2

    def __post_init__(self) -> None:
        at_least_one("longest", self.longest)
        if at_least_one("shortest", self.shortest) > self.longest:
            raise InputError(f"shortest is {self.shortest}, expected at most longest, {self.longest}")

    def propose(self, chunks: Items[Chunk], target: Target) -> list[Proposal]:
        return [self._propose(chunk.sequence.tokens, chunk.room) for chunk in chunks]

    def forget(self, sequence: Sequence) -> None:
        """Nothing is kept."""

    def _propose(self, tokens: list[int], room: int) -> Proposal:
        text = array("q", tokens)
        for length in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            place = _last_before(text, length)
            if place is not None:
                # What follows may run into the proposal itself: a period goes on.
                period = len(tokens) - (place + length)
                return Proposal(tuple(tokens[i % period - period] for i in range(room)))
        return NOTHING


def _last_before(text: array, length: int) -> int | None:
    """Where the last ``length`` numbers of ``text`` stand the last time before its end."""
    size = text.itemsize
    whole, wanted = text.tobytes(), text[len(text) - length :].tobytes()
    end = len(whole) - size  # an occurrence may overlap the end, but not be it
    while (found := whole.rfind(wanted, 0, end)) >= 0:
        if found % size == 0:
            return found // size
        end = found + len(wanted) - 1
    return None
