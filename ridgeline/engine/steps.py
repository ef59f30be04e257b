"""What an engine's steps were and how long they took, and what was to be expected of them.

While the engine runs a step is only noted. Its FLOPs, bytes and predicted time are looked up when somebody
asks for its report, in the thread of whoever asks. Nothing here imports PyTorch.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

from ridgeline.engine.plan import StepPlan

#: Steps that an engine remembers.
LAST_STEPS = 1024
#: Whether prompts were computed in a step, newest tokens, those with proposals behind them, or prompts and
#: others.
Kind = Literal["prefill", "decode", "verify", "mixed"]


@dataclass(frozen=True)
class StepShape:
    """What of a step its cost depends on.

    ``decodes`` sequences compute one row each, ``decode_past`` tokens being cached before them, all together,
    and ``decode_longest`` before the one that has most.
    ``prefills`` others, which read prompts, compute ``prefill_rows`` behind ``prefill_past`` cached tokens,
    all together, whose causal masks let ``prefill_pairs`` query-key pairs through; and likewise those that
    verify proposals.
    """

    decodes: int
    decode_past: int
    prefills: int
    prefill_rows: int
    prefill_past: int
    prefill_pairs: int
    verifies: int = 0
    verify_rows: int = 0
    verify_past: int = 0
    verify_pairs: int = 0
    decode_longest: int = 0

    @classmethod
    def of(cls, plan: StepPlan) -> StepShape:
        decodes = decode_past = longest = 0
        prefill, verify = [0] * 4, [0] * 4
        for chunk in plan.chunks:
            if chunk.rows == 1:
                decodes += 1
                decode_past += chunk.past
                longest = max(longest, chunk.past)
                continue
            part = verify if chunk.proposal.tokens else prefill
            part[0] += 1
            part[1] += chunk.rows
            part[2] += chunk.past
            part[3] += chunk.rows * chunk.past + chunk.rows * (chunk.rows + 1) // 2
        return cls(decodes, decode_past, *prefill, *verify, longest)

    @property
    def rows(self) -> int:
        return self.decodes + self.prefill_rows + self.verify_rows

    @property
    def sequences(self) -> int:
        return self.decodes + self.prefills + self.verifies

    @property
    def context(self) -> int:
        """Tokens that its sequences have in the cache when it is done, all together."""
        return self.decode_past + self.prefill_past + self.verify_past + self.rows

    @property
    def kind(self) -> Kind:
        if not self.prefills:
            return "verify" if self.verifies else "decode"
        return "mixed" if self.decodes or self.verifies else "prefill"


@dataclass(frozen=True)
class StepRecord:
    """A step as it is noted: ``started``, when its plan stood (``scheduled``), when its logits were there
    (``computed``) and when its tokens were out (``finished``), in seconds on the engine's clock."""

    started: float
    scheduled: float
    computed: float
    finished: float
    shape: StepShape


class StepLog:
    """The last ``most`` steps. They may be read in any thread while one adds to them."""

    def __init__(self, most: int = LAST_STEPS) -> None:
        self._records: deque[StepRecord] = deque(maxlen=most)
        self._lock = threading.Lock()

    def add(self, record: StepRecord) -> None:
        with self._lock:
            self._records.append(record)

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """The oldest first."""
        with self._lock:
            return tuple(self._records)

    @property
    def last(self) -> StepRecord | None:
        with self._lock:
            return self._records[-1] if self._records else None


@dataclass(frozen=True)
class StepEstimate:
    """What a step computes and moves, and, if the machine was measured, how many ``seconds`` the model's pass
    should take. ``bound`` is the resource that the whole pass needs longest at the machine's measured rate,
    and ``bound_seconds`` is how long: no pass could take less."""

    flops: float
    bytes: float
    seconds: float | None = None
    bound: str | None = None
    bound_seconds: float | None = None


class StepEstimates(Protocol):
    """Knows what is to be expected of steps."""

    def estimate(self, shape: StepShape) -> StepEstimate: ...


@dataclass(frozen=True)
class StepReport:
    """One step of an engine, achieved and predicted.

    It began at ``started`` on the engine's clock and took ``scheduling``, ``running`` (the model's pass) and
    ``sampling`` seconds, one after the other. ``rows`` of ``sequences`` were computed, ``decode_rows`` of
    those that had one token pending, ``prefill_rows`` of prompts, ``verify_rows`` of newest tokens and their
    proposals; ``context`` tokens were cached then, all together. ``flops`` and ``bytes`` are counted of a
    step whose sequences of a kind all have their mean lengths, to 1.6 %.

    ``predicted`` is the time of ``running``, and ``bound`` the resource that it needs longest: matrix,
    vector, exp, memory or launch. ``bound_share`` of the running time is what that resource needs at the
    machine's measured rate: 1 is the roofline. The three are None unless the machine was measured.
    """

    kind: Kind
    started: float
    scheduling: float
    running: float
    sampling: float
    rows: int
    sequences: int
    prefill_rows: int
    decode_rows: int
    context: int
    flops: float
    bytes: float
    predicted: float | None
    bound: str | None
    bound_share: float | None
    verify_rows: int = 0

    @classmethod
    def of(cls, record: StepRecord, estimates: StepEstimates) -> StepReport:
        shape = record.shape
        running = record.computed - record.scheduled
        found = estimates.estimate(shape)
        return cls(
            kind=shape.kind,
            started=record.started,
            scheduling=record.scheduled - record.started,
            running=running,
            sampling=record.finished - record.computed,
            rows=shape.rows,
            sequences=shape.sequences,
            prefill_rows=shape.prefill_rows,
            decode_rows=shape.decodes,
            context=shape.context,
            flops=found.flops,
            bytes=found.bytes,
            predicted=found.seconds,
            bound=found.bound,
            bound_share=None if found.bound_seconds is None else found.bound_seconds / running,
            verify_rows=shape.verify_rows,
        )

    @property
    def seconds(self) -> float:
        return self.scheduling + self.running + self.sampling

    @property
    def error(self) -> float | None:
        """Of the prediction, signed and relative: positive if it is too slow."""
        return None if self.predicted is None else self.predicted / self.running - 1
