"""Continuous batching: what the next step computes, of which sequences, in which cache blocks.

There are no phases. A step is one packed batch in which every sequence catches up with its tokens: a decode
row is a sequence with one token pending, a prefill chunk one with many, and a verification one whose next
tokens have been proposed. Nothing here imports PyTorch, and all time comes from a clock, so the same code
schedules real and simulated requests.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from itertools import count

from ridgeline.engine.blocks import BlockPool, Copy, OutOfBlocks
from ridgeline.engine.clock import Clock
from ridgeline.engine.plan import NO_DRAFTS, Chunk, DraftLimit, Limits, Ready, StepPlan
from ridgeline.engine.request import Request
from ridgeline.engine.sequence import Group, Sequence, common_prefix
from ridgeline.errors import InputError

#: How much earlier a request seems to have come for every step of its priority, in seconds.
PRIORITY_SECONDS = 60.0


class Scheduler:
    """Requests from waiting through running to finished, in the blocks of ``pool``.

    Everyone has a turn: the time of arrival, earlier by a minute for every step of priority. Turns decide who
    is admitted, who gets what is left of the budget, and, from the other end, who gives up its blocks when
    they run short. As no turn ever changes, and only so many requests can come before any given one, none
    waits for ever.
    """

    def __init__(self, pool: BlockPool, limits: Limits, clock: Clock) -> None:
        self.pool = pool
        self.limits = limits
        self.clock = clock
        self.waiting: list[Group] = []
        self.running: list[Group] = []
        self.preemptions = 0
        self.prompt_tokens = 0  # that were computed, those of preempted requests again
        self._numbers = count()

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    # -- coming and going ----------------------------------------------------------------------------

    def refuse_endless(self, request: Request) -> None:
        """Raises InputError if the request would not fit even if it were alone."""
        needed = request.blocks_at_most(self.pool.block_size)
        if needed > self.pool.blocks:
            raise InputError(
                f"the request takes {needed} cache blocks of {self.pool.block_size} tokens with its output,"
                f" and the cache has {self.pool.blocks}: lower max_tokens, or make the cache larger"
            )
        if request.width > self.limits.seats:
            raise InputError(
                f"the request asks for {request.width} beams, and at most {self.limits.seats} sequences run"
                " at once: lower the width, or raise the limits"
            )

    def submit(self, request: Request, submitted: float | None = None) -> Group:
        """Queue a request that came at ``submitted`` (by default now). Raises as :meth:`refuse_endless`."""
        self.refuse_endless(request)
        submitted = self.clock.now() if submitted is None else submitted
        turn = (submitted - request.priority * PRIORITY_SECONDS, next(self._numbers), 0)
        samples = 1 if request.beams is not None else request.samples  # a search brings all its results
        group = Group(request, turn, [Sequence(request)], range(1, samples), submitted)
        self._queue(group)
        return group

    def abort(self, request: Request) -> list[Group]:
        """Forget all groups of the request, wherever they are; those that there were."""
        found = [group for group in (*self.waiting, *self.running) if group.request is request]
        for group in found:
            self.finish(group)
        return found

    def finish(self, group: Group) -> None:
        """Let go of a group that is waiting or running."""
        if group in self.running:
            self.running.remove(group)
            self._free(group)
        else:
            self.waiting.remove(group)

    # -- a step --------------------------------------------------------------------------------------

    @property
    def decoding(self) -> int:
        """How many sequences wait for their next token alone, and may speculate."""
        return sum(map(_may_speculate, self.running))

    def schedule(self, drafts: DraftLimit = NO_DRAFTS) -> StepPlan:
        """What to compute next; no chunks if there is nothing to do.

        In the order of turns whoever runs gets blocks for its next tokens. Then the rows that decode take
        their part of the budget, then prefill, and newcomers are admitted while there is any left. Sequences
        that decode get room for proposals, as far as ``drafts`` allows and the known tokens of all leave any
        of the budget.
        """
        copies: list[Copy] = []
        place = 0
        while place < len(self.running):  # the list may lose its end meanwhile
            self._make_room(self.running[place], copies)
            place += 1
        room = self._room_for_proposals(drafts) if drafts.tokens else {}
        budget = self.limits.token_budget - sum(room.values())
        chunks: list[Chunk] = []
        for group in self._in_order_of_budget():
            planned = self._chunks(group, budget, room)
            budget -= sum(chunk.rows for chunk in planned)
            chunks += planned
            if not budget:
                break
        return StepPlan(tuple(chunks), tuple(copies))

    def commit(self, plan: StepPlan) -> list[Ready]:
        """Note that the plan was computed: its full blocks can be shared from now on, proposals left aside.
        The groups that choose tokens next, samples that forked off a prompt among them, in the order of their
        logits."""
        found: dict[Sequence, tuple[Chunk, range]] = {}
        row = 0
        for chunk in plan.chunks:
            self.prompt_tokens += max(0, min(chunk.known, len(chunk.sequence.request.prompt) - chunk.past))
            self._advance(chunk.sequence, chunk.past + chunk.known)
            if chunk.logits:
                found[chunk.sequence] = chunk, range(row, row + chunk.logits)
                row += chunk.logits
        ready = []
        for group in list(self.running):
            if group.sequences[0] in found:
                chunk = found[group.sequences[0]][0]
                rows = tuple(row for sequence in group.sequences for row in found[sequence][1])
                ready.append(Ready(group, rows, chunk))
                if group.siblings:
                    ready += [Ready(sibling, rows, chunk) for sibling in self._fork_siblings(group)]
        return sorted(ready, key=lambda found: found.rows)

    def settle(self, sequence: Sequence) -> None:
        """Note which proposals were accepted: all its tokens but the newest are computed, and what lies in
        the cache behind them, of proposals that were not, is given up."""
        self._advance(sequence, len(sequence.tokens) - 1)
        self.pool.truncate(sequence, len(sequence.tokens))

    def branch(self, group: Group, parents: Iterable[int]) -> None:
        """Replace the sequences of a beam group: for each place in ``parents`` a fork of the one there."""
        old = group.sequences
        group.sequences = [self._fork(old[parent], sample) for sample, parent in enumerate(parents)]
        for sequence in old:
            self.pool.free(sequence)

    def _in_order_of_budget(self) -> Iterator[Group]:
        """Those that decode, those that prefill, then one newcomer after another."""
        yield from sorted(self.running, key=lambda group: not group.decoding)
        while self.waiting and self._admit(self.waiting[0]):
            yield self.waiting.pop(0)

    def _chunks(self, group: Group, budget: int, room: Mapping[Sequence, int]) -> list[Chunk]:
        """The group's part of a step. Beams that were preempted catch up one by one, up to their newest
        tokens, which all of them then compute together."""
        if group.decoding:
            return [self._chunk(sequence, 1, room.get(sequence, 0)) for sequence in group.sequences]
        behind = next(sequence for sequence in group.sequences if sequence.pending > 1)
        alone = len(group.sequences) == 1
        return [self._chunk(behind, min(budget, behind.pending if alone else behind.pending - 1))]

    def _chunk(self, sequence: Sequence, rows: int, room: int = 0) -> Chunk:
        logits = int(rows == sequence.pending)
        return Chunk(sequence, rows, sequence.computed, self.pool.table(sequence), logits, room)

    def _room_for_proposals(self, drafts: DraftLimit) -> dict[Sequence, int]:
        """How many proposals each sequence may have: within its longest output, what the tokens that are
        known leave of the budget, shared evenly, and the blocks that are available. Nobody is preempted for
        a proposal."""
        drafting = [group.sequences[0] for group in self.running if _may_speculate(group)]
        drafting = drafting[: drafts.sequences]
        known = sum(sequence.pending for group in self.running for sequence in group.sequences)
        spare = max(self.limits.token_budget - known, 0)
        most = min(drafts.tokens, spare // max(len(drafting), 1))
        found = {}
        for sequence in drafting:
            room = min(most, sequence.request.longest - len(sequence.tokens) - 1)
            try:
                self.pool.grow(sequence, len(sequence.tokens) + room)
            except OutOfBlocks:
                continue
            found[sequence] = room
        return found

    # -- who runs ------------------------------------------------------------------------------------

    def _admit(self, group: Group) -> bool:
        """Let a waiting group run if there is a seat and there are blocks for all its tokens so far.

        What the cache already holds of them is taken as computed, whole blocks of it, but never the last
        token, whose logits are wanted.
        """
        seats = sum(other.seats for other in self.running)
        if seats + group.seats > self.limits.seats:
            return False
        first, size = group.sequences[0], self.pool.block_size
        # Of several beams the first computes one more, so that the others find its blocks in the next step.
        wanted = 1 if len(group.sequences) == 1 else 2
        full = (len(first.tokens) - wanted) // size if self.limits.prefix_cache else 0
        spare = self.limits.headroom * seats
        try:
            reused = self.pool.allocate(first, len(first.tokens), first.hashes(full, size), spare=spare)
        except OutOfBlocks:
            return False
        first.computed = reused * size
        if group.admitted is None:
            first.reused = first.computed
            group.admitted = self.clock.now()
        insort(self.running, group, key=_turn)
        return True

    def _fork_siblings(self, group: Group) -> list[Group]:
        """Start the other samples of a prompt that is computed: those that find a seat share its blocks and
        run, the others wait."""
        running = []
        seats = self.limits.seats - sum(other.seats for other in self.running)
        for sample in group.siblings:
            turn = (*group.turn[:2], sample)
            sibling = Group(group.request, turn, [], submitted=group.submitted)
            if len(running) < seats:
                sibling.sequences = [self._fork(group.sequences[0], sample)]
                sibling.admitted = group.admitted
                running.append(sibling)
                insort(self.running, sibling, key=_turn)
            else:
                sibling.sequences = [Sequence(group.request, sample)]
                self._queue(sibling)
        group.siblings = range(0)
        return running

    def _preempt(self, group: Group) -> None:
        """Back to waiting, to be computed again: its tokens stay, so its answer does not change."""
        self.running.remove(group)
        self._free(group)
        for sequence in group.sequences:
            sequence.computed = 0
        self.preemptions += 1
        self._queue(group)

    def _queue(self, group: Group) -> None:
        insort(self.waiting, group, key=_turn)

    # -- blocks --------------------------------------------------------------------------------------

    def _make_room(self, group: Group, copies: list[Copy]) -> None:
        """Get blocks for the tokens of a running group, and note what has to be copied for it. While they
        run short whoever's turn is last goes back to waiting, be it the group itself."""
        while True:
            try:
                for sequence in group.sequences:
                    self._make_room_for(sequence, group, copies)
                return
            except OutOfBlocks:
                last = self.running[-1]
                self._preempt(last)
                if last is group:
                    return

    def _make_room_for(self, sequence: Sequence, group: Group, copies: list[Copy]) -> None:
        if sequence not in self.pool and not self._resume(sequence, group):
            return
        self.pool.grow(sequence, len(sequence.tokens))
        copy = self.pool.writable(sequence, sequence.computed // self.pool.block_size)
        if copy is not None:
            copies.append(copy)

    def _resume(self, sequence: Sequence, group: Group) -> bool:
        """Let a preempted beam share what it has in common with those before it, once they have caught up."""
        before = group.sequences[: group.sequences.index(sequence)]
        if any(other.pending > 1 for other in before):
            return False
        common, closest = max(
            ((common_prefix(sequence.tokens, other.tokens[: other.computed]), other) for other in before),
            key=lambda found: found[0],
        )
        self.pool.fork(closest, sequence)
        self.pool.truncate(sequence, common)
        sequence.computed = common
        return True

    def _fork(self, sequence: Sequence, sample: int) -> Sequence:
        child = sequence.fork(sample)
        self.pool.fork(sequence, child)
        return child

    def _advance(self, sequence: Sequence, computed: int) -> None:
        """Note that so many tokens are computed, and let others share the blocks that they have filled."""
        size = self.pool.block_size
        first, full = sequence.computed // size, computed // size
        sequence.computed = computed
        if first == full or not self.limits.prefix_cache:
            return
        for i, hash in enumerate(sequence.hashes(full, size)[first:], first):
            self.pool.publish(sequence, i, hash)

    def _free(self, group: Group) -> None:
        for sequence in group.sequences:
            if sequence in self.pool:
                self.pool.free(sequence)

    # -- invariants ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise RuntimeError unless blocks are conserved and belong to those that run."""
        self.pool.check()
        held = sum(sequence in self.pool for group in self.running for sequence in group.sequences)
        if held != self.pool.sequences:
            raise RuntimeError(f"{self.pool.sequences} sequences hold blocks, of those that run {held}")


def _may_speculate(group: Group) -> bool:
    """Whether it decodes one sequence: no search, and no prompt whose samples are still to be forked."""
    return group.request.beams is None and group.sequences[0].pending == 1 and not group.siblings


def _turn(group: Group) -> tuple[float, int, int]:
    return group.turn
