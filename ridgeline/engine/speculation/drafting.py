"""Drafting with a model: one packed pass for each token, over all sequences that want another."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import torch

from ridgeline.engine.plan import Proposal
from ridgeline.engine.runner import ModelRunner
from ridgeline.engine.sequence import Lookahead, Sequence
from ridgeline.engine.speculation.rules import Rule
from ridgeline.errors import InputError
from ridgeline.ops.batch import Span, Wanted


@dataclass
class Draft:
    """A proposal on its way to ``wanted`` tokens, at least one.

    ``pending`` tokens come after ``past`` ones in the blocks of ``table``; ``skipped`` tokens of the sequence
    are not in the table (:class:`~ridgeline.ops.batch.Span`).
    """

    sequence: Sequence
    pending: list[int]
    past: int
    table: tuple[int, ...]
    wanted: int
    skipped: int = 0
    tokens: list[int] = field(default_factory=list)
    probabilities: list[torch.Tensor] = field(default_factory=list)

    @property
    def proposal(self) -> Proposal:
        probabilities = torch.stack(self.probabilities) if self.probabilities else None
        return Proposal(tuple(self.tokens), probabilities)


def complete(drafts: Items[Draft], model: ModelRunner, rule: Rule) -> None:
    """Draw all tokens that the drafts want from ``model``; the last one's keys are not computed."""
    active = list(drafts)
    while active:
        logits = compute(active, model, "last")
        try:
            chosen = rule.draw(logits, [_context(draft) for draft in active])
        except InputError:  # a grammar's dead end, or a NaN: verification finds whose it is, if it gets there
            return
        for draft, token in zip(active, chosen.tokens, strict=True):
            draft.pending = [token]
            draft.tokens.append(token)
        if chosen.probabilities is not None:
            for draft, probabilities in zip(active, chosen.probabilities, strict=True):
                draft.probabilities.append(probabilities)
        active = [draft for draft in active if len(draft.tokens) < draft.wanted]


def compute(drafts: Items[Draft], model: ModelRunner, logits: Wanted) -> torch.Tensor:
    """Compute the pending tokens of all drafts in one pass: the wanted logits. None are pending then."""
    ids: list[int] = []
    spans: list[Span] = []
    for draft in drafts:
        rows, admitted = len(draft.pending), draft.sequence.request.longest
        spans.append(Span(rows, draft.past, table=draft.table, admitted=admitted, skipped=draft.skipped))
        ids += draft.pending
        draft.past += rows
        draft.pending = []
    return model.ops.run(model.model, ids, spans, logits=logits, cache=model.cache)


def _context(draft: Draft) -> Lookahead | Sequence:
    return Lookahead(draft.sequence, tuple(draft.tokens)) if draft.tokens else draft.sequence
