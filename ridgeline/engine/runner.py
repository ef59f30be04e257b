"""A step plan as calls of the operators: the only part of the engine that runs the model."""

from __future__ import annotations

from typing import Protocol

import torch

from ridgeline.engine.plan import StepPlan
from ridgeline.models.model import Model
from ridgeline.ops.batch import Span
from ridgeline.ops.native_cache import NativeCache
from ridgeline.ops.profile import OpTime
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_batch import TorchCache


class Runner(Protocol):
    """Computes step plans of a model with ``vocab`` tokens."""

    vocab: int

    def copy(self, plan: StepPlan) -> None:
        """Make the plan's copies of blocks, before anything is computed."""

    def run(self, plan: StepPlan) -> torch.Tensor:
        """The logits that the plan's chunks want, in their order: [wanted, vocab]."""

    def close(self) -> None:
        """Let go of the cache; nothing is run any more."""


class ModelRunner:
    """Runs ``model`` on the executing reading ``ops``, with its keys and values in ``cache``."""

    def __init__(self, model: Model, ops: Reference, cache: NativeCache | TorchCache) -> None:
        self.model = model
        self.ops = ops
        self.cache: NativeCache | TorchCache | None = cache
        self.vocab = model.config.vocab

    def copy(self, plan: StepPlan) -> None:
        self.cache.copy_blocks([(copy.source, copy.target) for copy in plan.copies])

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> torch.Tensor:
        ids, spans, wanted = pass_of(plan)
        return self.ops.run(self.model, ids, spans, logits=wanted, cache=self.cache)

    def close(self) -> None:
        if self.cache is not None:
            self.ops.release(self.cache)
            self.cache = None

    @torch.inference_mode()
    def profile(self, plan: StepPlan) -> list[OpTime]:
        """Run a plan again that was just run, for the seconds of each operator's calls. The cache gets what
        it has already."""
        ids, spans, wanted = pass_of(plan)
        return self.ops.profile(self.model, ids, spans, logits=wanted, cache=self.cache)


def pass_of(plan: StepPlan) -> tuple[list[int], list[Span], list[int]]:
    """The token ids of a plan, its spans, and the rows that want logits."""
    ids: list[int] = []
    spans: list[Span] = []
    wanted: list[int] = []
    for chunk in plan.chunks:
        sequence = chunk.sequence
        ids += sequence.tokens[chunk.past : chunk.past + chunk.known]
        ids += chunk.proposal.tokens
        longest = sequence.request.longest
        spans.append(Span(chunk.rows, chunk.past, table=chunk.table, admitted=longest))
        wanted += range(len(ids) - chunk.logits, len(ids))
    return ids, spans, wanted
