"""Running a recorded pass: what its calls know by number, and the tables of rotary embedding."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ridgeline.ops.batch import Span, Wanted
from ridgeline.ops.native_cache import NativeCache
from ridgeline.ops.profile import OpTime
from ridgeline.ops.record import Recording, Rows
from ridgeline.ops.records import Rope
from ridgeline.ops.rope import inverse_frequencies
from ridgeline.ops.step_numbers import StepNumbers, is_dynamic, step_numbers


class Replay:
    """Runs one recording. Several threads may do so at a time: each has its own workspace."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._weights = array("Q", (tensor.data_ptr() for tensor in recording.weights))
        self._of_thread = threading.local()

    def exchange(self, number: int, tensor: torch.Tensor) -> None:
        """From now on the pass reads ``tensor``, of the same shape and dtype, as its weight ``number``."""
        self._weights[number] = tensor.data_ptr()

    def run(
        self,
        ids: Sequence[int],
        spans: Sequence[Span],
        logits: Wanted,
        cache: NativeCache | None = None,
        segments: Sequence[int] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The pass's results, float32, for a step of ``ids``, those of all ``spans`` one after another."""
        frame = self._frame(ids, spans, logits, cache, segments)
        self.recording.program.run(*frame.arguments)
        return frame.outputs[0] if self.recording.alone else frame.outputs

    def profile(
        self,
        ids: Sequence[int],
        spans: Sequence[Span],
        logits: Wanted,
        cache: NativeCache | None = None,
        segments: Sequence[int] | None = None,
    ) -> list[OpTime]:
        """As :meth:`run`, for the seconds of each operator's calls."""
        frame = self._frame(ids, spans, logits, cache, segments)
        times = [OpTime(name, [0.0] * calls) for name, calls in self.recording.ops]
        measured = self.recording.program.profile(*frame.arguments)
        for (op, turn), seconds in zip(self.recording.calls, measured, strict=True):
            times[op].seconds[turn] += seconds
        return times

    def _frame(
        self,
        ids: Sequence[int],
        spans: Sequence[Span],
        logits: Wanted,
        cache: NativeCache | None,
        segments: Sequence[int] | None,
    ) -> _Frame:
        recording = self.recording
        if recording.segmented and segments is None:
            segments = [0] * len(ids)
        rope = recording.ropes[0] if recording.ropes else None  # one that depends on the request is alone
        step = step_numbers(ids, spans, logits=logits, segments=segments, rope=rope)
        rows = {Rows.all: len(ids), Rows.wanted: step.wanted, Rows.first: len(spans)}
        outputs = tuple(torch.empty(rows[x.rows], x.columns) for x in recording.outputs)
        memory = self._memory()
        angles = (0, 0, 0) if memory.angles is None else memory.angles.addresses(spans)
        return _Frame(
            step,
            outputs,
            (
                _address(step.numbers),
                _address(step.tables),
                step.table_stride,
                memory.workspace(recording.row_bytes * len(ids)).data_ptr(),
                _address(self._weights),
                0 if cache is None else _address(cache.addresses),
                [x.data_ptr() for x in outputs],
                *angles,
                0 if cache is None else cache.blocks,
            ),
        )

    def _memory(self) -> _Memory:
        if not hasattr(self._of_thread, "memory"):
            ropes = self.recording.ropes
            self._of_thread.memory = _Memory(Angles(ropes) if ropes else None)
        return self._of_thread.memory


@dataclass
class _Memory:
    """What a thread keeps from step to step: a workspace that grows to the largest, and tables of angles."""

    angles: Angles | None
    _workspace: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def workspace(self, needed: int) -> torch.Tensor:
        """At least ``needed`` bytes."""
        if needed > self._workspace.numel():
            self._workspace = torch.empty(needed, dtype=torch.uint8)
        return self._workspace


@dataclass(frozen=True)
class _Frame:
    """What a program is run with: ``arguments`` are addresses into the other fields, among others."""

    step: StepNumbers
    outputs: tuple[torch.Tensor, ...]
    arguments: tuple


class Angles:
    """cos and sin of each of ``ropes``, float32 [ropes, positions, dim], grown as positions come."""

    def __init__(self, ropes: Sequence[Rope]) -> None:
        self._ropes = ropes
        self._cosines = self._sines = torch.empty(len(ropes), 0, ropes[0].dim)

    def addresses(self, spans: Sequence[Span]) -> tuple[int, int, int]:
        """Where cos and sin lie for a step of ``spans``, and how many rows they have: rows by position, or
        by row of the step where angles depend on the request (``is_dynamic``)."""
        if is_dynamic(self._ropes[0]):
            parts = [(torch.arange(s.positions.start, s.positions.stop), s.admitted) for s in spans]
            self._fill(parts)
        elif (needed := max(span.positions.stop for span in spans)) > self._cosines.shape[1]:
            self._fill([(torch.arange(max(needed, 2 * self._cosines.shape[1], 512)), 0)])
        return self._cosines.data_ptr(), self._sines.data_ptr(), self._cosines.shape[1]

    def _fill(self, parts: list[tuple[torch.Tensor, int]]) -> None:
        cosines, sines = [], []
        for rope in self._ropes:
            angles, factor = [], 1.0
            for positions, admitted in parts:
                frequency, factor = inverse_frequencies(rope, admitted)
                angles.append(positions[:, None].float() * frequency)
            angle = torch.cat(angles).repeat(1, 2)
            cosines.append(angle.cos() * factor)
            sines.append(angle.sin() * factor)
        self._cosines, self._sines = torch.stack(cosines), torch.stack(sines)


def _address(numbers: array) -> int:
    return numbers.buffer_info()[0]
