"""A packed batch as the array of numbers that a recorded pass reads (its order: csrc/program/step.h)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ridgeline.ops.batch import Span, Wanted, wanted_rows
from ridgeline.ops.records import Rope


@dataclass(frozen=True)
class StepNumbers:
    """``numbers`` are int64 in the order of csrc/program/step.h; ``tables`` are int32
    [spans, ``table_stride``], rows of fewer blocks filled up with zeros."""

    numbers: array
    tables: array
    table_stride: int
    wanted: int


def step_numbers(
    ids: Sequence[int],
    spans: Sequence[Span],
    *,
    logits: Wanted,
    segments: Sequence[int] | None = None,
    rope: Rope | None = None,
) -> StepNumbers:
    """The numbers of a step of ``ids``, those of all ``spans`` one after another."""
    rows = len(ids)
    starts = list(accumulate((span.rows for span in spans), initial=0))
    wanted = wanted_rows(logits, starts)
    numbers = array("q", (rows, len(spans), len(wanted), segments is not None))
    numbers.extend(ids)
    for span in spans:
        numbers.extend(span.positions)
    numbers.extend(range(rows) if is_dynamic(rope) else numbers[4 + rows :])
    if segments is not None:
        numbers.extend(segments)
    numbers.extend(wanted)
    numbers.extend(starts[:-1])
    numbers.extend(span.rows for span in spans)
    numbers.extend(span.past for span in spans)
    stride = max((len(span.table) for span in spans), default=0)
    tables = array("i")
    for span in spans:
        tables.extend(span.table)
        tables.extend((0,) * (stride - len(span.table)))
    return StepNumbers(numbers, tables, stride, len(wanted))


def is_dynamic(rope: Rope | None) -> bool:
    """Whether angles depend on the length that a request was admitted with, not on positions alone."""
    return rope is not None and rope.by_request
