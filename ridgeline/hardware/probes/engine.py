"""What an engine does in a step beside the model's pass: scheduling, choosing tokens, handing them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ridgeline.hardware.kernels import EngineTimes
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import Probe, Timings

if TYPE_CHECKING:
    import torch

    from ridgeline.engine.core import Core
    from ridgeline.engine.plan import StepPlan

#: Sequences and vocabulary of the steps from which the three times follow.
ONE, FEW_LOGITS, MANY_LOGITS = (1, 4096), (16, 4096), (16, 65536)
#: More tokens than any schedule asks for.
LONGEST = 4096


def engine_probes(ring: Ring) -> list[Probe]:
    """Figures ``kernels.engine[SEQUENCES, VOCAB]``: decode steps of the engine, whose model takes no time.
    Before each the caches hold other things, as they do after a real pass."""
    return [_probe(ring, *shape) for shape in (ONE, FEW_LOGITS, MANY_LOGITS)]


def _probe(ring: Ring, sequences: int, vocab: int) -> Probe:
    import torch

    core = engine_core(sequences, vocab)

    def prepare() -> Sequence[Any]:
        ring.memory.view(torch.int64).sum()
        return ()

    return Probe(_figure(sequences, vocab), core.step, prepare=prepare)


def engine_core(sequences: int, vocab: int, device: torch.device | str = "cpu") -> Core:
    """An engine in which so many sequences decode, whose model has the logits on ``device`` already."""
    from ridgeline.engine.blocks import BlockPool
    from ridgeline.engine.clock import RealClock
    from ridgeline.engine.core import Core
    from ridgeline.engine.plan import Limits
    from ridgeline.engine.request import Request
    from ridgeline.engine.scheduler import Scheduler
    from ridgeline.ops.batch import BLOCK_TOKENS

    requests = [Request((0,), LONGEST) for _ in range(sequences)]
    pool = BlockPool(sum(request.blocks_at_most(BLOCK_TOKENS) for request in requests), BLOCK_TOKENS)
    core = Core(
        Scheduler(pool, Limits(sequences=sequences), RealClock()), _NoModel(sequences, vocab, device), None
    )
    for place, request in enumerate(requests):
        core.submit(request, place)
    return core


class _NoModel:
    """A runner that has the logits already."""

    def __init__(self, sequences: int, vocab: int, device: torch.device | str) -> None:
        import torch

        self.vocab = vocab
        self._logits = torch.randn(sequences, vocab).to(device)

    def copy(self, plan: StepPlan) -> None:
        pass

    def run(self, plan: StepPlan) -> torch.Tensor:
        return self._logits

    def close(self) -> None:
        pass


def read_engine(timings: Timings) -> EngineTimes:
    """The times as measured, none below 0."""
    return engine_times(*(timings.seconds(_figure(*shape)) for shape in (ONE, FEW_LOGITS, MANY_LOGITS)))


def engine_times(one: float, few: float, many: float) -> EngineTimes:
    """The times that steps of ONE, FEW_LOGITS and MANY_LOGITS follow from, none below 0."""
    sequences, vocab = FEW_LOGITS
    logit = max((many - few) / (sequences * (MANY_LOGITS[1] - vocab)), 0.0)
    sequence = max((few - one) / (sequences - 1) - vocab * logit, 0.0)
    return EngineTimes(max(one - sequence - vocab * logit, 0.0), sequence, logit)


def _figure(sequences: int, vocab: int) -> str:
    return f"kernels.engine[{sequences}, {vocab}]"
