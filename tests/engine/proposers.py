"""Proposers for tests of speculation: ones that know what comes, and ones that are wrong."""

import random

from ridgeline.engine.plan import NOTHING, Proposal


class Replaying:
    """Proposes what the ``outputs`` of a plain run hold at that place, each token wrong with a chance of
    1 - ``acceptance``. Outputs are known by their request and sample."""

    def __init__(self, outputs, acceptance, vocab, seed=0):
        self.outputs = outputs
        self.acceptance = acceptance
        self.vocab = vocab
        self.draw = random.Random(seed)
        self.forgotten = []

    def propose(self, chunks, target):
        return [Proposal(tuple(map(self._some, self._next(chunk)))) for chunk in chunks]

    def forget(self, sequence):
        self.forgotten.append(sequence)

    def _next(self, chunk):
        sequence = chunk.sequence
        done = len(sequence.output)
        return self.outputs[sequence.request, sequence.sample][done : done + chunk.room]

    def _some(self, token):
        wrong = self.draw.random() >= self.acceptance
        return (token + 1) % self.vocab if wrong else token


class Always:
    """Proposes ``tokens`` of the chunk's room, whatever comes of it: those that a function of it gives."""

    def __init__(self, tokens):
        self.tokens = tokens

    def propose(self, chunks, target):
        return [Proposal(tuple(self.tokens(chunk))) if self.tokens(chunk) else NOTHING for chunk in chunks]

    def forget(self, sequence):
        pass
