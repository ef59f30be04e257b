"""A step plan as calls of the operators: the only part of the engine that runs the model."""

from __future__ import annotations

from typing import Protocol

import torch

from ridgeline.engine.plan import StepPlan
from ridgeline.models.model import Model
from ridgeline.ops.protocol import Span
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_batch import TorchCache


class Runner(Protocol):
    """Computes step plans."""

    def run(self, plan: StepPlan) -> torch.Tensor:
        """The logits that the plan's chunks want, in their order: [wanted, vocab]."""


class ModelRunner:
    """Runs ``model`` on the executing reading ``ops``, with its keys and values in ``cache``."""

    def __init__(self, model: Model, ops: Reference, cache: TorchCache) -> None:
        self.model = model
        self.ops = ops
        self.cache = cache

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> torch.Tensor:
        for copy in plan.copies:
            self.cache.copy_block(copy.source, copy.target)
        ids: list[int] = []
        spans = []
        for chunk in plan.chunks:
            sequence, end = chunk.sequence, chunk.past + chunk.rows
            ids += sequence.tokens[chunk.past : end]
            longest = sequence.request.longest
            spans.append(Span(chunk.rows, chunk.past, table=chunk.table, admitted=longest))
        batch = self.ops.batch(ids, spans, logits="last", cache=self.cache)
        logits = self.model.forward(self.ops, batch)
        wanted = [place for place, chunk in enumerate(plan.chunks) if chunk.logits]
        return logits if len(wanted) == len(plan.chunks) else logits[wanted]
