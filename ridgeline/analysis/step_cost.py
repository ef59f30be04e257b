"""What an engine's steps compute, move and should take, remembered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ridgeline.analysis.here import runs_as_measured, stored_here
from ridgeline.analysis.step import default_lowering, trace_step
from ridgeline.engine.plan import StepPlan
from ridgeline.engine.steps import StepEstimate, StepShape
from ridgeline.errors import InputError
from ridgeline.hardware.device import Device
from ridgeline.hardware.measured import is_measured_gpu, measured_kernels
from ridgeline.models.model import Model
from ridgeline.ops.batch import Span
from ridgeline.ops.lowering import FUSED, Lowering
from ridgeline.ops.trace import Trace
from ridgeline.predict import predict
from ridgeline.predict.roofline import resource_seconds

if TYPE_CHECKING:
    from ridgeline.loading import Loaded

#: Lengths and numbers of sequences are told apart by this many leading binary digits: within 1.6 %.
DIGITS = 5


class StepCost:
    """What steps of ``model`` cost on ``device``, as ``lowering`` runs them (by default what the device was
    measured with), at ``tier`` or the best that it has; without a device, FLOPs and bytes alone.

    A step is taken as four kinds of sequences: the one that decodes with the longest context, for which a
    GPU may have to wait, the others that decode, with the mean of theirs, and those that prefill or verify,
    all of a kind with the same number of rows, behind so many cached tokens that the query-key pairs are as
    many as in the step. Steps that agree in DIGITS of these cost the same.
    """

    def __init__(
        self,
        model: Model,
        device: Device | None,
        cache_format: str | None = None,
        lowering: Lowering | None = None,
        tier: str | None = None,
    ) -> None:
        self.device = device
        self._tier = tier
        self._model = model
        self._engine = measured_kernels(device).engine if device and device.kernels else None
        self._options = {
            "cache_format": cache_format,
            "lowering": lowering or (FUSED if device is None else default_lowering(device)),
        }
        self._known: dict[tuple[Span, ...], StepEstimate] = {}

    def seconds(self, plan: StepPlan) -> float:
        """Seconds that the step takes: the model's pass and, on a measured machine, what the engine does
        beside it. Copies of blocks are not counted."""
        beside = 0.0
        if self._engine is not None:
            tokens = sum(chunk.logits > 0 for chunk in plan.chunks)
            beside = self._engine.seconds(tokens, self._model.config.vocab)
        return self.estimate(StepShape.of(plan)).seconds + beside

    def estimate(self, shape: StepShape) -> StepEstimate:
        """Raises InputError if the device was not measured with weights of the model's format."""
        spans = tuple(self._spans(shape))
        if spans not in self._known:
            self._known[spans] = self._estimate(spans)
        return self._known[spans]

    def trace(self, spans: Sequence[Span]) -> Trace:
        """The operators of a step of exactly these spans."""
        return trace_step(self._model, spans, **self._options)

    def _estimate(self, spans: tuple[Span, ...]) -> StepEstimate:
        trace = self.trace(spans)
        flops, moved = float(trace.flops.total), float(trace.bytes)
        if self.device is None:
            return StepEstimate(flops, moved)
        needed = resource_seconds(trace, self.device)
        bound = max(needed, key=needed.get)
        seconds = float(predict(trace, self.device, self._tier).seconds)
        return StepEstimate(flops, moved, seconds, bound, float(needed[bound]))

    def _spans(self, shape: StepShape) -> Iterator[Span]:
        alike = shape.decodes
        past = shape.decode_past
        if shape.decode_longest * shape.decodes > past:
            yield self._span(1, shape.decode_longest, 1)
            alike, past = alike - 1, past - shape.decode_longest
        if alike:
            yield self._span(1, past / alike, alike)
        for count, all_rows, pairs in (
            (shape.prefills, shape.prefill_rows, shape.prefill_pairs),
            (shape.verifies, shape.verify_rows, shape.verify_pairs),
        ):
            if count:
                rows = all_rows / count
                yield self._span(rows, pairs / all_rows - (rows + 1) / 2, count)

    def _span(self, rows: float, past: float, count: int) -> Span:
        rows = max(1, _leading(rows))
        most = self._model.config.window - rows
        return Span(rows, min(_leading(past), most), _leading(count))


def cost_here(loaded: Loaded, cache_format: str | None = None) -> StepCost:
    """What steps of a loaded model cost on this machine.

    There are no predictions unless the machine was measured with what runs now: the reading, the instruction
    set, the number of threads and the format of the weights.
    """
    lowering = loaded.ops.lowering
    try:
        measured = stored_here(loaded)
        if measured is not None and _is_current(measured, loaded):
            cost = StepCost(loaded.model, measured, cache_format)
            cost.estimate(StepShape(1, 0, 0, 0, 0, 0))
            return cost
    except InputError:  # measured by an older version, or without this format of weights
        pass
    return StepCost(loaded.model, None, cache_format, lowering=lowering)


def _is_current(measured: Device, loaded: Loaded) -> bool:
    from ridgeline import kernels

    if loaded.on_gpu:
        return is_measured_gpu(measured) and runs_as_measured(loaded)
    found = measured_kernels(measured)
    running = (loaded.ops.lowering, kernels.isa(), kernels.threads())
    return (found.lowering, found.isa, found.threads) == running


def _leading(n: float) -> int:
    """The nearest whole number with at most DIGITS binary digits before its zeros."""
    step = 1 << max(int(n).bit_length() - DIGITS, 0)
    return round(n / step) * step
