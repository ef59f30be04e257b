"""Predicted times of an engine's steps, remembered."""

from __future__ import annotations

from collections.abc import Iterable

from ridgeline.analysis.step import predict_step
from ridgeline.engine.plan import Chunk, StepPlan
from ridgeline.hardware.device import Device
from ridgeline.models.model import Model
from ridgeline.ops.protocol import Span

#: Lengths and numbers of sequences are told apart by this many leading binary digits: within 1.6 %.
DIGITS = 5


class StepCost:
    """The time of step plans of ``model`` on ``device``, by :func:`~ridgeline.analysis.step.predict_step`.

    A plan is taken as two kinds of sequences: those that decode, with the mean of their contexts, and those
    that prefill, all with the same number of rows, behind so many cached tokens that the query-key pairs
    are as many as in the plan. Plans that agree in DIGITS of these take the same time.
    """

    def __init__(self, model: Model, device: Device, cache_format: str | None = None) -> None:
        self._model = model
        self._device = device
        self._cache_format = cache_format
        self._known: dict[tuple[Span, ...], float] = {}

    def seconds(self, plan: StepPlan) -> float:
        """Seconds that the step takes; copies of blocks are not counted."""
        spans = tuple(self._spans(plan.chunks))
        if spans not in self._known:
            prediction = predict_step(self._model, self._device, spans, cache_format=self._cache_format)
            self._known[spans] = float(prediction.seconds)
        return self._known[spans]

    def _spans(self, chunks: Iterable[Chunk]) -> Iterable[Span]:
        decodes, prefills = [], []
        for chunk in chunks:
            (decodes if chunk.rows == 1 else prefills).append(chunk)
        if decodes:
            yield self._span(1, sum(chunk.past for chunk in decodes) / len(decodes), len(decodes))
        if prefills:
            rows = sum(chunk.rows for chunk in prefills) / len(prefills)
            pairs = sum(chunk.rows * (chunk.past + (chunk.rows + 1) / 2) for chunk in prefills)
            past = pairs / len(prefills) / rows - (rows + 1) / 2
            yield self._span(rows, past, len(prefills))

    def _span(self, rows: float, past: float, count: int) -> Span:
        rows = max(1, _leading(rows))
        most = self._model.config.window - rows
        return Span(rows, min(_leading(past), most), _leading(count))


def _leading(n: float) -> int:
    """The nearest whole number with at most DIGITS binary digits before its zeros."""
    step = 1 << max(int(n).bit_length() - DIGITS, 0)
    return round(n / step) * step
