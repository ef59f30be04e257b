"""The state of a request: its sequences, and the groups in which they are scheduled."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ridgeline.engine.blocks import block_hash
from ridgeline.engine.request import FinishReason, Request
from ridgeline.engine.sampling import SEEDS, Sampling

if TYPE_CHECKING:
    from ridgeline.engine.constrained import Matcher


@dataclass(eq=False)
class Sequence:
    """A prompt on its way to one output; ``sample`` tells the outputs of a request apart.

    It has no phases: ``computed`` of its ``tokens`` have their keys and values in the cache, and those that
    are pending, of the prompt or of the output, are computed next. ``reused`` of the prompt's tokens were
    found in the cache.
    """

    request: Request
    sample: int = 0
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    reused: int = 0
    finish_reason: FinishReason | None = None
    sampling: Sampling = field(init=False)
    matcher: Matcher | None = field(init=False)
    _hashes: list[bytes] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        sampling = self.request.sampling
        self.sampling = replace(sampling, seed=(sampling.seed + self.sample) % SEEDS)
        self.tokens = self.tokens or list(self.request.prompt)
        grammar = self.request.grammar
        self.matcher = None if grammar is None else grammar.matcher()

    @property
    def pending(self) -> int:
        """How many tokens are known but not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def output(self) -> list[int]:
        """The tokens generated so far, a stop token included."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def position(self) -> int:
        """The place that the next token takes."""
        return len(self.tokens)

    def accept(self, token: int) -> None:
        """Append a generated token, and finish if it is a stop token, completes the grammar, or is the last
        one allowed."""
        self.tokens.append(token)
        if token in self.request.stop_ids or (
            self.matcher is not None and self.matcher.is_complete(self.output)
        ):
            self.finish_reason = "stop"
        elif len(self.tokens) == self.request.longest:
            self.finish_reason = "length"

    def fork(self, sample: int) -> Sequence:
        """Another sequence with the same tokens, of which as many are computed."""
        child = Sequence(self.request, sample, list(self.tokens), self.computed, self.reused)
        child._hashes = list(self._hashes)
        return child

    def hashes(self, blocks: int, block_size: int) -> list[bytes]:
        """The hashes of the first ``blocks`` full blocks of the tokens."""
        for i in range(len(self._hashes), blocks):
            parent = self._hashes[-1] if self._hashes else self.request.context
            self._hashes.append(block_hash(parent, self.tokens[i * block_size : (i + 1) * block_size]))
        return self._hashes[:blocks]


@dataclass(frozen=True)
class Lookahead:
    """``sequence`` as if it went on with the tokens ``proposed``: what the token after them is chosen by."""

    sequence: Sequence
    proposed: tuple[int, ...]

    @property
    def request(self) -> Request:
        return self.sequence.request

    @property
    def sampling(self) -> Sampling:
        return self.sequence.sampling

    @property
    def matcher(self) -> Matcher | None:
        return self.sequence.matcher

    @property
    def tokens(self) -> list[int]:
        return [*self.sequence.tokens, *self.proposed]

    @property
    def output(self) -> list[int]:
        return [*self.sequence.output, *self.proposed]

    @property
    def position(self) -> int:
        return self.sequence.position + len(self.proposed)


def common_prefix(a: Tokens[int], b: Tokens[int]) -> int:
    """How many tokens both begin with."""
    least, most = 0, min(len(a), len(b))
    while least < most:  # whole slices are compared much faster than one token after the other
        middle = (least + most + 1) // 2
        if list(a[least:middle]) == list(b[least:middle]):
            least = middle
        else:
            most = middle - 1
    return least


@dataclass(eq=False)
class Group:
    """Sequences that are admitted, advance and are preempted together: one, or the beams of a search.

    ``turn`` is the group's place in every queue. ``siblings`` are the samples of the request that will be
    forked from this group's sequence when its prompt is computed.
    """

    request: Request
    turn: tuple[float, int, int]
    sequences: list[Sequence]
    siblings: range = range(0)
    submitted: float = 0.0
    admitted: float | None = None

    @property
    def seats(self) -> int:
        """How many sequences it counts as: beams keep theirs from the beginning."""
        return self.request.width

    @property
    def decoding(self) -> bool:
        """Whether every sequence waits for its newest token alone to be computed."""
        return all(sequence.pending == 1 for sequence in self.sequences)
