"""Drafting beside verification: the next proposal is made while the target judges the last one.

It is made for the best case, in which all of the last proposal is accepted and the token behind it is what
the draft says, too (PEARL, Liu et al. 2024, arXiv 2408.11850, calls it post-verify). If that happens, the
proposal is there when it is asked for; else it is thrown away, and drafting begins anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from ridgeline.engine.plan import NOTHING, Chunk, Proposal
from ridgeline.engine.sequence import Sequence
from ridgeline.engine.speculation.proposer import Closing, Proposer, Target
from ridgeline.kernels.runtime import checked_threads


@dataclass
class _Ahead:
    """A draft of ``wanted`` tokens that goes on from ``assumed`` ones: a guess of the target's own next
    token, and a proposal behind it. ``chunk`` is that of the sequence's twin."""

    chunk: Chunk
    assumed: list[int]
    wanted: int
    tokens: list[int] = field(default_factory=list)
    probabilities: list[Any] = field(default_factory=list)

    def may_be(self, tokens: list[int]) -> bool:
        """Whether it goes on from ``tokens``, as far as it has got."""
        guess = self.tokens[:1] or tokens[-1:]
        return tokens == [*self.assumed, *guess]

    def look_on(self) -> Chunk:
        """The chunk of its twin, with what there is by now, and room for one token."""
        self.chunk.sequence.tokens = [*self.assumed, *self.tokens]
        return replace(self.chunk, room=1)

    def add(self, proposal: Proposal) -> bool:
        """Note one more token, if the proposal has one; whether another is wanted."""
        if not proposal.tokens:
            return False
        self.tokens += proposal.tokens
        self.probabilities.append(proposal.probabilities)
        return len(self.tokens) < self.wanted

    def proposal(self, room: int) -> Proposal:
        """At most ``room`` tokens behind the guess."""
        import torch

        end = min(1 + room, len(self.tokens))
        parts = self.probabilities[1:end]
        probabilities = None if not parts or parts[0] is None else torch.cat(parts)
        return Proposal(tuple(self.tokens[1:end]), probabilities, ready=True)


class Beside:
    """Lets ``proposer`` draft in a thread of its own, and go on there while the target verifies.

    The thread computes with ``threads`` threads that are its own; without a number, in turns with the others.
    Where it computes, and in which format, is the proposer's matter: a
    :class:`~ridgeline.engine.speculation.draft_model.DraftModel` runs on its draft's reading. The proposer
    must compute in memory of its own, and sees copies of the sequences.

    :meth:`close` ends the thread, and so does forgetting this. Raises InputError unless ``threads`` is from 1
    to 1024.
    """

    def __init__(self, proposer: Proposer, *, threads: int | None = None) -> None:
        settle = None if threads is None else _settler(checked_threads("draft_threads", threads))
        self.proposer = proposer
        self._thread = ThreadPoolExecutor(1, "ridgeline-draft", settle)
        self._twins: dict[Sequence, Sequence] = {}
        self._ahead: dict[Sequence, _Ahead] = {}
        self._running: Future[None] | None = None
        self._enough = threading.Event()
        self._closed = False

    def propose(self, chunks: Items[Chunk], target: Target) -> list[Proposal]:
        self._wait(chunks)
        ready = {chunk.sequence: self._ready(chunk) for chunk in chunks}
        missing = [self._for_twin(chunk) for chunk in chunks if not ready[chunk.sequence].tokens]
        if missing:
            drafted = iter(self._thread.submit(self.proposer.propose, missing, target).result())
        found = [ready[chunk.sequence] if ready[chunk.sequence].tokens else next(drafted) for chunk in chunks]
        self._go_on(chunks, found, target)
        return found

    def forget(self, sequence: Sequence) -> None:
        self._ahead.pop(sequence, None)
        twin = self._twins.pop(sequence, None)
        if twin is None or self._closed:
            return
        if not self._twins:
            self._enough.set()
        self._thread.submit(self.proposer.forget, twin)

    def close(self) -> None:
        """End the thread; returns when it has ended, and may be called again."""
        self._closed = True
        self._enough.set()
        self._thread.shutdown()
        if isinstance(self.proposer, Closing):
            self.proposer.close()

    def _wait(self, chunks: Items[Chunk]) -> None:
        """Return when nothing is drafted ahead any more; at once, but for a pass, if none of it is needed."""
        running, self._running = self._running, None
        if running is None:
            return
        ahead = [(self._ahead.get(chunk.sequence), chunk.sequence) for chunk in chunks]
        if not any(found is not None and found.may_be(sequence.tokens) for found, sequence in ahead):
            self._enough.set()
        running.result()

    def _ready(self, chunk: Chunk) -> Proposal:
        """What was drafted ahead, if it was for what has come."""
        ahead = self._ahead.pop(chunk.sequence, None)
        fits = ahead is not None and ahead.tokens and ahead.may_be(chunk.sequence.tokens)
        return ahead.proposal(chunk.room) if fits else NOTHING

    def _for_twin(self, chunk: Chunk) -> Chunk:
        """The chunk for a copy of its sequence, which the engine's thread does not change meanwhile."""
        sequence = chunk.sequence
        if sequence not in self._twins:
            self._twins[sequence] = sequence.fork(sequence.sample)
        twin = self._twins[sequence]
        twin.tokens = list(sequence.tokens)
        return replace(chunk, sequence=twin)

    def _go_on(self, chunks: Items[Chunk], proposals: Items[Proposal], target: Target) -> None:
        begun = []
        for chunk, proposal in zip(chunks, proposals, strict=True):
            assumed = [*chunk.sequence.tokens, *proposal.tokens]
            wanted = min(1 + chunk.room, chunk.sequence.request.longest - len(assumed) - 1)
            if proposal.tokens and wanted > 1:
                ahead = _Ahead(self._for_twin(chunk), assumed, wanted)
                self._ahead[chunk.sequence] = ahead
                begun.append(ahead)
        if begun:
            self._enough.clear()
            self._running = self._thread.submit(_draft, begun, self.proposer, target, self._enough)


def _draft(drafts: Items[_Ahead], proposer: Proposer, target: Target, enough: threading.Event) -> None:
    """Token after token for all drafts, until they are complete or it is ``enough``."""
    while drafts and not enough.is_set():
        proposals = proposer.propose([ahead.look_on() for ahead in drafts], target)
        drafts = [ahead for ahead, found in zip(drafts, proposals, strict=True) if ahead.add(found)]


def _settler(threads: int) -> Callable[[], None]:
    """What gives the calling thread as many threads of its own, native ones and PyTorch's."""

    def settle() -> None:
        import torch

        from ridgeline import kernels

        kernels.use_own_pool(threads)
        others = torch.get_num_threads()
        torch.set_num_threads(threads)
        # PyTorch gives the newest number to threads that come later: they are to have the old one.
        last = threading.Thread(target=torch.set_num_threads, args=(others,))
        last.start()
        last.join()

    return settle
