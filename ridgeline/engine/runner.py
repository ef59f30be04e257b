"""A step plan as calls of the operators: the only part of the engine that runs the model."""

from __future__ import annotations

from dataclasses import replace
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
        spans: list[Span] = []
        wanted: list[int] = []
        for chunk in plan.chunks:
            sequence = chunk.sequence
            ids += sequence.tokens[chunk.past : chunk.past + chunk.rows]
            longest = sequence.request.longest
            spans.append(Span(chunk.rows, chunk.past, table=chunk.table, admitted=longest))
            wanted += range(len(ids) - chunk.logits, len(ids))
        batch = self.ops.batch(ids, spans, cache=self.cache)
        rows = torch.tensor(wanted, dtype=torch.int64, device=batch.ids.device)
        return self.model.forward(self.ops, replace(batch, logit_rows=rows))
