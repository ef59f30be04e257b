"""A model without weights, for tests of the engine: its logits are a hash of the tokens in the cache.

What a chunk reads it reads from cache slots through the block table that it was given, so a block that is
shared, copied or freed wrongly changes the tokens, or is caught right away.
"""

from hashlib import blake2b

import torch

from ridgeline.engine.beams import Beams
from ridgeline.engine.blocks import BlockPool
from ridgeline.engine.clock import SimulatedClock
from ridgeline.engine.core import Core
from ridgeline.engine.plan import Limits
from ridgeline.engine.result import Failure
from ridgeline.engine.sampler import choose_continuations, choose_tokens
from ridgeline.engine.scheduler import Scheduler
from ridgeline.engine.sequence import Sequence

VOCAB = 40


def logits_after(tokens):
    """[VOCAB], always the same for the same tokens."""
    seed = int.from_bytes(blake2b(bytes(tokens), digest_size=7).digest())
    return 2 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


class FakeRunner:
    """Keeps the tokens themselves where a model keeps their keys and values."""

    def __init__(self, pool):
        self.size = pool.block_size
        self.blocks = [[None] * self.size for _ in range(pool.blocks)]
        self.plans = []

    vocab = VOCAB

    def copy(self, plan):
        for copy in plan.copies:
            self.blocks[copy.target] = list(self.blocks[copy.source])

    closed = False

    def close(self):
        self.closed = True

    def run(self, plan):
        self.plans.append(plan)
        for chunk in plan.chunks:
            tokens = [*chunk.sequence.tokens[: chunk.past + chunk.known], *chunk.proposal.tokens]
            for place in range(chunk.past, chunk.past + chunk.rows):
                block = self.blocks[chunk.table[place // self.size]]
                block[place % self.size] = tokens[place]
        rows = [row for chunk in plan.chunks for row in self.logits(chunk)]
        return torch.stack(rows or [torch.empty(VOCAB)])

    def logits(self, chunk):
        end = chunk.past + chunk.rows
        read = [token for block in chunk.table for token in self.blocks[block]][:end]
        assert read == [*chunk.sequence.tokens[: chunk.past + chunk.known], *chunk.proposal.tokens]
        return [logits_after(read[: end - i]) for i in reversed(range(chunk.logits))]


def fake_core(*, blocks=100, block_size=4, tokenizer=None, speculator=None, **limits):
    """A core on the fake model, in simulated time."""
    pool = BlockPool(blocks, block_size)
    scheduler = Scheduler(pool, Limits(**limits), SimulatedClock())
    return Core(scheduler, FakeRunner(pool), tokenizer, speculator)


def results(core):
    """All results by (request's place, sample), each step checked; the cache must be all available again."""
    found = {}
    while core.has_work:
        for token in core.step():
            if isinstance(token, Failure):
                raise token.error
            if token.result is not None:
                found[token.request, token.sample] = token.result
        core.scheduler.check()
    assert core.scheduler.pool.available == core.scheduler.pool.blocks
    assert not any((core._answers, core._outputs, core._beams))
    return found


def naive(request):
    """The outputs of a request by the definition: a whole pass for every token, nothing kept or shared."""
    if request.beams is not None:
        return naive_beams(request)
    outputs = []
    for sample in range(request.samples):
        sequence = Sequence(request, sample)
        while sequence.finish_reason is None:
            [token] = choose_tokens(logits_after(sequence.tokens)[None], [sequence])
            sequence.accept(token)
        outputs.append((tuple(sequence.output), sequence.finish_reason))
    return outputs


def naive_beams(request):
    beams, sequences = Beams(request), [Sequence(request)]
    while True:
        logits = torch.stack([logits_after(sequence.tokens) for sequence in sequences])
        found = choose_continuations(logits, sequences, beams.candidates)
        branches = beams.advance([sequence.output for sequence in sequences], found)
        if not branches:
            return [(h.ids, h.finish_reason) for h in beams.finished[: request.samples]]
        sequences = [sequences[branch.parent].fork(i) for i, branch in enumerate(branches)]
        for sequence, branch in zip(sequences, branches, strict=True):
            sequence.tokens.append(branch.token)
