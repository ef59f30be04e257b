"""Running a recorded pass: what its calls know by number, and the tables of rotary embedding."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ridgeline.ops.batch import Memory, Span, Wanted
from ridgeline.ops.native_cache import NativeCache
from ridgeline.ops.profile import OpTime
from ridgeline.ops.recording import Recording
from ridgeline.ops.records import Rope
from ridgeline.ops.rope import inverse_frequencies
from ridgeline.ops.step_numbers import Step, denoising_step, token_step

if TYPE_CHECKING:
    from ridgeline.models.denoising import Denoising

_ALIGNMENT = 64


class Replay:
    """Runs one recording. Several threads may do so at a time: each has its own workspace."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._weights = array("Q", (tensor.data_ptr() for tensor in recording.weights))
        self._of_thread = threading.local()

    def exchange(self, number: int, tensor: torch.Tensor) -> None:
        """From now on the pass reads ``tensor``, of the same shape and dtype, as its weight ``number``."""
        self._weights[number] = tensor.data_ptr()

    # -- steps of tokens --------------------------------------------------------------------------------

    def run(
        self,
        ids: Sequence[int],
        spans: Sequence[Span],
        logits: Wanted,
        cache: NativeCache | None = None,
        segments: Sequence[int] | None = None,
        memory: Memory | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The pass's results, float32, for a step of ``ids``, those of all ``spans`` one after another."""
        return self._run(self._tokens(ids, spans, logits, cache, segments, memory))

    def profile(
        self,
        ids: Sequence[int],
        spans: Sequence[Span],
        logits: Wanted,
        cache: NativeCache | None = None,
        segments: Sequence[int] | None = None,
        memory: Memory | None = None,
    ) -> list[OpTime]:
        """As :meth:`run`, for the seconds of each operator's calls."""
        return self._profile(self._tokens(ids, spans, logits, cache, segments, memory))

    def encode(
        self, ids: Sequence[int], spans: Sequence[Span], cache: NativeCache | None = None
    ) -> torch.Tensor:
        """An encoder's states of all rows; keys and values go to ``cache``, in the blocks of the spans."""
        return self._run(self._tokens(ids, spans, "all", cache, None, None))

    # -- steps of a diffusion Transformer ----------------------------------------------------------------

    def denoise(self, batch: Denoising) -> torch.Tensor:
        """What is predicted of every patch, float32."""
        return self._run(self._frame(denoising_step(batch)))

    def profile_denoising(self, batch: Denoising) -> list[OpTime]:
        """As :meth:`denoise`, for the seconds of each operator's calls."""
        return self._profile(self._frame(denoising_step(batch)))

    def _run(self, frame: _Frame) -> torch.Tensor | tuple[torch.Tensor, ...]:
        self.recording.program.run(*frame.arguments)
        return frame.outputs[0] if self.recording.alone else frame.outputs

    def _profile(self, frame: _Frame) -> list[OpTime]:
        times = [OpTime(name, [0.0] * calls) for name, calls in self.recording.ops]
        measured = self.recording.program.profile(*frame.arguments)
        for (op, turn), seconds in zip(self.recording.calls, measured, strict=True):
            times[op].seconds[turn] += seconds
        return times

    def _tokens(
        self,
        ids: Sequence[int],
        spans: Sequence[Span],
        logits: Wanted,
        cache: NativeCache | None,
        segments: Sequence[int] | None,
        memory: Memory | None,
    ) -> _Frame:
        asked = self.recording.indices
        step = token_step(ids, spans, logits=logits, segments=segments, memory=memory, asked=asked)
        caches = {"tokens": cache, "cross": None if memory is None else memory.cache}
        return self._frame(step, {name: x for name, x in caches.items() if x is not None})

    def _frame(self, step: Step, caches: dict[str, NativeCache] | None = None) -> _Frame:
        """``caches`` are those that cuts store and find keys in, by the cuts' names, in the order in which
        their layers are numbered."""
        recording = self.recording
        rows = [kind.count(step.counts) for kind in recording.kinds]
        outputs = tuple(torch.empty(kind.count(step.counts), columns) for kind, columns in recording.outputs)
        regions, needed = [], 0
        for count, row_bytes in zip(rows, recording.row_bytes, strict=True):
            regions.append(needed)
            needed += count * row_bytes
        memory, caches = self._memory(), caches or {}
        cuts: list[int] = []
        for name in recording.cuts:
            cuts += step.cuts[name]
            cuts.append(caches[name].blocks if name in caches else 0)
        addresses = array("Q")
        for cache in caches.values():
            addresses.extend(cache.addresses)
        return _Frame(
            step,
            outputs,
            addresses,
            (
                rows,
                [step.indices[name] for name in recording.indices],
                cuts,
                memory.angles.addresses(step) if recording.ropes else [],
                memory.workspace(needed).data_ptr(),
                regions,
                self._weights.buffer_info()[0],
                addresses.buffer_info()[0],
                [step.inputs[name] for name in recording.inputs],
                [x.data_ptr() for x in outputs],
            ),
        )

    def _memory(self) -> _Memory:
        if not hasattr(self._of_thread, "memory"):
            self._of_thread.memory = _Memory(Angles(self.recording.ropes))
        return self._of_thread.memory


@dataclass
class _Memory:
    """What a thread keeps from step to step: a workspace that grows to the largest, and tables of angles."""

    angles: Angles
    _workspace: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def workspace(self, needed: int) -> torch.Tensor:
        """At least ``needed`` bytes."""
        if needed > self._workspace.numel():
            self._workspace = torch.empty(needed, dtype=torch.uint8)
        return self._workspace


@dataclass(frozen=True)
class _Frame:
    """What a program is run with: ``arguments`` are addresses into the other fields, among others."""

    step: Step
    outputs: tuple[torch.Tensor, ...]
    caches: array
    arguments: tuple


class Angles:
    """cos and sin of each of ``ropes``, float32 [positions, dim], grown as positions come; those that depend
    on the request (``Rope.by_request``) are made for every step, one row of the step each."""

    def __init__(self, ropes: Sequence[Rope]) -> None:
        self._ropes = ropes
        self._tables = [_table(rope, []) for rope in ropes]
        self._known = 0  # positions that the tables hold

    def addresses(self, step: Step) -> list[int]:
        """Of each rotation where cos and sin lie, how many rows and columns they have, and the address of the
        numbers by which the step's rows take them; 0 where they are the rows' own."""
        needed = max(span.positions.stop for span in step.spans)
        if needed > self._known:
            self._known = max(needed, 2 * self._known, 512)
            whole = [(torch.arange(self._known), 0)]
            self._tables = [
                table if rope.by_request else _table(rope, whole)
                for rope, table in zip(self._ropes, self._tables, strict=True)
            ]
        found: list[int] = []
        for i, rope in enumerate(self._ropes):
            if rope.by_request:
                parts = [(torch.arange(s.positions.start, s.positions.stop), s.admitted) for s in step.spans]
                self._tables[i] = _table(rope, parts)
            cosines, sines = self._tables[i]
            rows = 0 if rope.by_request else step.indices["positions"]
            found += (cosines.data_ptr(), sines.data_ptr(), *cosines.shape, rows)
        return found


def _table(rope: Rope, parts: Sequence[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of positions, each part with the length that its request was admitted with."""
    angles, factor = [torch.empty(0, rope.dim // 2)], 1.0
    for positions, admitted in parts:
        frequency, factor = inverse_frequencies(rope, admitted)
        angles.append(positions[:, None].float() * frequency)
    angle = torch.cat(angles).repeat(1, 2)
    return angle.cos() * factor, angle.sin() * factor
