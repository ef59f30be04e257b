"""A small model drafts for a large one of the same vocabulary, with a cache of its own."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ridgeline.engine.blocks import BlockPool, OutOfBlocks
from ridgeline.engine.build import default_blocks, make_cache
from ridgeline.engine.plan import NOTHING, Chunk, Proposal
from ridgeline.engine.runner import ModelRunner
from ridgeline.engine.sequence import Sequence, common_prefix
from ridgeline.engine.speculation.drafting import Draft, complete, compute
from ridgeline.engine.speculation.proposer import Target
from ridgeline.errors import InputError
from ridgeline.ops.batch import BLOCK_TOKENS, Span

if TYPE_CHECKING:
    from ridgeline.loading import Loaded

#: Whole windows that the cache has room for, if memory does.
WINDOWS = 64
#: A sequence further behind than NEAR tokens catches up in passes of its own, of at most CATCH_UP tokens.
NEAR, CATCH_UP = 16, 512


class DraftModel:
    """Drafts with ``draft`` for ``target``, both loaded, in a cache of ``blocks`` blocks.

    What the cache holds of a sequence is compared with its tokens when it is asked for: a rejected token is
    cut off, and one that was accepted without having been computed is pending. Those who were not asked for
    longest make room. A sequence without room, or at the end of the draft's window, gets no proposal.

    Raises InputError if the vocabularies differ, or if memory does not hold the cache.
    """

    def __init__(
        self, draft: Loaded, target: Loaded, *, blocks: int | None = None, block_size: int = BLOCK_TOKENS
    ) -> None:
        _refuse_other_vocabulary(draft, target)
        blocks = blocks or default_blocks(draft.model, draft.ops, WINDOWS, block_size)
        self.pool = BlockPool(blocks, block_size)
        cache = make_cache(draft.model, draft.ops, blocks, block_size)
        self._model = ModelRunner(draft.model, draft.ops, cache)
        self._window = draft.config.window
        self._held: dict[Sequence, list[int]] = {}  # who was not asked for longest comes first
        self._warm_up()

    @torch.inference_mode()
    def propose(self, chunks: Items[Chunk], target: Target) -> list[Proposal]:
        asked = {chunk.sequence for chunk in chunks}
        drafts = {chunk.sequence: self._begin(chunk, asked) for chunk in chunks}
        active = [draft for draft in drafts.values() if draft is not None]
        for draft in active:
            self._catch_up(draft)
        complete(active, self._model, target.rule)
        for draft in active:
            self._held[draft.sequence] = [*draft.sequence.tokens, *draft.tokens[:-1]]
        return [NOTHING if draft is None else draft.proposal for draft in drafts.values()]

    def close(self) -> None:
        """Let go of the cache; nothing is proposed any more."""
        self._model.close()

    def forget(self, sequence: Sequence) -> None:
        if self._held.pop(sequence, None) is not None:
            self.pool.free(sequence)

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """The first pass of a model is recorded. What this one writes, a sequence's own tokens overwrite."""
        model, first = self._model, Span(1, table=(0,))
        model.ops.prepare(model.model, model.cache, WINDOWS)
        model.ops.run(model.model, [0], [first], logits="last", cache=model.cache)

    def _begin(self, chunk: Chunk, asked: Collection[Sequence]) -> Draft | None:
        """A draft after those tokens of the sequence that the cache still holds; None without room."""
        sequence = chunk.sequence
        kept = self._keep(sequence)
        longest = len(sequence.tokens) + chunk.room - 1
        if longest > self._window or not self._make_room(sequence, longest, asked):
            return None
        return Draft(sequence, sequence.tokens[kept:], kept, self.pool.table(sequence), chunk.room)

    def _keep(self, sequence: Sequence) -> int:
        """How many tokens of the sequence the cache holds once what was rejected is cut off; never the
        newest, whose logits are wanted."""
        held = self._held.pop(sequence, None)
        if held is None:
            self.pool.allocate(sequence, 0)
            held = []
        kept = min(common_prefix(held, sequence.tokens), len(sequence.tokens) - 1)
        self.pool.truncate(sequence, kept)
        self._held[sequence] = held[:kept]
        return kept

    def _make_room(self, sequence: Sequence, tokens: int, asked: Collection[Sequence]) -> bool:
        """Get blocks for so many tokens from whoever is not among those asked for, if it must be."""
        while True:
            try:
                self.pool.grow(sequence, tokens)
            except OutOfBlocks:
                oldest = next((other for other in self._held if other not in asked), None)
                if oldest is None:
                    return False
                self.forget(oldest)
            else:
                return True

    def _catch_up(self, draft: Draft) -> None:
        while len(draft.pending) > NEAR:
            rows = min(CATCH_UP, len(draft.pending) - 1)
            compute([replace(draft, pending=draft.pending[:rows])], self._model, ())
            draft.past += rows
            draft.pending = draft.pending[rows:]


def _refuse_other_vocabulary(draft: Loaded, target: Loaded) -> None:
    """The same ids must mean the same tokens; models without tokenizers are taken at their word."""
    ours, theirs = target.config.vocab, draft.config.vocab
    if ours != theirs:
        raise InputError(
            f"the draft {draft.config.name} has {theirs} tokens and {target.config.name} has {ours}:"
            " use a draft of the same vocabulary"
        )
    if draft.tokenizer is not None and target.tokenizer is not None:
        other = next((i for i in range(ours) if draft.tokenizer.token(i) != target.tokenizer.token(i)), None)
        if other is not None:
            raise InputError(
                f"the draft {draft.config.name} and {target.config.name} mean different tokens by {other}:"
                " use a draft of the same tokenizer"
            )
